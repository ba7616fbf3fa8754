"""Suppression of overlapping boxes. Boxes are [n, 4] with columns x1, y1, x2, y2."""

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from .precision import wide

__all__ = ["nms", "nms_match", "softnms"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes kept, best first. A box is x2 - x1 + offset wide."""
    boxes = wide(boxes)
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def _overlap(box: Tensor, boxes: Tensor, offset: int = 0) -> Tensor:
    """Intersection over union of one box with others, [n]; 0 where both are empty."""
    size = boxes[:, 2:] - boxes[:, :2] + offset
    common = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2]) + offset).clamp(min=0)
    intersection = common.prod(1)
    union = (box[2:] - box[:2] + offset).prod() + size.prod(1) - intersection
    return (intersection / union).nan_to_num(0)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (https://arxiv.org/abs/1704.04503): the best box lowers the scores of those that overlap it.

    Method 0 is plain suppression, 1 linear, 2 Gaussian. Returns the indices of the boxes whose score stays at
    `min_score` or above, best first; their boxes and scores go to the first rows of `dets` [n, 5].
    """
    boxes, scores = wide(boxes), wide(scores).clone()
    left = torch.arange(len(boxes), device=boxes.device)
    kept = []
    while len(left):
        place = int(scores[left].argmax())
        best = int(left[place])
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)
        left = torch.cat((left[:place], left[place + 1 :]))
        overlap = _overlap(boxes[best], boxes[left], offset)
        if method == 2:
            scores[left] *= torch.exp(-overlap.square() / sigma)
        else:
            scores[left] *= torch.where(overlap >= iou_threshold, (1 - overlap) * method, 1)
        left = left[scores[left] >= min_score]
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices into `dets` [n, 5]: a box that NMS keeps, then those that it suppresses, best first."""
    boxes = wide(dets[:, :4])
    left = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(left):
        suppressed = _overlap(boxes[left[0]], boxes[left]) >= iou_threshold
        suppressed[0] = True
        groups.append(left[suppressed].tolist())
        left = left[~suppressed]
    return groups
