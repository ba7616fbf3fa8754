"""Causal depthwise convolution with SiLU along a path: the short convolution of Mamba blocks.

    y[l] = act(bias + sum_j weight[j] x[l - (width - 1) + j])

A mirrored convolution is that of the reversed sequence, in the order of the original: a bidirectional block needs no
flipped copy.
"""

from typing import List, Optional  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends, cpu, gpu, plain
from .checks import check_conv, check_conv_backward, check_entries
from .transforms import differentiate, for_kernels, under_transforms

__all__ = ["causal_conv1d"]


def _plain(x, weight, bias, tables, mirrored, silu):
    """The convolution as `width` shifted products, before or after the activation: [b, k, s, d]."""
    width = weight.shape[2]
    rows = plain.take(x, tables).movedim(0, 2)  # [b, k | 1, s, d]
    weight = plain.accumulation(weight)
    outputs = []
    for k, mirror in enumerate(mirrored):
        row = rows[:, min(k, rows.shape[1] - 1)]
        padded = F.pad(row, (0, 0, 0, width - 1) if mirror else (0, 0, width - 1, 0))
        taps = weight[k].flip(1) if mirror else weight[k]
        y = sum(padded[:, j : j + row.shape[1]] * taps[:, j] for j in range(width))
        outputs.append(y if bias is None else y + plain.accumulation(bias[k]))
    y = torch.stack(outputs, 1)
    return F.silu(y) if silu else y


def _backend(x: Tensor, weight: Tensor) -> str:
    backend = backends.current_backend(x.device, x.dtype)
    beyond = weight.shape[0] > gpu.MOST_PATHS or weight.shape[2] > gpu.MOST_TAPS
    return "chunked" if backend == "triton" and beyond else backend


@torch.library.custom_op("vision_ssm::causal_conv1d", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], tables: Optional[Tensor], mirrored: List[int], silu: bool
) -> Tensor:
    check_conv(x, weight, bias, tables, mirrored)
    x, weight, bias, tables = for_kernels(x, weight, bias, tables)
    backend = _backend(x, weight)
    if backend == "cpu":
        return cpu.conv_forward(x, weight, bias, tables, mirrored, silu)
    check_entries(None if tables is None else tables[None], x.shape[2])
    if backend == "triton":
        steps = x.shape[2] if tables is None else tables.shape[1]
        y = cpu.path_major(x, x.shape[0], weight.shape[0], steps, weight.shape[1])
        return gpu.load("conv").forward(x, weight, bias, tables, mirrored, silu, y)
    y = _plain(x, weight, bias, tables, mirrored, silu)
    return cpu.path_major(x, *y.shape).copy_(y)


@_forward.register_fake
def _(x, weight, bias, tables, mirrored, silu):
    check_conv(x, weight, bias, tables, mirrored)
    steps = x.shape[2] if tables is None else tables.shape[1]
    return cpu.path_major(x, x.shape[0], weight.shape[0], steps, weight.shape[1])


@torch.library.custom_op("vision_ssm::causal_conv1d_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    tables: Optional[Tensor],
    mirrored: List[int],
    silu: bool,
    backend: str = "",
) -> List[Tensor]:
    check_conv_backward(dy, x, weight, bias, tables, mirrored)
    dy, x, weight, bias, tables = for_kernels(dy, x, weight, bias, tables)
    backend = backend or _backend(x, weight)  # that of the forward pass, whatever is chosen by now
    if backend == "cpu":
        dx, d_weight, d_bias = cpu.conv_backward(dy, x, weight, bias, tables, mirrored, silu)
    elif backend == "triton":
        dx, d_weight, d_bias = gpu.load("conv").backward(dy, x, weight, bias, tables, mirrored, silu)
    else:
        check_entries(None if tables is None else tables[None], x.shape[2])
        dx, d_weight, d_bias = _plain_backward(dy, x, weight, bias, tables, mirrored, silu)
    pairs = ((dx, x), (d_weight, weight), (d_bias, bias))
    return [x.new_empty((0,)) if like is None else g.to(like.dtype).contiguous() for g, like in pairs]


