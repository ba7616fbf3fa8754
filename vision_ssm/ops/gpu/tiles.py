"""What the scan kernels share: addresses, step sizes and the recurrence of a tile.

A program is one warp. Its lanes are neighbouring channels and a tile of TILE steps lies in registers, so the scan along
the steps is a chain of multiply-adds within a lane: no shuffles, no barriers, no shared memory. This holds only while
the compiler spreads nothing but channels over the lanes. Were it to know that rows are aligned, it would pack several
channels into wide loads and spread steps over lanes instead. Strides therefore travel as `2 s + 1`, about which nothing
can be inferred, and in units of PACK channels: PACK neighbours share a lane, no more.
"""

from typing import NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


class Inputs(NamedTuple):
    """Tensors of a scan, None where absent, in the notation of `ops/selective_scan.py`."""

    u: object  # [b, k | 1, t, d]
    dt: object  # [b, k, t, d]; None with RANK
    x: object  # [b, k, t, RANK + g (n + n)]: dt of low rank, then each group's B and C; float32
    A: object  # [k, n, d], float32, times log2(e)
    D: object  # [k, d]
    bias: object  # [k, d]
    weight: object  # [k, r, d]
    read: object  # [k, s], int32: token read at each step, None in order
    write: object  # [k, s]: token written


class Strides(NamedTuple):
    """By (batch, path, token), each as `2 s + 1`; of u, dt and y in units of PACK."""

    u: tuple
    dt: tuple
    x: tuple
    y: tuple
    D: int  # by path; 0 where paths share
    bias: int


class Sizes(NamedTuple):
    """Run-time sizes: each group has `blocks` of BLOCK channels, each sequence `segments` of `length` steps."""

    steps: int
    channels: int
    paths: int
    groups: int
    blocks: int
    segments: int
    length: int


class Constants(NamedTuple):
    """Compile-time constants, each a `tl.constexpr`."""

    STATES: object  # d_state
    RANK: object  # dt_rank; 0 where dt is given at full width
    TILE: object  # steps in registers
    BLOCK: object  # channels of a program: 32 PACK
    PACK: object  # channels of a lane
    CHUNK: object  # steps between the states that training keeps
    PAIRED: object  # rows of x start at even addresses: two values a load
    WIDE: object  # offsets within an image pass 2^31
    MASKED: object  # BLOCK does not divide the channels of a group
    PADS: object  # there are steps without a token
    SOFTPLUS: object  # delta is softplus(dt + bias), else dt + bias


class Scan(NamedTuple):
    """A scan as every kernel takes it."""

    inputs: Inputs
    strides: Strides
    sizes: Sizes
    c: Constants


class Program(NamedTuple):
    """What a program works on."""

    batch: object
    path: object
    segment: object
    group: object
    block: object
    row: object  # batch * paths + path
    d: object  # [BLOCK] channels
    valid: object  # [BLOCK] whether they exist


class Rows(NamedTuple):
    """Where the program's sequences start, and what stays the same along them."""

    u: object
    dt: object
    x: object
    bias: object


class Tile(NamedTuple):
    """The inputs of TILE steps."""

    exists: object  # [TILE] whether the step exists
    step: object  # [TILE]
    token: object  # [TILE] token read, 0 at pads
    real: object  # [TILE] whether there is one
    x: object  # [TILE] addresses of the rows (B, C)
    u: object  # [TILE, BLOCK]
    delta: object
    slope: object  # d delta / d dt


@triton.jit
def along(batch, path, strides, PACK: tl.constexpr):
    """Offset of a sequence."""
    return (batch * (strides[0] >> 1) + path.to(tl.int64) * (strides[1] >> 1)) * PACK


@triton.jit
def at(token, strides, PACK: tl.constexpr):
    """Offset of tokens in a sequence."""
    return token * (strides[2] >> 1) * PACK


