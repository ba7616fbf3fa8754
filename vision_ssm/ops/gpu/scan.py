"""Host side of the scan kernels: what they write, and in which order they run."""

import torch
from torch import Tensor

from .. import plain
from ..checks import kept
from ..visits import visits
from .backward import Gradients, GradientStrides, scan_adjoint_ends, scan_backward
from .carry import carry_over
from .forward import scan_ends, scan_forward
from .launch import launch
from .merge import gate_backward, merge_paths
from .plan import CHUNK, state_blocks, states_shape
from .problem import Problem, lines, odd, set_up, strides_of
from .state_blocks import join_gradients, join_states, split, split_states

__all__ = ["backward", "forward", "gate"]


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
    outputs, d_state = 1 if merge else len(A), A.shape[2]
    blocks = state_blocks(d_state)
    args = u, dt, A, B, C, D, dt_bias, dt_weight, tables
    args = args if blocks == 1 else split(blocks, *args)
    last_state, checkpoints, y, ungated = _forward(*args, z, out_tokens, softplus, outputs, save)
    return y, last_state if blocks == 1 else join_states(blocks, last_state, d_state), checkpoints, ungated


def _forward(u, dt, A, B, C, D, dt_bias, dt_weight, tables, z, out_tokens, softplus, outputs, save):
    batch, _, tokens, channels = u.shape
    paths, _, d_state = A.shape
    steps = tokens if tables is None else tables.shape[2]
    written = visits(tables, 1, out_tokens)
    by_step = not written.once  # tokens with several values: they are added up afterwards
    alone = not by_step and paths == outputs  # the scan's output is the result
    new = u.new_empty if by_step or written.all_of(out_tokens) else u.new_zeros
    # Parts of a sum are kept in float16 only where the sum is: several may cancel that alone are out of its range.
    wide = by_step or (u.dtype == torch.float16 and not alone)
    y = new(batch, paths, steps if by_step else out_tokens, channels, dtype=torch.float32 if wide else u.dtype)
    gate = lines(z) if alone else None
    problem = set_up("forward", u, dt, A, B, C, D, dt_bias, dt_weight, tables, softplus, y, False, by_step, gate)
    carries = None
    if problem.scan.sizes.segments > 1:
        carries = _carries(problem, *_ends(problem), None, False)
    float32 = dict(dtype=torch.float32)
    checkpoints = u.new_empty(states_shape(batch, paths, steps, channels, d_state) if save else 0, **float32)
    last_state = u.new_empty(batch, paths, d_state, channels, **float32)
    keep = save and z is not None
    ungated = new(y.shape) if keep and alone else u.new_empty(0)
    pack = problem.plan.pack
    if gate is not None and any(s % pack for s in strides_of(gate)):
        gate = gate.contiguous()
    z_strides = (0, 0, 0) if gate is None else strides_of(gate)
    _run(
        scan_forward, problem, y, gate, odd(*(s // pack for s in z_strides)), ungated if keep and alone else None,
        carries, checkpoints if save else None, last_state,
    )  # fmt: skip
    if by_step:
        y = plain.put(y.movedim(2, 0), tables[1], out_tokens).contiguous()
    if not alone:
        y, ungated = _merge(y, outputs, z, u.dtype, keep)
    return last_state.transpose(2, 3), checkpoints, y, ungated


def _merge(parts: Tensor, outputs: int, z: Tensor | None, dtype: torch.dtype, keep: bool) -> tuple[Tensor, Tensor]:
    """Parts [b, k, t, d], summed to [b, outputs, t, d], and the gate: (y, y before the gate)."""
    batch, paths, tokens, channels = parts.shape
    y = parts.new_empty(batch, outputs, tokens, channels, dtype=dtype)
    ungated = torch.empty_like(y) if keep else y.new_empty(0)
    z = lines(z)
    if outputs > 1 and z is not None:  # outputs pass as a larger batch
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
    z = lines(z)
    shared = z.shape[1] < outputs
    d_ungated, dz = dy.new_empty(dy.shape, dtype=dtype), z.new_empty(z.shape)
    rows, columns = _block(channels)
    launch(
        gate_backward, batch * -(-tokens // rows) * -(-channels // columns), dy,
        dy, z, ungated, d_ungated, dz, tokens, channels, *dy.stride(), *strides_of(z),
        PATHS=outputs, SHARED=shared or outputs == 1, ROWS=rows, COLUMNS=columns, warps=4,
    )  # fmt: skip
    return d_ungated, dz


def backward(dy, d_last_state, u, dt, A, B, C, D, dt_bias, dt_weight, tables, checkpoints, softplus, merge):
    """Gradients of (u, dt, A, B, C, D, dt_bias, dt_weight) from that of the ungated output."""
    d_state, blocks = A.shape[2], state_blocks(A.shape[2])
    args = u, dt, A, B, C, D, dt_bias, dt_weight, tables
    batch, _, tokens, channels = u.shape
    steps = tokens if tables is None else tables.shape[2]
    if not kept(checkpoints, states_shape(batch, len(A), steps, channels, d_state)):
        checkpoints = forward(*args[:6], None, *args[6:], dy.shape[2], softplus, merge, True)[2]
    if blocks == 1:
        return _backward(dy, d_last_state, *args, checkpoints, softplus)
    if not merge:
        dy = dy.repeat_interleave(blocks, 1)
    if d_last_state is not None:
        d_last_state = split_states(blocks, d_last_state)
    gradients = _backward(dy, d_last_state, *split(blocks, *args), checkpoints, softplus)
    return join_gradients(blocks, u.shape[1], d_state, *gradients)


def _backward(dy, d_last_state, u, dt, A, B, C, D, dt_bias, dt_weight, tables, checkpoints, softplus):
    batch, inputs, tokens, channels = u.shape
    paths, _, d_state = A.shape
    groups = B.shape[3]
    dy = lines(dy)
    problem = set_up(
        "backward", u, dt, A, B, C, D, dt_bias, dt_weight, tables, softplus, dy, dy.shape[1] < paths, False
    )
    sizes = problem.scan.sizes
    first = None
    if d_last_state is not None:
        first = d_last_state.float().transpose(2, 3).reshape(batch * paths, d_state, channels).contiguous()
    carries = first if first is None else first.unsqueeze(1)
    if sizes.segments > 1:
        ends = checkpoints.new_empty(problem.rows, sizes.segments, d_state, channels)
        sums = checkpoints.new_empty(problem.rows, sizes.segments, channels)
        _run(scan_adjoint_ends, problem, dy, ends, sums)
        carries = _carries(problem, ends, sums, first, True)
    read = visits(tables, 0, tokens)
    by_step = not read.once  # tokens with several gradients: they are added up afterwards
    length = sizes.steps if by_step else tokens
    float32 = dict(dtype=torch.float32)
    new = u.new_empty if by_step or read.all_of(tokens) else u.new_zeros
    wide = by_step or (u.dtype == torch.float16 and inputs < paths)
    du = new(batch, paths, length, channels, dtype=torch.float32 if wide else u.dtype)
    if dt_weight is None:
        d_dt = new(batch, paths, length, channels, dtype=torch.float32 if by_step else dt.dtype)
    else:  # the input of matrix products, one a path over the whole batch; float16 may not hold it
        wide = by_step or u.dtype == torch.float16
        d_dt = new(paths, batch, length, channels, dtype=torch.float32 if wide else u.dtype).transpose(0, 1)
    dx = new(problem.rows, sizes.blocks * groups, length, 2 * d_state, **float32)
    dA = u.new_empty(problem.rows, sizes.segments, d_state, channels, **float32)
    dD, d_bias = (u.new_empty(problem.rows, sizes.segments, channels, **float32) for _ in range(2))
    scratch = u.new_empty(problem.programs * CHUNK // problem.plan.tile * d_state * problem.plan.block, **float32)
    packed = [odd(*(s // problem.plan.pack for s in strides_of(g))) for g in (du, d_dt)]
    _run(
        scan_backward, problem,
        Gradients(du, d_dt, dx, dA, dD, d_bias), GradientStrides(*packed, odd(*strides_of(dx))),
        dy, checkpoints, carries, scratch, LEVELS=(d_state - 1).bit_length(), BY_STEP=by_step,
    )  # fmt: skip
    dx = dx.unflatten(1, (sizes.blocks, groups))
    dB, dC = (part.sum(1).transpose(1, 2).unflatten(0, (batch, paths)) for part in dx.split(d_state, dim=-1))
    if by_step:
        du, d_dt, dB, dC = (plain.put(g.movedim(2, 0), tables[0], tokens) for g in (du, d_dt, dB, dC))
    if inputs < paths:
        du, _ = _merge(du.contiguous(), 1, None, u.dtype, False)
    per_path = lambda g: g.view(batch, paths, sizes.segments, *g.shape[2:]).sum((0, 2))  # noqa: E731
    d_weight = None
    if dt_weight is not None:
        d_dt, d_weight = _low_rank(d_dt, dt, dt_weight)
    return du, d_dt, per_path(dA).transpose(1, 2), dB, dC, per_path(dD), per_path(d_bias), d_weight


def _low_rank(d_delta: Tensor, dt: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of dt [b, k, t, r] and of its weight [k, d, r] from that of their product [b, k, t, d]."""
    batch, paths, tokens, rank = dt.shape
    flat = d_delta.transpose(0, 1).reshape(paths, batch * tokens, weight.shape[1])
    d_dt = torch.bmm(flat, weight.to(flat.dtype))
    d_weight = torch.bmm(flat.transpose(1, 2), dt.transpose(0, 1).reshape(paths, batch * tokens, rank).to(flat.dtype))
    return d_dt.view(paths, batch, tokens, rank).transpose(0, 1), d_weight
