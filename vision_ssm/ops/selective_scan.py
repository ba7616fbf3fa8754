"""Selective scan (S6), the recurrence under every model of this package, along any path through a grid.

    delta[t] = softplus(dt[t] + dt_bias)
    h[t]     = exp(delta[t] A) h[t-1] + delta[t] B[t] x[t]
    y[t]     = C[t] . h[t] + D x[t]

(Gu and Dao, Mamba, https://arxiv.org/abs/2312.00752, algorithm 2; cross-scan after Liu et al., VMamba,
https://arxiv.org/abs/2401.10166.) Three entry points to one operator, `vision_ssm::selective_scan`:

- `selective_scan`: signature, shapes and meaning of mamba_ssm's function, (batch, channels, length);
- `selective_scan_nd`: channels-last grids, several scan paths;
- `scan_tokens`: the same on flat token axes, where the scan may read one sequence and write another.

A path is a pair of rows in an int32 table: the token read at each step and the token written, -1 for none. The
parameters of all paths are computed once in grid order; the paths are index arithmetic inside the kernels.
"""

import functools
import logging
from typing import List, Optional, Tuple  # noqa: UP035 - TorchScript needs the typing forms

import torch
from torch import Tensor

from . import backends, cpu, gpu, plain
from .checks import check, check_entries, named

__all__ = ["scan_tokens", "selective_scan", "selective_scan_nd"]

_log = logging.getLogger("vision_ssm")


@functools.cache
def _log_fallback(d_state: int) -> None:
    _log.warning("d_state %d is beyond the triton backend's %d: the chunked backend runs", d_state, gpu.MOST_STATES)


def _backend(u: Tensor, A: Tensor) -> str:
    backend = backends.current_backend(u.device, u.dtype)
    if backend == "triton" and A.shape[2] > gpu.MOST_STATES:
        _log_fallback(A.shape[2])
        return "chunked"
    return backend


@torch.library.custom_op("vision_ssm::selective_scan", mutates_args=())
def _forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],
    z: Optional[Tensor],
    dt_bias: Optional[Tensor],
    dt_weight: Optional[Tensor],
    tables: Optional[Tensor],
    out_tokens: int,
    softplus: bool,
    merge: bool,
    save: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    args = u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge
    backend = _backend(u, A)
    if backend == "cpu":
        return cpu.scan_forward(*args, save)
    if backend == "triton":
        with torch.autocast(u.device.type, enabled=False):
            return gpu.load("scan").forward(*args, save)
    forward = plain.forward_sequential if backend == "reference" else plain.forward_chunked
    check_entries(tables, u.shape[2], out_tokens)
    with torch.autocast(u.device.type, enabled=False):
        y, last_state, ungated = forward(*plain.widened(*args[:9]), *args[9:])
    y = y.to(u.dtype)
    last_state, ungated = (x.to(torch.promote_types(u.dtype, torch.float32)) for x in (last_state, ungated))
    keep = save and z is not None
    return y, last_state, last_state.new_empty(0), ungated if keep else last_state.new_empty(0)


@_forward.register_fake
def _(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge, save):
    batch, _, tokens, channels = u.shape
    paths, _, d_state = A.shape
    shape = batch, 1 if merge else paths, out_tokens, channels
    state_dtype = torch.promote_types(u.dtype, torch.float32)
    new = lambda *size: u.new_empty(size, dtype=state_dtype)  # noqa: E731
    steps = tokens if tables is None else tables.shape[2]
    states, last_state, ungated = new(0), new(batch, paths, channels, d_state), new(0)
    if save and z is not None:
        ungated = new(*shape)
    backend = _backend(u, A)
    if backend == "cpu" and save:
        states = new(*cpu.states_shape(batch, paths, steps, B.shape[3], channels, d_state))
    if backend == "triton":
        last_state, ungated = new(batch, paths, d_state, channels).transpose(2, 3), ungated.to(u.dtype)
        if save:
            states = new(*gpu.states_shape(batch, paths, steps, channels, d_state))
    return u.new_empty(shape), last_state, states, ungated


@torch.library.custom_op("vision_ssm::selective_scan_backward", mutates_args=())
def _backward(
    dy: Tensor,
    d_last_state: Optional[Tensor],
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],
    z: Optional[Tensor],
    dt_bias: Optional[Tensor],
    dt_weight: Optional[Tensor],
    tables: Optional[Tensor],
    states: Tensor,
    ungated: Tensor,
    softplus: bool,
    merge: bool,
) -> List[Tensor]:
    backend, dz = _backend(u, A), None
    if z is not None:
        if ungated.shape != dy.shape:  # not saved
            options = dy.shape[2], softplus, merge, False
            ungated = _forward(u, dt, A, B, C, D, None, dt_bias, dt_weight, tables, *options)[0]
        dy, dz = (gpu.load("scan").gate if backend == "triton" else plain.gate)(dy, z, ungated, u.dtype)
    args = u, dt, A, B, C, D, dt_bias, dt_weight, tables
    if backend == "cpu":
        if states.dim() != cpu.STATES_DIM:  # saved by another backend, or not at all
            _, _, states, _ = cpu.scan_forward(*args[:6], None, *args[6:], dy.shape[2], softplus, merge, True)
        gradients = cpu.scan_backward(dy, d_last_state, *args, states, softplus, merge)
    elif backend == "triton":
        with torch.autocast(u.device.type, enabled=False):
            gradients = gpu.load("scan").backward(dy, d_last_state, *args, states, softplus, merge)
    else:
        recurrence = plain.sequential if backend == "reference" else plain.chunked
        with torch.autocast(u.device.type, enabled=False):
            gradients = plain.backward(recurrence, dy, d_last_state, *plain.widened(*args[:8]), tables, softplus)
    du, d_dt, dA, dB, dC, dD, d_bias, d_weight = gradients
    pairs = zip(
        (du, d_dt, dA, dB, dC, dD, dz, d_bias, d_weight), (u, dt, A, B, C, D, z, dt_bias, dt_weight), strict=True
    )
    return [u.new_empty(0) if like is None else g.to(like.dtype).contiguous() for g, like in pairs]


