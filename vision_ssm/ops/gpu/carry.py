"""States across segments: from what each segment ends with, scanned from zero, to what enters it."""

import triton
import triton.language as tl


@triton.jit
def _decayed(decay, h):
    """decay * h; zero states stay zero where a growing decay has overflown."""
    return tl.where(h == 0.0, h, decay * h)


@triton.jit
def _advance(decay0, input0, decay1, input1):
    """Two segments in one."""
    return decay0 * decay1, _decayed(decay1, input0) + input1


@triton.jit
def carry_over(
    ends, sums, A, first, carries, channels, paths, segments,
    STATES: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """carries [b k, segments, n, d] from ends, the same shape, and the sums of delta [b k, segments, d].

    The decay of a segment is exp(A sum of delta). With REVERSE what leaves a segment enters the one before it.

    A: [k, n, d], times log2(e). first: [b k, n, d], what enters at the very beginning; None for zero.
    One program takes BLOCK channels of one state and SEGMENTS segments at a time.
    """
    blocks = tl.cdiv(channels, BLOCK)
    block = tl.program_id(0) % blocks
    n = tl.program_id(0) // blocks % STATES
    row = (tl.program_id(0) // blocks // STATES).to(tl.int64)
    d = block * BLOCK + tl.arange(0, BLOCK)
    valid = d < channels
    A_n = tl.load(A + ((row % paths) * STATES + n) * channels + d, mask=valid, other=0.0)
    h = tl.zeros([BLOCK], tl.float32)
    if first is not None:
        h = tl.load(first + (row * STATES + n) * channels + d, mask=valid, other=0.0)
    position = tl.arange(0, SEGMENTS)
    for begin in range(0, segments, SEGMENTS):
        s = begin + position
        exists = (s < segments)[:, None] & valid[None, :]
        s = segments - 1 - s if REVERSE else s
        index = row * segments + s
        total = tl.load(sums + index[:, None] * channels + d[None, :], mask=exists, other=0.0)
        end = tl.load(ends + (index[:, None] * STATES + n) * channels + d[None, :], mask=exists, other=0.0)
        decay = tl.math.exp2(total * A_n[None, :])
        # The first of these segments receives h; each passes on its end.
        if begin == 0:
            entry = carries + ((row * segments + (segments - 1 if REVERSE else 0)) * STATES + n) * channels + d
            tl.store(entry, h, mask=valid)
        end = tl.where((position == 0)[:, None], end + _decayed(decay, h[None, :]), end)
        _, end = tl.associative_scan((decay, end), 0, _advance)
        h = tl.sum(tl.where((position == SEGMENTS - 1)[:, None], end, 0.0), 0)
        after = s - 1 if REVERSE else s + 1
        exists = exists & ((after >= 0) & (after < segments))[:, None]
        index = row * segments + after
        tl.store(carries + (index[:, None] * STATES + n) * channels + d[None, :], end, mask=exists)
