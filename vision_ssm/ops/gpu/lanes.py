"""Sums over the lanes of a warp, many at a time.

Summing one value over 32 lanes takes five shuffles. For two values, half of the lanes can go on with each: after one
shuffle a value is left in each half. Summing 32 values this way takes 31 shuffles in all, and leaves one sum in each
lane.
"""

import triton
import triton.language as tl

LANES = tl.constexpr(32)


@triton.jit
def _across(x, BIT: tl.constexpr):
    """x [TILE, LANES] of the lane whose number differs in BIT."""
    lane = tl.arange(0, LANES)[None, :]
    return tl.gather(x, tl.broadcast_to(lane ^ BIT, x.shape), 1)


@triton.jit
def _halve(a, b, BIT: tl.constexpr):
    """Sums over pairs of lanes: of `a` in lanes without BIT, of `b` in lanes with it."""
    upper = (tl.arange(0, LANES) & BIT)[None, :] != 0
    return tl.where(upper, b, a) + _across(tl.where(upper, a, b), BIT)


@triton.jit
def pair(a, b, TILE: tl.constexpr, PACK: tl.constexpr):
    """The first step of the sums of a and b [TILE, LANES PACK] over channels: [TILE, LANES]."""
    if PACK > 1:
        a = tl.sum(tl.reshape(a, (TILE, LANES, PACK)), 2)
        b = tl.sum(tl.reshape(b, (TILE, LANES, PACK)), 2)
    return _halve(a, b, 16)


@triton.jit
def push(pending, value, n: tl.constexpr, LEVELS: tl.constexpr):
    """Take the n-th result of `pair`, n from 0 to 2^LEVELS - 1; after the last, `value` holds all sums.

    It works as a binary counter: level i of `pending` waits for the other value of its size.
    """
    for level in tl.static_range(LEVELS):
        if n % (1 << level) == (1 << level) - 1:
            if (n >> level) % 2 == 1:
                value = _halve(pending[level], value, 1 << level)
            else:
                pending = pending[:level] + (value,) + pending[level + 1 :]
    if n == (1 << LEVELS) - 1:
        for level in tl.static_range(LEVELS, 4):
            value += _across(value, 1 << level)
    return pending, value


@triton.jit
def places(LEVELS: tl.constexpr):
    """Of each lane after the last `push`: (which pair, second of the pair, whether it is the first to hold this sum)"""
    lane = tl.arange(0, LANES)
    return lane % 16, lane // 16, lane % 16 < (1 << LEVELS)
