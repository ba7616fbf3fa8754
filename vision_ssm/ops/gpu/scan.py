"""Host side of the scan kernels: what they read, what they write and in which order they run.

Small inputs are brought into one form first: rows (dt, B, C) in float32, one a token and path, as the projection of
`SelectiveSSM` lays them out; then no copy is made.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .. import plain
from ..visits import visits
from .backward import Gradients, GradientStrides, scan_adjoint_ends, scan_backward
from .carry import carry_over
from .forward import scan_ends, scan_forward
from .launch import launch
from .merge import gate_backward, merge_paths
from .plan import CHUNK, Plan, plan, states_shape
from .tiles import Constants, Inputs, Scan, Sizes, Strides

__all__ = ["backward", "forward", "gate"]

LOG2E = 1.4426950408889634


def _odd(*strides: int) -> tuple[int, ...]:
    """Strides as kernels take them: about 2 s + 1 the compiler can infer nothing."""
    return tuple(2 * s + 1 for s in strides)


def _lines(x: Tensor | None) -> Tensor | None:
    """`x` with its last dimension contiguous."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor, shared: bool = False) -> tuple[int, int, int]:
    """By batch, path and token; a dimension of one entry has stride 0."""
    batch, path, token, _ = x.stride()
    return batch, 0 if shared or x.shape[1] == 1 else path, token


def _rows(dt: Tensor | None, B: Tensor, C: Tensor) -> Tensor:
    """Rows [b, k, t, r + g (n + n)] of (dt, B, C) in float32: a view where they are stored so."""
    batch, paths, tokens, groups, d_state = B.shape
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
    return (rows if dt is None else torch.cat([dt, rows], -1)).float()


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