@_backward.register_fake
def _(dy, d_last_state, u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, states, ungated, softplus, merge):
    inputs = u, dt, A, B, C, D, z, dt_bias, dt_weight
    return [u.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs]


def _save(ctx, inputs, output):
    *tensors, ctx.out_tokens, ctx.softplus, ctx.merge, _ = inputs
    y, _, states, ungated = output
    ctx.shape, ctx.dtype = y.shape, y.dtype
    ctx.set_materialize_grads(False)  # zeros for the saved states would be as large as they are
    ctx.save_for_backward(*tensors, states, ungated)


def _differentiate(ctx, dy, d_last_state, *_):
    *tensors, states, ungated = ctx.saved_tensors  # activation checkpointing allows reading this once
    if dy is None and d_last_state is None:
        return (None,) * 14
    if dy is None:
        dy = tensors[0].new_zeros(ctx.shape)
    gradients = _backward(dy, d_last_state, *tensors, states, ungated, ctx.softplus, ctx.merge)
    inputs = tensors[:9]
    return *(None if x is None else g for x, g in zip(inputs, gradients, strict=True)), *(None,) * 5


_forward.register_autograd(_differentiate, setup_context=_save)


@torch.jit.ignore
def _run(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],
    z: Optional[Tensor],
    dt_bias: Optional[Tensor],
    dt_weight: Optional[Tensor],
    tables: Optional[Tensor],
    out_tokens: int,
    softplus: bool,
    merge: bool,
) -> Tuple[Tensor, Tensor]:
    check(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, merge)
    return _checked(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge)


def _checked(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge) -> tuple[Tensor, Tensor]:
    args = u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge
    if backends.decomposing():
        with torch.autocast(u.device.type, enabled=False):
            y, last_state, _ = plain.forward_chunked(*plain.widened(*args[:9]), *args[9:])
        return y.to(u.dtype), last_state
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in args[:9])
    y, last_state, _, _ = torch.ops.vision_ssm.selective_scan(*args, save)
    return y, last_state


def scan_tokens(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    dt_bias: Optional[Tensor] = None,
    dt_weight: Optional[Tensor] = None,
    tables: Optional[Tensor] = None,
    out_tokens: Optional[int] = None,
    softplus: bool = True,
    merge: bool = True,
) -> Tensor:
    """Selective scan of flat token sequences along K paths.

    Args:
        u: (batch, K or 1, tokens, channels), float; 1 shares one sequence among the paths.
        dt: (batch, K, tokens, channels), or (batch, K, tokens, rank) with `dt_weight`.
        A: (K, channels, d_state), real.
        B, C: (batch, K, tokens, groups, d_state); channels are cut into `groups` equal groups.
        D: skip, (K, channels).
        z: gate, (batch, K or 1, out_tokens, channels): the (merged) output is multiplied by silu(z).
        dt_bias: (K, channels), added to dt before the softplus.
        dt_weight: (K, channels, rank), the dt projection, done inside the kernel.
        tables: (2, K, steps), int32: the tokens read and the tokens written at each step, -1 for a zero token or
            none; tokens written several times receive the sum. None: each path reads and writes in order.
        out_tokens: length of the output; the input's by default.
        softplus: apply softplus to dt.
        merge: sum the paths' outputs, else keep them apart.

    Returns:
        (batch, 1 if merge else K, out_tokens, channels), contiguous, in the dtype of `u`. States and sums are float32
        (float64 for float64 input).

    Raises:
        ValueError, TypeError: naming the argument, what it is and what it must be.
    """
    tokens = u.shape[2] if out_tokens is None else out_tokens
    if torch.jit.is_scripting():
        save = torch.is_grad_enabled()
        return torch.ops.vision_ssm.selective_scan(
            u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, tokens, softplus, merge, save
        )[0]
    return _run(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, tokens, softplus, merge)[0]


