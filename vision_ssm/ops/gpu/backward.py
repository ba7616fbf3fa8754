"""The adjoint scan g[t] = C[t] dy[t] + decay[t + 1] g[t + 1]: gradients, and what crosses the ends of segments."""

from typing import NamedTuple

import triton
import triton.language as tl

from .lanes import LANES, pair, places, push
from .tiles import (
    along,
    at,
    by_channel,
    entries,
    load,
    locate,
    pass_through,
    pick,
    put,
    start,
    state_inputs,
    states,
    store,
    tile,
    write_entries,
    written,
    zeros,
)

LN2 = tl.constexpr(0.6931471805599453)


class Gradients(NamedTuple):
    """What `scan_backward` writes, one part a program where programs share a sum; `scan.py` adds the parts up."""

    u: object  # [b, k, t, d]
    dt: object  # [b, k, t, d], of dt at full width
    x: object  # [b k, blocks, g, t, n + n]: of B and C, one part a block of channels
    A: object  # [b k, segments, n, d]
    D: object  # [b k, segments, d]
    bias: object  # [b k, segments, d]


class GradientStrides(NamedTuple):
    """Of the gradients of u, dt and x, as in `Strides`; those of x by batch and path, by block and group, by token."""

    u: tuple
    dt: tuple
    x: tuple


class TileGradients(NamedTuple):
    """Gradients at the steps of a tile, [TILE, BLOCK], and what the tile passes on."""

    input: object  # of delta u, summed over the states
    decay: object  # of the exponents delta A, times A, summed over the states
    q: object  # for the tile before, d_state rows [BLOCK]
    A: object  # d_state rows [BLOCK]


@triton.jit
def adjoint(decay, into, q, TILE: tl.constexpr):
    """The adjoints of a tile from what its steps receive and from `q`, decay times adjoint of the step after; and q for
    the tile before."""
    for i in tl.static_range(TILE - 1, -1, -1):
        g = pick(into, i, TILE) + q
        q = pick(decay, i, TILE) * g
        into = put(into, i, g, TILE)
    return into, q


@triton.jit
def delayed(h, before, TILE: tl.constexpr):
    """The states before each step of a tile, from those after it and the state before the tile."""
    rows = put(h, 0, before, TILE)
    for i in tl.static_range(1, TILE):
        rows = put(rows, i, pick(h, i - 1, TILE), TILE)
    return rows


@triton.jit
def output_gradient(t, dy, scan, here):
    """dy [TILE, BLOCK] at the steps of a tile, from the program's row of it; zero where a step wrote nothing."""
    token, kept = written(t, scan, here)
    if scan.c.PADS:
        kept = kept & t.real
    value = load(dy[None, :] + at(token, scan.strides.y, scan.c.PACK)[:, None], here.valid[None, :], scan.c.MASKED)
    return tl.where(kept[:, None], value, 0.0)


@triton.jit
def scan_adjoint_ends(scan, dy, ends, sums):
    """What each segment passes to the one before it when nothing enters from the right, `ends` [b k, segments, n, d],
    and its sum of delta, `sums` [b k, segments, d]."""
    sizes = scan.sizes
    here = locate(scan)
    rows = start(scan, here)
    A = entries(scan.inputs.A, here.path, scan, here)
    dy += along(here.batch, here.path, scan.strides.y, scan.c.PACK) + here.d
    q = zeros(scan)
    total = tl.zeros([scan.c.BLOCK], tl.float32)
    begin = here.segment * sizes.length
    tiles = tl.cdiv(tl.minimum(sizes.length, sizes.steps - begin), scan.c.TILE)
    for i in range(0, tiles):
        t = tile(begin + (tiles - 1 - i) * scan.c.TILE, scan, here, rows)
        total += tl.sum(t.delta, 0)
        d = output_gradient(t, dy, scan, here)
        _, C = state_inputs(t, scan.c)
        before = ()
        for n in tl.static_range(scan.c.STATES):
            _, passed = adjoint(tl.math.exp2(t.delta * A[n][None, :]), d * C[n][:, None], q[n], scan.c.TILE)
            before = before + (passed,)
        q = before
    index = here.row * sizes.segments + here.segment
    write_entries(ends, index, q, scan, here)
    write_entries(sums, index, (total,), scan, here)


@triton.jit
def tile_gradients(t, d, A, channels, valid, q, states_before, dx, dx_kept, c, LEVELS: tl.constexpr):
    """Back through a tile from d [TILE, BLOCK], the gradient of its output.

    states_before: address of the states before the tile, [n, BLOCK].
    dx: addresses [TILE, LANES] of the gradients of B and C, where `dx_kept`.
    LEVELS: 2^LEVELS is the least power of two that is not below d_state, at most 16.
    """
    B, C = state_inputs(t, c)
    entering = t.delta * t.u
    of_input = tl.zeros([c.TILE, c.BLOCK], tl.float32)
    of_decay = tl.zeros([c.TILE, c.BLOCK], tl.float32)
    of_A = ()
    before = ()
    total = tl.zeros([c.TILE, LANES], tl.float32)
    pending = (total,) * 4
    for n in tl.static_range(1 << LEVELS):
        total = tl.zeros([c.TILE, LANES], tl.float32)
        if n < c.STATES:
            A_n = load(A + n * channels, valid, c.MASKED)  # read again: there are too few registers to keep it
            decay = tl.math.exp2(t.delta * A_n[None, :])
            h_before = tl.load(states_before + n * c.BLOCK)
            h, _ = states(decay, entering * B[n][:, None], h_before, c.TILE)
            g, passed = adjoint(decay, d * C[n][:, None], q[n], c.TILE)
            before = before + (passed,)
            # Not g (h - added), which is the same: where the decay underflows, a fused difference is rounding alone.
            kept = g * decay * delayed(h, h_before, c.TILE)
            of_input += g * B[n][:, None]
            of_decay += kept * A_n[None, :]
            of_A = of_A + (tl.sum(kept * t.delta, 0),)
            total = pair(g * entering, d * h, c.TILE, c.PACK)
        pending, total = push(pending, total, n, LEVELS)
    tl.store(dx, total, mask=dx_kept)
    return TileGradients(of_input, of_decay * LN2, before, of_A)  # A was given times log2(e)


