"""Causal depthwise convolution with SiLU along paths, channels last; forward, and backward in two steps.

A tap that lies `w - 1 - j` steps back (ahead, on a mirrored path) reads its row again: rows are in the cache by then.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(steps, channels, paths, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(batch, path, first step, channels [1, COLUMNS], whether they exist) of this program."""
    across = tl.cdiv(channels, COLUMNS)
    down = tl.cdiv(steps, ROWS)
    rest = tl.program_id(0)
    c = (rest % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rest = rest // across
    first = (rest % down) * ROWS
    rest = rest // down
    return (rest // paths).to(tl.int64), rest % paths, first, c, c < channels


@triton.jit
def _row(pointer, batch, path, strides):
    """Where a sequence starts; strides by batch, path and token."""
    return pointer + batch * strides[0] + path.to(tl.int64) * strides[1]


@triton.jit
def _read(row, stride, tables, path, step, steps, tokens, c, exists):
    """x [ROWS, COLUMNS] at steps [ROWS, 1]; zero outside the sequence and where a step has no token."""
    inside = (step >= 0) & (step < steps)
    token = step
    if tables is not None:
        token = tl.load(tables + path.to(tl.int64) * steps + step, mask=inside, other=-1)
        inside = inside & (token >= 0) & (token < tokens)
    return tl.load(row + token.to(tl.int64) * stride + c, mask=inside & exists, other=0.0).to(tl.float32)


@triton.jit
def _tap(weight, path, j: tl.constexpr, strides, c, exists):
    return tl.load(weight + path * strides[0] + c * strides[1] + j * strides[2], mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _before_silu(
    row, stride, tables, weight, weight_strides, bias, bias_stride, path, ahead, step, steps, tokens, c,
    exists, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The convolution [ROWS, COLUMNS] at steps [ROWS, 1]; `ahead` is 1 on a mirrored path, else -1."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    if bias is not None:
        total += tl.load(bias + path * bias_stride + c, mask=exists, other=0.0).to(tl.float32)
    for j in tl.static_range(WIDTH):
        x = _read(row, stride, tables, path, step + ahead * (WIDTH - 1 - j), steps, tokens, c, exists)
        total += x * _tap(weight, path, j, weight_strides, c, exists)
    return total


@triton.jit
def conv_forward(
    x, x_strides, weight, weight_strides, bias, bias_stride, tables, mirrored, tokens, y, y_strides,
    steps, channels, paths,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y [b, k, s, d] of x [b, k, t, d]; bit k of `mirrored` says that path k runs from the end."""
    batch, path, first, c, exists = _tile(steps, channels, paths, ROWS, COLUMNS)
    ahead = ((mirrored >> path) & 1) * 2 - 1
    step = first + tl.arange(0, ROWS)[:, None]
    value = _before_silu(
        _row(x, batch, path, x_strides), x_strides[2], tables, weight, weight_strides, bias, bias_stride, path, ahead,
        step, steps, tokens, c, exists, ROWS, COLUMNS, WIDTH,
    )  # fmt: skip
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    place = _row(y, batch, path, y_strides) + step.to(tl.int64) * y_strides[2] + c
    tl.store(place, value.to(y.dtype.element_ty), mask=(step < steps) & exists)


@triton.jit
def conv_backward_filter(
    x, x_strides, weight, weight_strides, bias, bias_stride, tables, mirrored, tokens, dy, dy_strides, d_before,
    d_filter, steps, channels, paths,
    ROWS: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Gradients of the convolution before SiLU, `d_before` [b, k, s, d], and of the taps and the bias: `d_filter`
    [b, k, parts, WIDTH + 1, d], one part for each TILES times ROWS steps."""
    batch, path, first, c, exists = _tile(steps, channels, paths, ROWS * TILES, COLUMNS)
    ahead = ((mirrored >> path) & 1) * 2 - 1
    row = _row(x, batch, path, x_strides)
    sums = (tl.zeros([COLUMNS], tl.float32),) * (WIDTH + 1)
    for i in range(TILES):
        step = first + i * ROWS + tl.arange(0, ROWS)[:, None]
        kept = (step < steps) & exists
        place = _row(dy, batch, path, dy_strides) + step.to(tl.int64) * dy_strides[2] + c.to(tl.int64) * dy_strides[3]
        d = tl.load(place, mask=kept, other=0.0).to(tl.float32)
        if SILU:
            value = _before_silu(
                row, x_strides[2], tables, weight, weight_strides, bias, bias_stride, path, ahead, step, steps, tokens,
                c, exists, ROWS, COLUMNS, WIDTH,
            )  # fmt: skip
            gate = 1.0 / (1.0 + tl.exp(-value))
            d *= gate * (1.0 + value * (1.0 - gate))
        place = ((batch * paths + path) * steps + step) * channels + c
        tl.store(d_before + place, d.to(d_before.dtype.element_ty), mask=kept)
        after = ()
        for j in tl.static_range(WIDTH):
            tap = _read(row, x_strides[2], tables, path, step + ahead * (WIDTH - 1 - j), steps, tokens, c, exists)
            after = after + (sums[j] + tl.sum(d * tap, 0),)
        sums = after + (sums[WIDTH] + tl.sum(d, 0),)
    part = (batch * paths + path) * tl.cdiv(steps, ROWS * TILES) + first // (ROWS * TILES)
    column = tl.reshape(c, [COLUMNS])
    for j in tl.static_range(WIDTH + 1):
        tl.store(d_filter + (part * (WIDTH + 1) + j) * channels + column, sums[j], mask=column < channels)


@triton.jit
def conv_backward_input(
    d_before, weight, weight_strides, mirrored, dx, steps, channels, paths,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PATHS: tl.constexpr,
):  # fmt: skip
    """dx [b, paths / PATHS, s, d] from d_before [b, paths, s, d]: the sum over PATHS paths that read one sequence."""
    batch, sequence, first, c, exists = _tile(steps, channels, paths // PATHS, ROWS, COLUMNS)
    step = first + tl.arange(0, ROWS)[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for p in tl.static_range(PATHS):
        path = sequence * PATHS + p
        ahead = ((mirrored >> path) & 1) * 2 - 1
        row = d_before + (batch * paths + path) * steps * channels
        for j in tl.static_range(WIDTH):
            d = _read(row, channels, None, path, step - ahead * (WIDTH - 1 - j), steps, steps, c, exists)
            total += d * _tap(weight, path, j, weight_strides, c, exists)
    place = ((batch * (paths // PATHS) + sequence) * steps + step) * channels + c
    tl.store(dx + place, total.to(dx.dtype.element_ty), mask=(step < steps) & exists)