@triton.jit
def locate(scan):
    """The program's share. Programs of one image follow one another, so that the first brings its rows into the cache
    for all."""
    sizes = scan.sizes
    rest = tl.program_id(0)
    block = rest % sizes.blocks
    rest = rest // sizes.blocks
    group = rest % sizes.groups
    rest = rest // sizes.groups
    path = rest % sizes.paths
    rest = rest // sizes.paths
    segment = rest % sizes.segments
    batch = (rest // sizes.segments).to(tl.int64)
    width = sizes.channels // sizes.groups
    inside = block * scan.c.BLOCK + tl.arange(0, scan.c.BLOCK)
    return Program(
        batch, path, segment, group, block, batch * sizes.paths + path, group * width + inside, inside < width
    )


@triton.jit
def load(pointers, mask, MASKED: tl.constexpr):
    """A load in float32; of existing lanes only with MASKED."""
    if MASKED:
        return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    else:
        return tl.load(pointers).to(tl.float32)


@triton.jit
def store(pointers, value, kept, here, MASKED: tl.constexpr):
    """Store [TILE, BLOCK] in the rows `kept` [TILE]."""
    mask = kept[:, None] & here.valid[None, :] if MASKED else kept[:, None]
    tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def start(scan, here):
    """The beginnings of the program's sequences."""
    inputs = scan.inputs
    u = inputs.u + along(here.batch, here.path, scan.strides.u, scan.c.PACK) + here.d
    x = inputs.x + along(here.batch, here.path, scan.strides.x, 1)
    bias = by_channel(inputs.bias, scan.strides.bias, here, scan.c.MASKED)
    if scan.c.RANK > 0:
        return Rows(u, x, x, bias)  # dt is part of x
    else:
        return Rows(u, inputs.dt + along(here.batch, here.path, scan.strides.dt, scan.c.PACK) + here.d, x, bias)


@triton.jit
def by_channel(pointer, stride, here, MASKED: tl.constexpr):
    """This program's channels [BLOCK] of a (path, channels) parameter; zeros where there is none."""
    if pointer is None:
        return tl.zeros_like(here.d).to(tl.float32)
    else:
        return load(pointer + here.path * (stride >> 1) + here.d, here.valid, MASKED)


@triton.jit
def entries(pointer, index, scan, here):
    """Entry `index` of a (..., d_state, channels) tensor: a tuple of d_state rows [BLOCK]."""
    rows = ()
    for n in tl.static_range(scan.c.STATES):
        rows = rows + (
            load(pointer + (index * scan.c.STATES + n) * scan.sizes.channels + here.d, here.valid, scan.c.MASKED),
        )
    return rows


@triton.jit
def write_entries(pointer, index, rows, scan, here):
    """Write entry `index` of a (..., len(rows), channels) tensor."""
    for n in tl.static_range(len(rows)):
        tl.store(pointer + (index * len(rows) + n) * scan.sizes.channels + here.d, rows[n], mask=here.valid)


@triton.jit
def zeros(scan):
    """d_state rows [BLOCK] of zeros."""
    rows = ()
    for _ in tl.static_range(scan.c.STATES):
        rows = rows + (tl.zeros([scan.c.BLOCK], tl.float32),)
    return rows


@triton.jit
def two(pointer, PAIRED: tl.constexpr):
    """Two neighbouring float32."""
    if PAIRED:
        both = tl.load(pointer.to(tl.pointer_type(tl.int64)))
        first = (both & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
        return first, (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        return tl.load(pointer), tl.load(pointer + 1)


@triton.jit
def _real(values, t, PADS: tl.constexpr):
    """A tuple of [TILE], zero at steps without a token."""
    if PADS:
        kept = ()
        for i in tl.static_range(len(values)):
            kept = kept + (tl.where(t.real, values[i], 0.0),)
        return kept
    else:
        return values


@triton.jit
def state_inputs(t, c):
    """B and C of every state at the steps of a tile, [TILE] each."""
    B = ()
    C = ()
    x = t.x
    if c.STATES == 1:
        b, c_ = two(x, c.PAIRED)
        B = (b,)
        C = (c_,)
    else:
        for n in tl.static_range(0, c.STATES - 1, 2):
            b0, b1 = two(x + n, c.PAIRED)
            c0, c1 = two(x + c.STATES + n, c.PAIRED)
            B = B + (b0, b1)
            C = C + (c0, c1)
        if c.STATES % 2 == 1:
            B = B + (tl.load(x + c.STATES - 1),)
            C = C + (tl.load(x + 2 * c.STATES - 1),)
    return _real(B, t, c.PADS), _real(C, t, c.PADS)


@triton.jit
def softplus(x):
    """softplus(x) and its slope. The logarithm is a polynomial with a relative error of 5e-9, also of small steps."""
    e = tl.math.exp2(-tl.abs(x) * LOG2E)
    p = e * -0.0032563784664 + 0.019907160895
    p = p * e - 0.0570642007
    p = p * e + 0.1061426468
    p = p * e - 0.15311863098
    p = p * e + 0.19678117255
    p = p * e - 0.24954558871
    p = p * e + 0.33330004035
    p = p * e - 0.49999903993
    p = p * e + 0.99999999538
    # max(x, 0) that keeps NaN
    return p * e + tl.where(x < 0.0, 0.0, x), tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def low_rank(x, scan, here):
    """The projection of dt, [TILE, BLOCK], from the addresses of rows (dt, ...)."""
    weight = scan.inputs.weight + here.path * scan.c.RANK * scan.sizes.channels + here.d
    dt = tl.zeros([scan.c.TILE, scan.c.BLOCK], tl.float32)
    for r in tl.static_range(0, scan.c.RANK - 1, 2):
        dt0, dt1 = two(x + r, scan.c.PAIRED)
        dt += dt0[:, None] * load(weight + r * scan.sizes.channels, here.valid, scan.c.MASKED)[None, :]
        dt += dt1[:, None] * load(weight + (r + 1) * scan.sizes.channels, here.valid, scan.c.MASKED)[None, :]
    if scan.c.RANK % 2 == 1:
        last = load(weight + (scan.c.RANK - 1) * scan.sizes.channels, here.valid, scan.c.MASKED)
        dt += tl.load(x + scan.c.RANK - 1)[:, None] * last[None, :]
    return dt


@triton.jit
def tile(first, scan, here, rows):
    """The inputs of TILE steps from `first`. Steps past the end have delta = 0, which changes nothing."""
    strides = scan.strides
    step = first + tl.arange(0, scan.c.TILE)
    exists = step < scan.sizes.steps
    step = tl.minimum(step, scan.sizes.steps - 1)
    token = step
    if scan.inputs.read is not None:
        token = tl.load(scan.inputs.read + here.path.to(tl.int64) * scan.sizes.steps + step)
    real = token >= 0
    if scan.c.PADS:
        token = tl.maximum(token, 0)
    if scan.c.WIDE:
        token = token.to(tl.int64)
        step = step.to(tl.int64)
    u = load(rows.u[None, :] + at(token, strides.u, scan.c.PACK)[:, None], here.valid[None, :], scan.c.MASKED)
    x = rows.x + at(token, strides.x, 1)
    if scan.c.RANK > 0:
        dt = low_rank(x, scan, here)
    else:
        dt = load(rows.dt[None, :] + at(token, strides.dt, scan.c.PACK)[:, None], here.valid[None, :], scan.c.MASKED)
    if scan.c.PADS:
        u = tl.where(real[:, None], u, 0.0)
        dt = tl.where(real[:, None], dt, 0.0)
    delta = dt + rows.bias[None, :]
    slope = tl.full([scan.c.TILE, scan.c.BLOCK], 1.0, tl.float32)
    if scan.c.SOFTPLUS:
        delta, slope = softplus(delta)
    delta = tl.where(exists[:, None], delta, 0.0)
    return Tile(exists, step, token, real, x + scan.c.RANK + here.group * (2 * scan.c.STATES), u, delta, slope)


@triton.jit
def written(t, scan, here):
    """Tokens [TILE] that the steps of a tile write, and whether they write one."""
    if scan.inputs.write is None:
        return t.step, t.exists
    else:
        token = tl.load(scan.inputs.write + here.path.to(tl.int64) * scan.sizes.steps + t.step)
        return tl.maximum(token, 0).to(t.step.dtype), t.exists & (token >= 0)


@triton.jit
def pick(x, i: tl.constexpr, TILE: tl.constexpr):
    """Row i [BLOCK] of x [TILE, BLOCK]. Rows lie in registers: the compiler drops all but one, and also the sum, since
    adding -0 changes nothing."""
    return tl.sum(tl.where((tl.arange(0, TILE) == i)[:, None], x, -0.0), 0)


@triton.jit
def put(x, i: tl.constexpr, row, TILE: tl.constexpr):
    """x [TILE, BLOCK] with row i replaced."""
    return tl.where((tl.arange(0, TILE) == i)[:, None], row[None, :], x)


@triton.jit
def _advance(decay0, input0, decay1, input1):
    """Two steps of h = decay * h + input in one."""
    return decay0 * decay1, decay1 * input0 + input1


@triton.jit
def states(decay, inputs, h, TILE: tl.constexpr):
    """States of a tile after each step, from the state before it; and the last one."""
    # The state enters with the first input: products of decays are then never needed.
    inputs = put(inputs, 0, pick(inputs, 0, TILE) + pick(decay, 0, TILE) * h, TILE)
    _, h = tl.associative_scan((decay, inputs), 0, _advance)
    return h, pick(h, TILE - 1, TILE)


@triton.jit
def pass_through(t, A, h, c):
    """The states after a tile: a tuple of d_state rows [BLOCK], as are A and h."""
    B, _ = state_inputs(t, c)
    after = ()
    for n in tl.static_range(c.STATES):
        _, last = states(tl.math.exp2(t.delta * A[n][None, :]), t.delta * t.u * B[n][:, None], h[n], c.TILE)
        after = after + (last,)
    return after
