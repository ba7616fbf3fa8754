"""The operator `vision_ssm::selective_scan` and its gradient: checks, backends, fake tensors, derivatives.

Arguments are those of `scan_tokens` (see `selective_scan.py`); `save` keeps what a backward pass needs.
"""

import functools
import logging
from typing import List, Optional, Tuple  # noqa: UP035 - the forms of operator schemas

import torch
from torch import Tensor

from . import backends, cpu, gpu, plain
from .checks import check, check_backward, check_entries
from .transforms import differentiate, for_kernels, under_transforms

__all__ = ["decomposed"]

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


def _scan(backend: str, u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge, save):
    args = u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge
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
    return y, last_state, last_state.new_empty((0,)), ungated if keep else last_state.new_empty((0,))


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
    tensors = u, dt, A, B, C, D, z, dt_bias, dt_weight, tables
    check(*tensors, out_tokens, merge)
    return _scan(_backend(u, A), *for_kernels(*tensors), out_tokens, softplus, merge, save)


@_forward.register_fake
def _(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge, save):
    check(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, merge)
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
    backend: str = "",
) -> List[Tensor]:
    tensors = dy, d_last_state, u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, states, ungated
    check_backward(*tensors, merge)
    dy, d_last_state, *inputs, tables, states, ungated = for_kernels(*tensors)
    u, dt, A, B, C, D, z, dt_bias, dt_weight = inputs
    backend, dz = backend or _backend(u, A), None  # that of the forward pass, whatever is chosen by now
    args = u, dt, A, B, C, D, dt_bias, dt_weight, tables
    if z is not None:
        if ungated.numel() == 0:  # not saved
            ungated = _scan(backend, *args[:6], None, *args[6:], dy.shape[2], softplus, merge, False)[0]
        dy, dz = (gpu.load("scan").gate if backend == "triton" else plain.gate)(dy, z, ungated.contiguous(), u.dtype)
    if backend == "cpu":
        gradients = cpu.scan_backward(dy, d_last_state, *args, states, softplus, merge)
    elif backend == "triton":
        with torch.autocast(u.device.type, enabled=False):
            gradients = gpu.load("scan").backward(dy, d_last_state, *args, states, softplus, merge)
    else:
        recurrence = plain.sequential if backend == "reference" else plain.chunked
        check_entries(tables, u.shape[2], dy.shape[2])
        with torch.autocast(u.device.type, enabled=False):
            gradients = plain.backward(recurrence, dy, d_last_state, *plain.widened(*args[:8]), tables, softplus)
    du, d_dt, dA, dB, dC, dD, d_bias, d_weight = gradients
    pairs = zip((du, d_dt, dA, dB, dC, dD, dz, d_bias, d_weight), inputs, strict=True)
    return [u.new_empty((0,)) if like is None else g.to(like.dtype).contiguous() for g, like in pairs]


@_backward.register_fake
def _(dy, d_last_state, u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, states, ungated, softplus, merge, backend=""):
    inputs = u, dt, A, B, C, D, z, dt_bias, dt_weight
    check_backward(dy, d_last_state, *inputs, tables, states, ungated, merge)
    return [u.new_empty((0,)) if x is None else x.new_empty(x.shape) for x in inputs]


def _save(ctx, inputs, output):
    *tensors, ctx.out_tokens, ctx.softplus, ctx.merge, _ = inputs
    y, _, states, ungated = output
    ctx.shape = y.shape
    ctx.backend = _backend(tensors[0], tensors[2]) if type(y) is Tensor else ""  # a traced graph runs on any
    ctx.set_materialize_grads(False)  # zeros for the saved states would be as large as they are
    ctx.save_for_backward(*tensors, states, ungated)


def _differentiate(ctx, dy, d_last_state, *_):
    *tensors, states, ungated = ctx.saved_tensors  # activation checkpointing allows reading this once
    if dy is None and d_last_state is None:
        return (None,) * 14
    if dy is None:
        dy = tensors[0].new_zeros(ctx.shape)
    gradients = _backward(dy, d_last_state, *tensors, states, ungated, ctx.softplus, ctx.merge, ctx.backend)
    inputs = tensors[:9]
    return *(None if x is None else g for x, g in zip(inputs, gradients, strict=True)), *(None,) * 5


_forward.register_autograd(_differentiate, setup_context=_save)


# Derivatives of the gradient, and transforms of both


def decomposed(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge, save=False):
    """The operator in plain PyTorch operations; nothing is saved, autograd keeps what it needs itself."""
    tensors = u, dt, A, B, C, D, z, dt_bias, dt_weight
    check(*tensors, tables, out_tokens, merge)
    if plain.readable(tables):
        check_entries(tables, u.shape[2], out_tokens)
    with torch.autocast(u.device.type, enabled=False):
        y, last_state, _ = plain.forward_chunked(*plain.widened(*tensors), tables, out_tokens, softplus, merge)
    last_state = last_state.to(torch.promote_types(u.dtype, torch.float32))
    return y.to(u.dtype), last_state, last_state.new_empty((0,)), last_state.new_empty((0,))


def _decomposed_gradients(dy, d_last_state, u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, softplus, merge):
    """Gradients of the nine tensors, None for absent ones."""
    inputs = u, dt, A, B, C, D, z, dt_bias, dt_weight
    dz, out_tokens = None, dy.shape[2]
    with torch.autocast(u.device.type, enabled=False):
        u, dt, A, B, C, D, z, dt_bias, dt_weight = plain.widened(*inputs)
        args = u, dt, A, B, C, D, dt_bias, dt_weight
        if z is not None:  # also where it was saved: its own derivatives count
            ungated = plain.forward_chunked(*args[:6], None, *args[6:], tables, out_tokens, softplus, merge)[2]
            dy, dz = plain.gate(dy, z, ungated, u.dtype)
        du, d_dt, dA, dB, dC, dD, d_bias, d_weight = plain.backward(
            plain.chunked, dy, d_last_state, *args, tables, softplus
        )
    pairs = zip((du, d_dt, dA, dB, dC, dD, dz, d_bias, d_weight), inputs, strict=True)
    return [None if like is None else g.to(like.dtype) for g, like in pairs]


def _transformed_backward(dy, d_last_state, *rest):
    """The operator of gradients, as `_decomposed_gradients`."""
    *tensors, states, ungated, softplus, merge = rest[:14]
    check_backward(dy, d_last_state, *tensors, states, ungated, merge)
    gradients = _decomposed_gradients(dy, d_last_state, *tensors, softplus, merge)
    return [dy.new_empty((0,)) if g is None else g for g in gradients]


def _save_gradient(ctx, inputs, output):
    *tensors, _, _, ctx.softplus, ctx.merge, _ = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_gradient(ctx, gradients):
    *tensors, tables = ctx.saved_tensors

    def first(*inputs):
        return _decomposed_gradients(*inputs, tables, ctx.softplus, ctx.merge)

    return *differentiate(first, tensors, gradients), *(None,) * 6


_backward.register_autograd(_differentiate_gradient, setup_context=_save_gradient)
under_transforms("selective_scan", decomposed)
under_transforms("selective_scan_backward", _transformed_backward)
