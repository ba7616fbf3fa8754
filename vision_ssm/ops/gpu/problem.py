"""A scan as the kernels take it.

Small inputs are brought into one form first: rows (dt, B, C) in float32, one a token and path, as the projection of
`SelectiveSSM` lays them out; then no copy is made.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..visits import visits
from .plan import CHUNK, Plan, plan
from .tiles import Constants, Inputs, Scan, Sizes, Strides

__all__ = ["Problem", "lines", "odd", "set_up", "strides_of"]

LOG2E = 1.4426950408889634


def odd(*strides: int) -> tuple[int, ...]:
    """Strides as kernels take them: about 2 s + 1 the compiler can infer nothing."""
    return tuple(2 * s + 1 for s in strides)


def lines(x: Tensor | None) -> Tensor | None:
    """`x` with its last dimension contiguous."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def strides_of(x: Tensor, shared: bool = False) -> tuple[int, int, int]:
    """By batch, path and token; a dimension of one entry has stride 0."""
    batch, path, token, _ = x.stride()
    return batch, 0 if shared or x.shape[1] == 1 else path, token


def _rows(dt: Tensor | None, B: Tensor, C: Tensor) -> Tensor:
    """Rows [b, k, t, r + g (n + n)] of (dt, B, C) in float32: a view where they are stored so."""
    batch, paths, tokens, groups, _ = B.shape
    parts = [B, C] if dt is None else [dt, B, C]
    first = parts[0]
    offset, beside = first.storage_offset(), groups == 1
    for part in parts:
        beside &= part.untyped_storage()._cdata == first.untyped_storage()._cdata and part.dtype == first.dtype
        beside &= part.storage_offset() == offset and part.stride()[:3] == first.stride()[:3] and part.stride(-1) == 1
        offset += part.shape[-1]
    if beside:
        width = offset - first.storage_offset()
        return first.as_strided((batch, paths, tokens, width), (*first.stride()[:3], 1)).float()
    rows = torch.cat([B, C], -1).flatten(3)
    return (rows if dt is None else torch.cat([dt, rows], -1)).float().contiguous()


def _exponents(A: Tensor) -> Tensor:
    """A [k, d, n] as [k, n, d] in float32, times log2(e)."""
    paths, channels, d_state = A.shape
    out = A.new_empty(paths, d_state, channels, dtype=torch.float32)
    return torch.mul(A.float().transpose(1, 2), LOG2E, out=out)


class Problem(NamedTuple):
    """A scan as the kernels take it, apart from its outputs."""

    scan: Scan
    plan: Plan
    programs: int
    rows: int  # batch times paths


def set_up(kernel, u, dt, A, B, C, D, dt_bias, dt_weight, tables, softplus, y, shared, by_step, z=None) -> Problem:
    """`y` is read or written by path, or `shared` by all paths; in the order of the steps with `by_step`; as is `z`."""
    batch, _, tokens, channels = u.shape
    paths, _, d_state = A.shape
    groups = B.shape[3]
    rank = 0 if dt_weight is None else dt.shape[3]
    steps = tokens if tables is None else tables.shape[2]
    width = channels // groups
    x = _rows(dt if rank else None, B, C)
    full = None if rank else lines(dt)
    u = lines(u)
    wide = [strides_of(u), (0, 0, 0) if full is None else strides_of(full), strides_of(y, shared)]
    packable = width % 2 == 0 and all(s % 2 == 0 for strides in wide for s in strides)
    p = plan(kernel, batch * paths * groups, steps, width, d_state, packable)
    u_strides, dt_strides, y_strides = (odd(*(s // p.pack for s in strides)) for strides in wide)
    D, dt_bias = lines(D), lines(dt_bias)
    by_path = [0 if parameter is None else odd(parameter.stride(0))[0] for parameter in (D, dt_bias)]
    inputs = Inputs(
        u,
        full,
        x,
        _exponents(A),
        D,
        dt_bias,
        None if rank == 0 else dt_weight.transpose(1, 2).contiguous(),
        None if tables is None else tables[0],
        None if tables is None or by_step else tables[1],
    )
    blocks = -(-width // p.block)
    chunks = -(-steps // CHUNK)
    length = -(-chunks // p.segments) * CHUNK
    segments = -(-steps // length)
    rows = [t.stride(2) for t in (u, x, y, full, z) if t is not None] + [channels, 2 * d_state]
    farthest = max(tokens, steps, y.shape[2]) * max(rows)
    even = rank % 2 == 0 and (d_state == 1 or d_state % 2 == 0)
    constants = Constants(
        STATES=d_state,
        RANK=rank,
        TILE=p.tile,
        BLOCK=p.block,
        PACK=p.pack,
        CHUNK=CHUNK,
        PAIRED=even and all(s % 2 == 0 for s in strides_of(x)) and x.data_ptr() % 8 == 0,
        WIDE=farthest >= 2**31,
        MASKED=width % p.block != 0,
        PADS=visits(tables, 0, tokens).pads,
        SOFTPLUS=softplus,
    )
    scan = Scan(
        inputs,
        Strides(u_strides, dt_strides, odd(*strides_of(x)), y_strides, *by_path),
        Sizes(steps, channels, paths, groups, blocks, segments, length),
        Constants(*map(tl.constexpr, constants)),
    )
    return Problem(scan, p, batch * paths * groups * blocks * segments, batch * paths)