@triton.jit
def added(a, b):
    """Two tuples of rows, added row by row."""
    rows = ()
    for n in tl.static_range(len(a)):
        rows = rows + (a[n] + b[n],)
    return rows


@triton.jit
def keep_states(chunk, tiles, h, A, local, scan, here, rows):
    """Scan the tiles from step `chunk` on and write the state before each to `local`, [tiles, n, BLOCK]."""
    for j in range(0, tiles):
        for n in tl.static_range(scan.c.STATES):
            tl.store(local + (j * scan.c.STATES + n) * scan.c.BLOCK, h[n])
        h = pass_through(tile(chunk + j * scan.c.TILE, scan, here, rows), A, h, scan.c)


@triton.jit
def scan_backward(scan, gradients, strides, dy, checkpoints, carries, scratch, LEVELS: tl.constexpr,
                  BY_STEP: tl.constexpr):  # fmt: skip
    """Gradients from dy [b, k, t, d] of the ungated output.

    Each chunk is scanned forward again from its checkpoint, keeping the state before every tile, and then backward.

    checkpoints: [b k, chunks, n, d], the states before every CHUNK steps.
    carries: [b k, segments, n, d], the adjoint that enters each segment from the right; None: zero.
    scratch: [programs, CHUNK / TILE, n, BLOCK].
    BY_STEP: the gradients of u, dt and x are in the order of the steps, not of the tokens.
    """
    sizes = scan.sizes
    here = locate(scan)
    rows = start(scan, here)
    A = entries(scan.inputs.A, here.path, scan, here)
    D = by_channel(scan.inputs.D, scan.strides.D, here, scan.c.MASKED)
    dy += along(here.batch, here.path, scan.strides.y, scan.c.PACK) + here.d
    du_row = gradients.u + along(here.batch, here.path, strides.u, scan.c.PACK) + here.d
    dt_row = gradients.dt + along(here.batch, here.path, strides.dt, scan.c.PACK) + here.d
    state, second, first_holder = places(LEVELS)
    dx_row = gradients.x + along(here.row, here.block * sizes.groups + here.group, strides.x, 1)
    dx_row = dx_row + state + second * scan.c.STATES
    local = (
        scratch
        + tl.program_id(0).to(tl.int64) * (scan.c.CHUNK // scan.c.TILE * scan.c.STATES * scan.c.BLOCK)
        + tl.arange(0, scan.c.BLOCK)
    )
    q = zeros(scan)
    if carries is not None:
        q = entries(carries, here.row * sizes.segments + here.segment, scan, here)
    A_row = scan.inputs.A + here.path * scan.c.STATES * sizes.channels + here.d
    dA = zeros(scan)
    dD = tl.zeros([scan.c.BLOCK], tl.float32)
    d_bias = tl.zeros([scan.c.BLOCK], tl.float32)
    begin = here.segment * sizes.length
    chunks = tl.cdiv(tl.minimum(sizes.length, sizes.steps - begin), scan.c.CHUNK)
    for i in range(0, chunks):
        chunk = begin + (chunks - 1 - i) * scan.c.CHUNK
        tiles = tl.cdiv(tl.minimum(scan.c.CHUNK, sizes.steps - chunk), scan.c.TILE)
        h = entries(checkpoints, here.row * tl.cdiv(sizes.steps, scan.c.CHUNK) + chunk // scan.c.CHUNK, scan, here)
        keep_states(chunk, tiles, h, A, local, scan, here, rows)
        tl.debug_barrier()  # a state may be read by another lane than wrote it
        for j in range(0, tiles):
            last = tiles - 1 - j
            t = tile(chunk + last * scan.c.TILE, scan, here, rows)
            d = output_gradient(t, dy, scan, here)
            kept = t.exists & t.real if scan.c.PADS else t.exists
            place = t.step if BY_STEP else t.token
            dx = dx_row[None, :] + at(place, strides.x, 1)[:, None]
            before = local + last * (scan.c.STATES * scan.c.BLOCK)
            holds = kept[:, None] & (first_holder & (state < scan.c.STATES))[None, :]
            back = tile_gradients(t, d, A_row, sizes.channels, here.valid, q, before, dx, holds, scan.c, LEVELS)
            q = back.q
            dA = added(dA, back.A)
            d_dt = (back.input * t.u + back.decay) * t.slope
            dD += tl.sum(d * t.u, 0)
            d_bias += tl.sum(tl.where(t.exists[:, None], d_dt, 0.0), 0)
            du = back.input * t.delta + D[None, :] * d
            store(du_row[None, :] + at(place, strides.u, scan.c.PACK)[:, None], du, kept, here, scan.c.MASKED)
            store(dt_row[None, :] + at(place, strides.dt, scan.c.PACK)[:, None], d_dt, kept, here, scan.c.MASKED)
        tl.debug_barrier()  # as above, for the next chunk
    index = here.row * sizes.segments + here.segment
    write_entries(gradients.A, index, dA, scan, here)
    write_entries(gradients.D, index, (dD,), scan, here)
    write_entries(gradients.bias, index, (d_bias,), scan, here)