def _plain_backward(dy, x, weight, bias, tables, mirrored, silu):
    width, steps = weight.shape[2], dy.shape[2]
    dy = plain.accumulation(dy)
    if silu:
        before = _plain(x, weight, bias, tables, mirrored, False)
        gate = torch.sigmoid(before)
        dy = dy * (gate + before * gate * (1 - gate))
    rows = plain.take(x, tables).movedim(0, 2)
    weight = plain.accumulation(weight)
    dx, d_weight = [], []
    for k, mirror in enumerate(mirrored):
        row = rows[:, min(k, rows.shape[1] - 1)]
        taps = weight[k].flip(1) if mirror else weight[k]
        lead = 0 if mirror else width - 1
        padded = F.pad(row, (0, 0, lead, width - 1 - lead))
        grad = F.pad(dy[:, k], (0, 0, width - 1 - lead, lead))
        dx.append(sum(grad[:, width - 1 - j : width - 1 - j + steps] * taps[:, j] for j in range(width)))
        d = torch.stack([(padded[:, j : j + steps] * dy[:, k]).sum((0, 1)) for j in range(width)], 1)
        d_weight.append(d.flip(1) if mirror else d)
    dx = plain.put(torch.stack(dx, 1).movedim(2, 0), tables, x.shape[2])
    dx = dx.sum(1, keepdim=True) if x.shape[1] < dx.shape[1] else dx
    return dx, torch.stack(d_weight), dy.sum((0, 2))


@_backward.register_fake
def _(dy, x, weight, bias, tables, mirrored, silu, backend=""):
    check_conv_backward(dy, x, weight, bias, tables, mirrored)
    return [x.new_empty((0,)) if like is None else like.new_empty(like.shape) for like in (x, weight, bias)]


def _save(ctx, inputs, output):
    *tensors, ctx.mirrored, ctx.silu = inputs
    ctx.backend = _backend(*tensors[:2]) if type(output) is Tensor else ""  # a traced graph runs on any
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy):
    x, weight, bias, tables = ctx.saved_tensors
    dx, d_weight, d_bias = _backward(dy, x, weight, bias, tables, ctx.mirrored, ctx.silu, ctx.backend)
    return dx, d_weight, None if bias is None else d_bias, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


# Derivatives of the gradient, and transforms of both


def _decomposed(x, weight, bias, tables, mirrored, silu):
    check_conv(x, weight, bias, tables, mirrored)
    if plain.readable(tables):
        check_entries(tables[None], x.shape[2])
    return _plain(x, weight, bias, tables, mirrored, silu).to(x.dtype)


def _decomposed_gradients(dy, x, weight, bias, tables, mirrored, silu):
    """Gradients of (x, weight, bias), None without a bias."""
    gradients = _plain_backward(dy, x, weight, bias, tables, mirrored, silu)
    return [None if like is None else g.to(like.dtype) for g, like in zip(gradients, (x, weight, bias), strict=True)]


def _transformed_backward(dy, x, weight, bias, tables, mirrored, silu, backend=""):
    check_conv_backward(dy, x, weight, bias, tables, mirrored)
    gradients = _decomposed_gradients(dy, x, weight, bias, tables, mirrored, silu)
    return [x.new_empty((0,)) if g is None else g for g in gradients]


def _save_gradient(ctx, inputs, output):
    *tensors, ctx.mirrored, ctx.silu, _ = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_gradient(ctx, gradients):
    *tensors, tables = ctx.saved_tensors

    def first(*inputs):
        return _decomposed_gradients(*inputs, tables, ctx.mirrored, ctx.silu)

    return *differentiate(first, tensors, gradients), *(None,) * 4


_backward.register_autograd(_differentiate_gradient, setup_context=_save_gradient)
under_transforms("causal_conv1d", _decomposed)
under_transforms("causal_conv1d_backward", _transformed_backward)


@torch.jit.ignore
def _run(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    tables: Optional[Tensor],
    mirrored: List[bool],
    silu: bool,
) -> Tensor:
    if torch.compiler.is_compiling():  # which words errors of the operator in its own way
        check_conv(x, weight, bias, tables, mirrored)
    if backends.decomposing():
        return _decomposed(x, weight, bias, tables, mirrored, silu)
    # TorchScript's tracer knows no lists of booleans.
    return torch.ops.vision_ssm.causal_conv1d(x, weight, bias, tables, [int(flag) for flag in mirrored], silu)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    tables: Optional[Tensor] = None,
    mirrored: Optional[List[bool]] = None,
    silu: bool = True,
) -> Tensor:
    """Causal depthwise convolution of channels-last sequences, one filter bank a path.

    Args:
        x: (batch, K or 1, tokens, channels).
        weight: (K, channels, width); the last tap meets the current token.
        bias: (K, channels).
        tables: (K, steps), int32: the token read at each step, -1 for a zero token. The output is in the order of the
            steps.
        mirrored: for each path, whether the convolution runs from the end.
        silu: apply SiLU.

    Returns:
        (batch, K, steps, channels) in the dtype of `x`; in memory, the paths come before the batch.

    Raises:
        ValueError, TypeError: naming the argument, what it is and what it must be.
    """
    flags = [False] * (weight.shape[0] if weight.dim() > 0 else 0) if mirrored is None else mirrored
    if torch.jit.is_scripting():
        return torch.ops.vision_ssm.causal_conv1d(x, weight, bias, tables, [int(flag) for flag in flags], silu)
    return _run(x, weight, bias, tables, flags, silu)
