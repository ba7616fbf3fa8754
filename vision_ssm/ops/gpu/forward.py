"""The scan itself, `scan_forward`, and the states at the ends of segments, `scan_ends`."""

import triton
import triton.language as tl

from .tiles import (
    along,
    at,
    by_channel,
    entries,
    load,
    locate,
    pass_through,
    start,
    state_inputs,
    states,
    store,
    tile,
    write_entries,
    written,
    zeros,
)


@triton.jit
def scan_ends(scan, ends, sums):
    """Of each segment, scanned from zero: its last state, `ends` [b k, segments, n, d], and the sum of delta, `sums`
    [b k, segments, d]."""
    sizes = scan.sizes
    here = locate(scan)
    rows = start(scan, here)
    A = entries(scan.inputs.A, here.path, scan, here)
    h = zeros(scan)
    total = tl.zeros([scan.c.BLOCK], tl.float32)
    begin = here.segment * sizes.length
    for first in range(begin, tl.minimum(begin + sizes.length, sizes.steps), scan.c.TILE):
        t = tile(first, scan, here, rows)
        total += tl.sum(t.delta, 0)
        h = pass_through(t, A, h, scan.c)
    index = here.row * sizes.segments + here.segment
    write_entries(ends, index, h, scan, here)
    write_entries(sums, index, (total,), scan, here)


@triton.jit
def scan_forward(scan, y, z, z_strides, ungated, carries, checkpoints, last_state):
    """y [b, k, t, d], of each path, times silu(z) where given; `ungated`, if wanted, is y before that.

    carries: [b k, segments, n, d], the state that enters each segment; None: zero.
    checkpoints: [b k, chunks, n, d], receives the state before every CHUNK steps; None: it is not wanted.
    last_state: [b k, n, d].
    """
    sizes = scan.sizes
    here = locate(scan)
    rows = start(scan, here)
    A = entries(scan.inputs.A, here.path, scan, here)
    D = by_channel(scan.inputs.D, scan.strides.D, here, scan.c.MASKED)
    out = along(here.batch, here.path, scan.strides.y, scan.c.PACK) + here.d
    gate = along(here.batch, here.path, z_strides, scan.c.PACK) + here.d
    h = zeros(scan)
    if carries is not None:
        h = entries(carries, here.row * sizes.segments + here.segment, scan, here)
    begin = here.segment * sizes.length
    for chunk in range(begin, tl.minimum(begin + sizes.length, sizes.steps), scan.c.CHUNK):
        if checkpoints is not None:
            write_entries(
                checkpoints, here.row * tl.cdiv(sizes.steps, scan.c.CHUNK) + chunk // scan.c.CHUNK, h, scan, here
            )
        for first in range(chunk, tl.minimum(chunk + scan.c.CHUNK, sizes.steps), scan.c.TILE):
            t = tile(first, scan, here, rows)
            B, C = state_inputs(t, scan.c)
            result = D[None, :] * t.u
            after = ()
            for n in tl.static_range(scan.c.STATES):
                decay = tl.math.exp2(t.delta * A[n][None, :])
                h_n, last = states(decay, t.delta * t.u * B[n][:, None], h[n], scan.c.TILE)
                result += h_n * C[n][:, None]
                after = after + (last,)
            h = after
            if scan.c.PADS:
                result = tl.where(t.real[:, None], result, 0.0)
            token, kept = written(t, scan, here)
            row = at(token, scan.strides.y, scan.c.PACK)[:, None]
            if z is not None:
                if ungated is not None:
                    store(ungated + out[None, :] + row, result, kept, here, scan.c.MASKED)
                place = gate[None, :] + at(token, z_strides, scan.c.PACK)[:, None]
                value = load(z + place, here.valid[None, :], scan.c.MASKED)
                result *= value / (1.0 + tl.exp(-value))
            store(y + out[None, :] + row, result, kept, here, scan.c.MASKED)
    if here.segment == sizes.segments - 1:
        write_entries(last_state, here.row, h, scan, here)