def _problem(kernel, u, dt, A, B, C, D, dt_bias, dt_weight, tables, softplus, y, shared, by_step) -> Problem:
    """`y` is read or written by path, or `shared` by all paths; in the order of the steps with `by_step`."""
    batch, _, tokens, channels = u.shape
    paths, _, d_state = A.shape
    groups = B.shape[3]
    rank = 0 if dt_weight is None else dt.shape[3]
    steps = tokens if tables is None else tables.shape[2]
    width = channels // groups
    x = _rows(dt if rank else None, B, C)
    full = None if rank else _lines(dt)
    u = _lines(u)
    wide = [_strides(u), (0, 0, 0) if full is None else _strides(full), _strides(y, shared)]
    packable = width % 2 == 0 and all(s % 2 == 0 for strides in wide for s in strides)
    p = plan(kernel, batch * paths * groups, steps, width, d_state, packable)
    u_strides, dt_strides, y_strides = (_odd(*(s // p.pack for s in strides)) for strides in wide)
    by_path = [0 if parameter is None else _odd(parameter.stride(0))[0] for parameter in (D, dt_bias)]
    inputs = Inputs(
        u,
        full,
        x,
        _exponents(A),
        _lines(D),
        _lines(dt_bias),
        None if rank == 0 else dt_weight.transpose(1, 2).contiguous(),
        None if tables is None else tables[0],
        None if tables is None or by_step else tables[1],
    )
    blocks = -(-width // p.block)
    chunks = -(-steps // CHUNK)
    length = -(-chunks // p.segments) * CHUNK
    segments = -(-steps // length)
    farthest = max(
        max(tokens, y.shape[2]) * max(u.stride(2), y.stride(2), x.stride(2)),
        tokens * max(channels, 2 * d_state, 0 if full is None else full.stride(2)),
    )
    even = rank % 2 == 0 and (d_state == 1 or d_state % 2 == 0)
    constants = Constants(
        STATES=d_state,
        RANK=rank,
        TILE=p.tile,
        BLOCK=p.block,
        PACK=p.pack,
        CHUNK=CHUNK,
        PAIRED=even and all(s % 2 == 0 for s in (*_strides(x), x.storage_offset())),
        WIDE=farthest >= 2**31,
        MASKED=width % p.block != 0,
        PADS=visits(tables, 0, tokens).pads,
        SOFTPLUS=softplus,
    )
    scan = Scan(
        inputs,
        Strides(u_strides, dt_strides, _odd(*_strides(x)), y_strides, *by_path),
        Sizes(steps, channels, paths, groups, blocks, segments, length),
        Constants(*map(tl.constexpr, constants)),
    )
    return Problem(scan, p, batch * paths * groups * blocks * segments, batch * paths)


def _run(kernel, problem: Problem, *args, **constants) -> None:
    scan = problem.scan
    launch(kernel, problem.programs, scan.inputs.u, scan, *args, registers=problem.plan.registers, **constants)


def _ends(problem: Problem) -> tuple[Tensor, Tensor]:
    """Last states of the segments, scanned from zero, and their sums of delta."""
    sizes, A = problem.scan.sizes, problem.scan.inputs.A
    ends = A.new_empty(problem.rows, sizes.segments, A.shape[1], sizes.channels)
    sums = A.new_empty(problem.rows, sizes.segments, sizes.channels)
    _run(scan_ends, problem, ends, sums)
    return ends, sums


def _carries(problem: Problem, ends: Tensor, sums: Tensor, first: Tensor | None, reverse: bool) -> Tensor:
    """What enters each segment, [b k, segments, n, d]."""
    carries = torch.empty_like(ends)
    rows, segments, d_state, channels = ends.shape
    block = 8
    launch(
        carry_over, rows * d_state * -(-channels // block), ends,
        ends, sums, problem.scan.inputs.A, first, carries, channels, problem.scan.sizes.paths, segments,
        STATES=d_state, SEGMENTS=64, BLOCK=block, REVERSE=reverse, warps=4,
    )  # fmt: skip
    return carries


def forward(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge, save):
    """(y, last_state, states, ungated) of `vision_ssm::selective_scan`; the last two are empty unless `save`.

    `ungated` is kept in the dtype of `u`.
    """
    batch, _, tokens, channels = u.shape
    paths, _, d_state = A.shape
    steps = tokens if tables is None else tables.shape[2]
    written = visits(tables, 1, out_tokens)
    by_step = not written.once  # tokens with several values: they are added up afterwards
    alone = not by_step and (paths == 1 or not merge)  # the scan's output is the result
    new = u.new_zeros if not by_step and not written.all_of(out_tokens) else u.new_empty
    parts = new(batch, paths, steps if by_step else out_tokens, channels, dtype=torch.float32 if by_step else u.dtype)
    problem = _problem("forward", u, dt, A, B, C, D, dt_bias, dt_weight, tables, softplus, parts, False, by_step)
    carries = None
    if problem.scan.sizes.segments > 1:
        carries = _carries(problem, *_ends(problem), None, False)
    float32 = dict(dtype=torch.float32)
    checkpoints = u.new_empty(states_shape(batch, paths, steps, channels, d_state) if save else 0, **float32)
    last_state = u.new_empty(batch, paths, d_state, channels, **float32)
    keep = save and z is not None
    ungated = new(parts.shape) if keep and alone else u.new_empty(0)
    gate = _lines(z) if alone else None
    pack = problem.plan.pack
    if gate is not None and any(s % pack for s in _strides(gate)):
        gate = gate.contiguous()
    z_strides = (0, 0, 0) if gate is None else _strides(gate)
    _run(
        scan_forward, problem, parts, gate, _odd(*(s // pack for s in z_strides)), ungated if keep and alone else None,
        carries, checkpoints if save else None, last_state,
    )  # fmt: skip
    if by_step:
        parts = plain.put(parts.movedim(2, 0), tables[1], out_tokens)
        parts = (parts.sum(1, keepdim=True) if merge else parts).contiguous()
    y = parts
    if not alone:
        y, ungated = _finish(parts, z, u.dtype, merge, keep)
    return y, last_state.transpose(2, 3), checkpoints, ungated


def _finish(parts: Tensor, z: Tensor | None, dtype: torch.dtype, merge: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """Sum of parts [b, k, t, d] and the gate: (y, y before the gate)."""
    batch, paths, tokens, channels = parts.shape
    outputs = 1 if merge else paths
    y = parts.new_empty(batch, outputs, tokens, channels, dtype=dtype)
    ungated = torch.empty_like(y) if keep else y.new_empty(0)
    z = _lines(z)
    # Outputs that are kept apart pass as a larger batch, which then has their gates' strides only path by path.
    if outputs > 1 and z is not None:
        z = z.expand(-1, outputs, -1, -1).reshape(batch * outputs, 1, tokens, channels)
    z_strides = (0, 0) if z is None else (z.stride(0), z.stride(2))
    rows, columns = _block(channels)
    launch(
        merge_paths, batch * outputs * -(-tokens // rows) * -(-channels // columns), y,
        parts, z, y, ungated if keep else None, tokens, channels, *z_strides,
        PATHS=paths // outputs, ROWS=rows, COLUMNS=columns, warps=4,
    )  # fmt: skip
    return y, ungated


def _block(channels: int) -> tuple[int, int]:
    """(rows, columns) of an elementwise program: 2048 values."""
    columns = min(256, 1 << (channels - 1).bit_length())
    return 2048 // columns, columns


def gate(dy: Tensor, z: Tensor, ungated: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of `ungated` (in `dtype`) and of `z` from that of ungated * silu(z)."""
    batch, outputs, tokens, channels = dy.shape
    z = _lines(z)
    shared = z.shape[1] < outputs
    d_ungated, dz = dy.new_empty(dy.shape, dtype=dtype), z.new_empty(z.shape)
    rows, columns = _block(channels)
    launch(
        gate_backward, batch * -(-tokens // rows) * -(-channels // columns), dy,
        dy, z, ungated, d_ungated, dz, tokens, channels, *dy.stride(), *_strides(z),
        PATHS=outputs, SHARED=shared or outputs == 1, ROWS=rows, COLUMNS=columns, warps=4,
    )  # fmt: skip
    return d_ungated, dz


def backward(dy, d_last_state, u, dt, A, B, C, D, dt_bias, dt_weight, tables, checkpoints, softplus, merge):
    """Gradients of (u, dt, A, B, C, D, dt_bias, dt_weight) from that of the ungated output."""
    batch, inputs, tokens, channels = u.shape
    paths, _, d_state = A.shape
    groups = B.shape[3]
    args = u, dt, A, B, C, D, dt_bias, dt_weight, tables
    if checkpoints.numel() == 0:  # saved by another backend, or not at all
        _, _, checkpoints, _ = forward(*args[:6], None, *args[6:], dy.shape[2], softplus, merge, True)
    dy = _lines(dy)
    read = visits(tables, 0, tokens)
    problem = _problem("backward", *args, softplus, dy, merge, False)
    sizes = problem.scan.sizes
    first = None
    if d_last_state is not None:
        first = d_last_state.float().transpose(2, 3).reshape(batch * paths, d_state, channels).contiguous()
    carries = first if first is None else first.unsqueeze(1)
    if sizes.segments > 1:
        _, sums = _ends(problem)
        ends = sums.new_empty(problem.rows, sizes.segments, d_state, channels)
        _run(scan_adjoint_ends, problem, dy, ends)
        carries = _carries(problem, ends, sums, first, True)
    by_step = not read.once
    length = sizes.steps if by_step else tokens
    float32 = dict(dtype=torch.float32)
    new = u.new_empty if by_step or read.all_of(tokens) else u.new_zeros
    du = new(batch, paths, length, channels, dtype=torch.float32 if by_step else u.dtype)
    if dt_weight is None:
        d_dt = new(batch, paths, length, channels, dtype=torch.float32 if by_step else dt.dtype)
    else:  # the input of matrix products, one a path over the whole batch; float16 may not hold it
        wide = by_step or u.dtype == torch.float16
        d_dt = new(paths, batch, length, channels, dtype=torch.float32 if wide else u.dtype).transpose(0, 1)
    dx = new(problem.rows, sizes.blocks * groups, length, 2 * d_state, **float32)
    dA = u.new_empty(problem.rows, sizes.segments, d_state, channels, **float32)
    dD, d_bias = (u.new_empty(problem.rows, sizes.segments, channels, **float32) for _ in range(2))
    scratch = u.new_empty(problem.programs * CHUNK // problem.plan.tile * d_state * problem.plan.block, **float32)
    packed = [_odd(*(s // problem.plan.pack for s in _strides(g))) for g in (du, d_dt)]
    _run(
        scan_backward, problem,
        Gradients(du, d_dt, dx, dA, dD, d_bias), GradientStrides(*packed, _odd(*_strides(dx))),
        dy, checkpoints, carries, scratch, LEVELS=min(4, (d_state - 1).bit_length()), BY_STEP=by_step,
    )  # fmt: skip
    dx = dx.unflatten(1, (sizes.blocks, groups))
    dB, dC = (part.sum(1).transpose(1, 2).unflatten(0, (batch, paths)) for part in dx.split(d_state, dim=-1))
    if by_step:
        du, d_dt, dB, dC = (plain.put(g.movedim(2, 0), tables[0], tokens) for g in (du, d_dt, dB, dC))
    if inputs < paths:
        du, _ = _finish(du.contiguous(), None, u.dtype, True, False)
    per_path = lambda g: g.view(batch, paths, sizes.segments, *g.shape[2:]).sum((0, 2))  # noqa: E731
    d_weight = None
    if dt_weight is not None:
        d_dt, d_weight = _low_rank(d_dt, dt, dt_weight)
    return du, d_dt, per_path(dA).transpose(1, 2), dB, dC, per_path(dD), per_path(d_bias), d_weight


def _low_rank(d_delta: Tensor, dt: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of dt [b, k, t, r] and of its weight [k, d, r] from that of their product [b, k, t, d]."""
    batch, paths, tokens, rank = dt.shape
    flat = d_delta.transpose(0, 1).reshape(paths, batch * tokens, -1)
    d_dt = torch.bmm(flat, weight.to(flat.dtype))
    d_weight = torch.bmm(flat.transpose(1, 2), dt.transpose(0, 1).reshape(paths, batch * tokens, rank).to(flat.dtype))
    return d_dt.view(paths, batch, tokens, rank).transpose(0, 1), d_weight
