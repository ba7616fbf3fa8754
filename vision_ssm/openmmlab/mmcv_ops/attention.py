"""Multi-scale deformable attention (https://arxiv.org/abs/2010.04159) through mmcv's own definition in PyTorch.

mmcv takes that definition itself where there is no GPU; here it serves GPUs too.
"""

import torch
from torch import Tensor

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]


def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, *, im2col_step: int
) -> Tensor:
    """[n, queries, heads * d] from value [n, keys, heads, d] and the levels' `shapes` (h, w).

    `locations` are [n, queries, heads, levels, points, 2], x before y, within 0..1; `weights` lack the last axis.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    *,
    im2col_step: int,
) -> None:
    """Gradients with respect to value, locations and weights; computes the forward pass again."""
    inputs = [x.detach().requires_grad_() for x in (value, locations, weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(inputs[0], shapes, starts, *inputs[1:], im2col_step=im2col_step)
    grads = torch.autograd.grad(output, inputs, grad_output)
    for target, grad in zip((grad_value, grad_locations, grad_weights), grads):
        target.copy_(grad)
