"""What follows the scans of several paths: their sum and the gate, and the gate's gradient."""

import triton
import triton.language as tl


@triton.jit
def _silu(z):
    gate = 1.0 / (1.0 + tl.exp(-z))
    return z * gate, gate


@triton.jit
def _rows(tokens, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(batch, tokens [ROWS, 1], channels [1, COLUMNS], which exist) of this program."""
    across = tl.cdiv(channels, COLUMNS)
    down = tl.cdiv(tokens, ROWS)
    rest = tl.program_id(0)
    c = (rest % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    t = (rest // across % down) * ROWS + tl.arange(0, ROWS)[:, None]
    return (rest // across // down).to(tl.int64), t.to(tl.int64), c, (t < tokens) & (c < channels)


@triton.jit
def merge_paths(
    parts, z, y, ungated, tokens, channels, z_batch, z_token,
    PATHS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y [b, t, d] = sum over paths of parts [b, PATHS, t, d], times silu(z) where given; `ungated` [b, t, d] receives
    the sum alone."""
    batch, t, c, exists = _rows(tokens, channels, ROWS, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.static_range(PATHS):
        total += tl.load(parts + ((batch * PATHS + k) * tokens + t) * channels + c, mask=exists, other=0.0)
    place = (batch * tokens + t) * channels + c
    if ungated is not None:
        tl.store(ungated + place, total.to(ungated.dtype.element_ty), mask=exists)
    if z is not None:
        gate, _ = _silu(tl.load(z + batch * z_batch + t * z_token + c, mask=exists, other=0.0).to(tl.float32))
        total *= gate
    tl.store(y + place, total.to(y.dtype.element_ty), mask=exists)


@triton.jit
def gate_backward(
    dy, z, ungated, d_ungated, dz, tokens, channels, dy_batch, dy_path, dy_token, dy_channel, z_batch, z_path, z_token,
    PATHS: tl.constexpr, SHARED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of y = ungated silu(z), [b, PATHS, t, d]; with SHARED, z and dz are [b, 1, t, d]."""
    batch, t, c, exists = _rows(tokens, channels, ROWS, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.static_range(PATHS):
        path = tl.full([1, 1], k, tl.int64)
        place = ((batch * PATHS + path) * tokens + t) * channels + c
        value = tl.load(z + batch * z_batch + path * z_path + t * z_token + c, mask=exists, other=0.0).to(tl.float32)
        dy_place = batch * dy_batch + path * dy_path + t * dy_token + c.to(tl.int64) * dy_channel
        d = tl.load(dy + dy_place, mask=exists, other=0.0).to(tl.float32)
        y = tl.load(ungated + place, mask=exists, other=0.0).to(tl.float32)
        silu, gate = _silu(value)
        tl.store(d_ungated + place, (d * silu).to(d_ungated.dtype.element_ty), mask=exists)
        d_value = d * y * (gate + silu * (1.0 - gate))
        if SHARED:
            total += d_value
        else:
            tl.store(dz + place, d_value.to(dz.dtype.element_ty), mask=exists)
    if SHARED:
        tl.store(dz + (batch * tokens + t) * channels + c, total.to(dz.dtype.element_ty), mask=exists)
