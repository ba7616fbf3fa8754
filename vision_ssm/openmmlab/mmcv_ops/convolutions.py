"""Deformable convolutions.

Shapes are those of `torchvision.ops.deform_conv2d`: input [N, C, H, W], offset [N, 2 * groups * kH * kW, H', W'] with y
before x, mask [N, groups * kH * kW, H', W']. `columns` and `ones` are mmcv's own memory, which is not used.
"""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .precision import wide

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]


def _sizes_v1(
    *, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
    group: int, deformable_group: int, im2col_step: int,
) -> tuple[int, ...]:  # fmt: skip
    """torchvision's order: stride, padding and dilation, each (h, w), and the two numbers of groups.

    The size of the kernel is that of the weight, and im2col_step changes no result.
    """
    return dH, dW, padH, padW, dilationH, dilationW, group, deformable_group


def _sizes_v2(
    *, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, group: int, deformable_group: int,
) -> tuple[int, ...]:  # fmt: skip
    return stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group


def _operands(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None) -> list[Tensor]:
    """The tensors of torchvision's operator, with what stands for no mask and no bias."""
    mask = input.new_empty(input.shape[0], 1) if mask is None else mask
    bias = input.new_zeros(weight.shape[0]) if bias is None else bias
    return [wide(x) for x in (input, weight, offset, mask, bias)]


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **sizes: int
) -> None:
    """Deformable convolution (https://arxiv.org/abs/1703.06211) into `output`."""
    operands = _operands(input, weight, offset, None, None)
    output.copy_(torch.ops.torchvision.deform_conv2d(*operands, *_sizes_v1(**sizes), False))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Gradients with respect to the input and the offsets."""
    operands = _operands(input, weight, offset, None, None)
    grads = torch.ops.torchvision._deform_conv2d_backward(wide(grad_output), *operands, *_sizes_v1(**sizes), False)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **sizes: int,
) -> None:
    """Add `scale` times the gradient with respect to the weight, on which it does not depend, to `grad_weight`."""
    operands = _operands(input, torch.zeros_like(grad_weight), offset, None, None)
    grads = torch.ops.torchvision._deform_conv2d_backward(wide(grad_output), *operands, *_sizes_v1(**sizes), False)
    grad_weight.add_(grads[1], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Modulated deformable convolution (https://arxiv.org/abs/1811.11168) into `output`."""
    operands = _operands(input, weight, offset, mask, bias if with_bias else None)
    output.copy_(torch.ops.torchvision.deform_conv2d(*operands, *_sizes_v2(**sizes), True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **sizes: int,
) -> None:
    """All five gradients; `grad_bias` stays as it is without a bias."""
    operands = _operands(input, weight, offset, mask, bias if with_bias else None)
    grads = torch.ops.torchvision._deform_conv2d_backward(wide(grad_output), *operands, *_sizes_v2(**sizes), True)
    targets = (grad_input, grad_weight, grad_offset, grad_mask, *((grad_bias,) if with_bias else ()))
    for target, grad in zip(targets, grads):
        target.copy_(grad)
