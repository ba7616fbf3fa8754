"""Pooling over regions.

Shapes: N images, C channels, H x W pixels, R regions, PH x PW bins a region. Regions are [R, 5] with columns image, x1,
y1, x2, y2, in units that `spatial_scale` turns into pixels.
"""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .precision import wide

__all__ = ["roi_align_backward", "roi_align_forward", "roi_pool_backward", "roi_pool_forward"]

_OUTSIDE = -2.0  # a sampling coordinate that no pixel contributes to


def _add_at(total: Tensor, rois: Tensor, pixels: Tensor, values: Tensor) -> None:
    """Set `total` [N, C, H, W] to the sums of `values` [..., R, C, PH, PW] by `pixels`, their indices into H * W."""
    count, channels, height, width = total.shape
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=total.device)
    places = pixels.long() + planes[..., None, None] * (height * width)
    sums = values.new_zeros(total.numel()).index_add_(0, places.flatten(), values.flatten())
    total.copy_(sums.view(count, channels, height, width))


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point: indices into a flat map and bilinear weights, both [4, ...].

    As in RoIAlign a point more than a pixel outside the map has no weight, and any other is moved into it.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = y - top, x - left
    index = torch.stack([row * width + column for row in (top, bottom) for column in (left, right)])
    weight = torch.stack([v * h for v in (1 - down, down) for h in (1 - across, across)])
    return index, weight * inside


def _roi_align_max(
    input: Tensor, rois: Tensor, output: Tensor, argmax: tuple[Tensor, Tensor], scale: float, ratio: int, aligned: bool
) -> None:
    """The largest sample of each bin, and the coordinates (y, x) of that sample."""
    (height, width), (bins_y, bins_x) = input.shape[2:], output.shape[2:]
    corners = rois[:, [2, 1, 4, 3]] * scale - 0.5 * aligned
    size = corners[:, 2:] - corners[:, :2]
    size = (size if aligned else size.clamp(min=1)) / size.new_tensor([bins_y, bins_x])
    samples = size.new_full(size.shape, ratio) if ratio > 0 else size.ceil()
    for r, (image, count_y, count_x) in enumerate(torch.cat((rois[:, :1], samples), 1).long().tolist()):
        if count_y <= 0 or count_x <= 0:
            output[r], argmax[0][r], argmax[1][r] = 0, _OUTSIDE, _OUTSIDE
            continue
        y, x = (torch.arange(n, device=size.device).to(size) + 0.5 for n in (bins_y * count_y, bins_x * count_x))
        y = (corners[r, 0] + size[r, 0] / count_y * y).view(bins_y, 1, count_y, 1)
        x = (corners[r, 1] + size[r, 1] / count_x * x).view(1, bins_x, 1, count_x)
        points = [p.flatten(2) for p in torch.broadcast_tensors(y, x)]
        index, weight = _corners(*points, height, width)
        values = (input[image].flatten(1)[:, index] * weight).sum(1)  # [C, PH, PW, samples]
        largest, best = values.max(-1, keepdim=True)
        output[r] = largest.squeeze(-1)
        for target, p in zip(argmax, points):
            target[r] = p.expand_as(values).gather(-1, best).squeeze(-1)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (https://arxiv.org/abs/1703.06870) of `input` into `output` [R, C, PH, PW]; mode 0 is max, 1 average."""
    input = wide(input)
    rois = rois.to(input.dtype)
    if pool_mode == 0:
        _roi_align_max(input, rois, output, (argmax_y, argmax_x), spatial_scale, sampling_ratio, aligned)
        return
    pooled = torch.ops.torchvision.roi_align(
        input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of RoIAlign with respect to its input, into `grad_input` [N, C, H, W]."""
    grad = wide(grad_output)
    if pool_mode == 0:
        index, weight = _corners(wide(argmax_y), wide(argmax_x), *grad_input.shape[2:])
        _add_at(grad_input, rois, index, grad * weight)
        return
    bins = (aligned_height, aligned_width)
    grad = torch.ops.torchvision._roi_align_backward(
        grad, rois.to(grad.dtype), spatial_scale, *bins, *grad_input.shape, sampling_ratio, aligned
    )
    grad_input.copy_(grad)


def _pixels(first: Tensor, end: Tensor) -> Tensor:
    """Indices first..end-1 of each bin, [bins, longest]; a shorter bin repeats its last pixel."""
    span = torch.arange(max(int((end - first).max()), 1), device=first.device)
    return torch.minimum(first[:, None] + span, end[:, None] - 1).clamp(min=0)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoI max pooling of `input` into `output` [R, C, PH, PW], with indices into H * W, or -1, in `argmax`.

    mmcv keeps the fractions of a region's corners where torchvision rounds them, so that this is not torchvision's.
    """
    input = wide(input)
    rois = rois.to(input.dtype)
    width = input.shape[3]
    start, end = rois[:, [2, 1]] * spatial_scale, (rois[:, [4, 3]] + 1) * spatial_scale
    edges = []
    for axis, bins in enumerate((pooled_height, pooled_width)):
        origin, size = start[:, axis, None], ((end - start) / bins)[:, axis, None]
        step = torch.arange(bins, device=rois.device)
        bounds = (step * size + origin).floor(), ((step + 1) * size + origin).ceil()
        edges.append([b.clamp(0, input.shape[2 + axis]).long() for b in bounds])
    (top, bottom), (left, right) = edges
    for r, image in enumerate(rois[:, 0].long().tolist()):
        rows, columns = _pixels(top[r], bottom[r]), _pixels(left[r], right[r])
        index = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2)
        largest, best = input[image].flatten(1)[:, index].max(-1, keepdim=True)
        index = index.expand(len(largest), -1, -1, -1).gather(-1, best)
        empty = (bottom[r] <= top[r])[:, None] | (right[r] <= left[r]) | (end[r] <= start[r]).any()
        output[r] = largest.squeeze(-1).masked_fill(empty, 0)
        argmax[r] = index.squeeze(-1).masked_fill(empty, -1)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of RoI pooling with respect to its input, into `grad_input` [N, C, H, W]."""
    _add_at(grad_input, rois, argmax.clamp(min=0), wide(grad_output) * (argmax >= 0))
