"""Focal losses (https://arxiv.org/abs/1708.02002) for n samples of k classes.

Labels are [n]. A label outside 0..k-1 is background: under a sigmoid it is the negative of every class, under a softmax
it has no loss. `weight` [k] or [0] is a factor per label; background, which has none of its own, counts once.
"""

import torch
from torch import Tensor

from .precision import wide

__all__ = [
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
]

_TINY = torch.finfo(torch.float32).tiny  # mmcv's floor under a probability, whatever the dtype


def _label(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Which samples belong to a class, and a class for each, [n, 1]."""
    return ((target >= 0) & (target < classes))[:, None], target.clamp(0, classes - 1)[:, None]


def _factor(weight: Tensor, target: Tensor, classes: int) -> Tensor | float:
    """[n, 1]"""
    known, label = _label(target, classes)
    return torch.where(known, wide(weight)[label], 1.0) if weight.numel() else 1.0


def _sigmoid_terms(input: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every class: sign of the truth, probability of the truth and of its contrary, and balance; [n, k]."""
    logit = wide(input)
    true = (target[:, None] == torch.arange(input.shape[1], device=input.device)).to(logit.dtype)
    sign, balance = 2 * true - 1, alpha * true + (1 - alpha) * (1 - true)
    return sign, torch.sigmoid(sign * logit), torch.sigmoid(-sign * logit), balance


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """-balance * (1 - p)^gamma * log(p) of logits `input` into `output`, both [n, k]."""
    _, right, wrong, balance = _sigmoid_terms(input, target, alpha)
    loss = -balance * wrong**gamma * right.clamp(min=_TINY).log()
    output.copy_(loss * _factor(weight, target, input.shape[1]))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Derivative of each loss by its logit, into `grad_input` [n, k]."""
    sign, right, wrong, balance = _sigmoid_terms(input, target, alpha)
    slope = gamma * right * right.clamp(min=_TINY).log() - wrong
    grad_input.copy_(sign * balance * wrong**gamma * slope * _factor(weight, target, input.shape[1]))


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """-alpha * (1 - p)^gamma * log(p) of the label's probability in `softmax` [n, k], into `output` [n]."""
    known, label = _label(target, softmax.shape[1])
    right = wide(softmax).gather(1, label)
    loss = -alpha * (1 - right) ** gamma * right.clamp(min=_TINY).log()
    output.copy_(torch.where(known, loss * _factor(weight, target, softmax.shape[1]), 0).squeeze(1))


def softmax_focal_loss_backward(
    softmax: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Derivative of each loss by the logits, into `grad_input` [n, k]; `buff` [n] takes the part all classes share."""
    classes = softmax.shape[1]
    known, label = _label(target, classes)
    softmax = wide(softmax)
    right = softmax.gather(1, label)
    wrong = (1 - right).clamp(min=_TINY)  # a negative power of 0 would make 0 * infinity
    slope = alpha * (gamma * wrong ** (gamma - 1) * right * right.clamp(min=_TINY).log() - wrong**gamma)
    shared = torch.where(known, slope * _factor(weight, target, classes), 0)
    buff.copy_(shared.squeeze(1))
    grad_input.copy_(shared * (torch.zeros_like(softmax).scatter_(1, label, 1) - softmax))