def selective_scan_nd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_weight: Tensor | None = None,
    tables: Tensor | None = None,
    softplus: bool = True,
    merge: bool = True,
) -> Tensor:
    """Selective scan of a channels-last grid along K paths (see `vision_ssm.scan` for the tables of a path).

    Args:
        x: (batch, *grid, channels) shared by the paths, or (batch, K, *grid, channels).
        dt: (batch, K, *grid, channels), or (batch, K, *grid, rank) with `dt_weight` (K, channels, rank).
        A: (K, channels, d_state). D, dt_bias: (K, channels).
        B, C: (batch, K, *grid, d_state).
        z: gate, (batch, *grid, channels).
        tables: (2, K, steps), int32; None is row-major order for every path.
        softplus: apply softplus to dt + dt_bias.
        merge: sum over the paths, else stack them.

    Returns:
        (batch, *grid, channels), or (batch, K, *grid, channels) without `merge`, in the dtype of `x`.

    Raises:
        ValueError, TypeError: naming the argument, what it is and what it must be.
    """
    grid = B.shape[2:-1]
    if x.dim() not in (len(grid) + 2, len(grid) + 3) or x.shape[-len(grid) - 1 : -1] != grid:
        raise ValueError(
            f"`x` is {tuple(x.shape)}: expected (batch, *grid, channels) with the grid of `B`, {tuple(grid)}"
        )
    shared = x.dim() == len(grid) + 2
    u = (x.unsqueeze(1) if shared else x).flatten(2, -2)
    if z is not None:
        if z.shape != (x.shape[0], *grid, x.shape[-1]):
            raise ValueError(f"`z` is {tuple(z.shape)}: expected {(x.shape[0], *grid, x.shape[-1])}")
        z = z.flatten(1, -2).unsqueeze(1)
    for name, value in (("dt", dt), ("C", C)):
        if value.shape[2:-1] != grid:
            raise ValueError(
                f"`{name}` is {tuple(value.shape)}: expected the grid of `B`, {tuple(grid)}, before the last axis"
            )
    args = (
        u, dt.flatten(2, -2), A, B.flatten(2, -2).unsqueeze(3), C.flatten(2, -2).unsqueeze(3),
        D, z, dt_bias, dt_weight, tables, u.shape[2],
    )  # fmt: skip
    with named({"u": "x"}):
        check(*args, merge)
    y, _ = _checked(*args, softplus, merge)
    return y.unflatten(2, grid).squeeze(1) if merge else y.unflatten(2, grid)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Drop-in for mamba_ssm's `selective_scan_fn`, for real A.

    Args:
        u, delta: (batch, channels, length), any strides.
        A: (channels, d_state).
        B, C: (channels, d_state), (batch, d_state, length) or (batch, groups, d_state, length).
        D, delta_bias: (channels,).
        z: gate, (batch, channels, length): the output is multiplied by silu(z).
        delta_softplus: apply softplus to delta + delta_bias.
        return_last_state: also return the final state, (batch, channels, d_state), float32 (float64 for float64
            input). Gradients flow through it.

    Returns:
        (batch, channels, length) in the dtype of `u`; its memory is channels-last.

    Raises:
        ValueError, TypeError: naming the argument, what it is and what it must be.
    """
    if u.dim() != 3:
        raise ValueError(f"`u` is {tuple(u.shape)}: expected (batch, channels, length)")
    if delta.shape != u.shape:
        raise ValueError(f"`delta` is {tuple(delta.shape)}: expected the shape of `u`, {tuple(u.shape)}")
    if A.dim() != 2:
        raise ValueError(f"`A` is {tuple(A.shape)}: expected (channels, d_state)")
    batch, channels, length = u.shape

    def grouped(x: Tensor, name: str) -> Tensor:
        """To (batch, 1, length, groups, d_state)."""
        if x.dim() == 2:  # constant over time, one row a channel
            if x.shape[0] != channels:
                raise ValueError(f"`{name}` is {tuple(x.shape)}: expected ({channels}, d_state)")
            return x.expand(batch, 1, length, *x.shape)
        if x.dim() == 3:
            return x.transpose(1, 2)[:, None, :, None]
        if x.dim() == 4:
            return x.permute(0, 3, 1, 2).unsqueeze(1)
        raise ValueError(
            f"`{name}` is {tuple(x.shape)}: expected (channels, d_state), (batch, d_state, length) or "
            "(batch, groups, d_state, length)"
        )

    def one_path(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.unsqueeze(0)

    B, C = grouped(B, "B"), grouped(C, "C")
    if B.shape[3] != C.shape[3]:  # one of them by group, the other by channel
        B, C = (x.repeat_interleave(channels // x.shape[3], 3) if x.shape[3] < channels else x for x in (B, C))
    args = (
        u.transpose(1, 2).unsqueeze(1), delta.transpose(1, 2).unsqueeze(1), one_path(A), B, C, one_path(D),
        None if z is None else z.transpose(1, 2).unsqueeze(1), one_path(delta_bias), None, None, length,
    )  # fmt: skip
    with named({"dt": "delta", "dt_bias": "delta_bias"}):
        check(*args, False)
    y, last_state = _checked(*args, delta_softplus, False)
    y = y.squeeze(1).transpose(1, 2)
    return (y, last_state.squeeze(1)) if return_last_state else y
