"""Losses that train several networks together on few labels: Semi-Mamba-UNet and Weak-Mamba-UNet.

Papers: Ma and Wang, Semi-Mamba-UNet, Knowledge-Based Systems 300, 2024; Wang and Ma, Weak-Mamba-UNet, arXiv 2402.10887
Reference code: https://github.com/ziyangwang007/Mamba-UNet (Apache-2.0), Weak-Mamba-UNet (MIT).

The networks are those of `mamba_unet` and `partners`, or any others of one output size. Logits are
(batch, classes, *sides), labels (batch, *sides). As in the reference's code, and unlike in the paper's figure, the
contrastive term has no projector.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

__all__ = [
    "consistency_loss", "dice_loss", "mixed_pseudo_label", "ramp_up", "scribble_loss", "semi_mamba_unet_loss",
    "weak_mamba_unet_loss",
]  # fmt: skip


def _precise(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def ramp_up(step: int, highest: float = 0.1, period: int = 150, length: int = 200) -> float:
    """Weight of the pseudo-labels at a training step: `highest` * exp(-5 (1 - t)^2), where t grows to 1.

    t grows by 1 / `length` every `period` steps (Laine and Aila, Temporal Ensembling, arXiv 1610.02242).
    """
    t = min(step // period / length, 1.0)
    return highest * math.exp(-5.0 * (1.0 - t) ** 2)


def dice_loss(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1e-5) -> torch.Tensor:
    """1 - (2 sum(p y) + s) / (sum(p^2) + sum(y^2) + s), averaged over the classes (V-Net, arXiv 1606.04797).

    The sums run over the whole batch.

    Args:
        logits: (batch, classes, *sides); p is their softmax.
        target: classes, (batch, *sides), int64.
        smooth: s.

    Returns:
        A scalar, in float32 at least.
    """
    p = logits.softmax(dim=1, dtype=_precise(logits))
    y = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(p.dtype)
    axes = (0, *range(2, p.dim()))
    total = p.square().sum(axes) + y.sum(axes)
    return (1 - (2 * (p * y).sum(axes) + smooth) / (total + smooth)).mean()


def consistency_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two networks' logits, averaged over each image and scaled to length 1."""
    means = (logits.flatten(2).mean(dim=2, dtype=_precise(logits)) for logits in (first, second))
    vectors = (F.normalize(mean, dim=1) for mean in means)
    return F.mse_loss(*vectors)


def semi_mamba_unet_loss(
    first: torch.Tensor, second: torch.Tensor, target: torch.Tensor, step: int, consistency: float = 0.5
) -> torch.Tensor:
    """Semi-Mamba-UNet's loss of two networks, on a batch whose first images are labelled.

    Each network has (cross entropy + Dice) / 2 on the labelled images; Dice to the other's classes on the unlabelled
    ones, weighted by `ramp_up(step)`; and `consistency` times `consistency_loss` on all.

    Args:
        first, second: logits of the whole batch, (batch, classes, *sides).
        target: classes of the labelled images, (labelled, *sides), int64; 0 < labelled < batch.
        step: training step, from 0.
        consistency: weight of the contrastive term.

    Returns:
        The sum of both networks' losses.

    Raises:
        ValueError: the batch has no labelled or no unlabelled image.
    """
    labelled = len(target)
    if not 0 < labelled < len(first):
        raise ValueError(f"{labelled} of {len(first)} images are labelled: expected some, and some that are not")
    weight, total = ramp_up(step), 2 * consistency * consistency_loss(first, second)
    for own, other in ((first, second), (second, first)):
        known = own[:labelled]
        total = total + 0.5 * (F.cross_entropy(known, target) + dice_loss(known, target))
        total = total + weight * dice_loss(own[labelled:], other[labelled:].argmax(dim=1))
    return total


def scribble_loss(logits: torch.Tensor, scribbles: torch.Tensor, ignore_index: int = 4) -> torch.Tensor:
    """Cross entropy over the pixels that have a scribble; 0 where there is none.

    Args:
        logits: (batch, classes, *sides).
        scribbles: classes, (batch, *sides), int64; `ignore_index` where there is no scribble (4 in ACDC's).
    """
    count = (scribbles != ignore_index).sum().clamp(min=1)
    return F.cross_entropy(logits, scribbles, ignore_index=ignore_index, reduction="sum") / count


def mixed_pseudo_label(logits: Sequence[torch.Tensor], generator: torch.Generator | None = None) -> torch.Tensor:
    """Classes of a random convex combination of the networks' probabilities, (batch, *sides), int64.

    The weights are the pieces of [0, 1] between uniformly random cuts, one cut fewer than networks.
    """
    device = "cpu" if generator is None else generator.device
    precise = {"dtype": torch.float32, "device": device}
    cuts = torch.rand(len(logits) - 1, generator=generator, **precise).sort().values
    ends = torch.tensor([0.0, 1.0], **precise)
    weights = torch.cat([ends[:1], cuts, ends[1:]]).diff().to(logits[0].device)
    probabilities = (each.detach().softmax(dim=1, dtype=torch.float32) for each in logits)
    return sum(weight * each for weight, each in zip(weights, probabilities)).argmax(dim=1)


def weak_mamba_unet_loss(
    logits: Sequence[torch.Tensor],
    scribbles: torch.Tensor,
    ignore_index: int = 4,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Weak-Mamba-UNet's loss: each network has `scribble_loss` and Dice to one `mixed_pseudo_label` of all.

    Args:
        logits: of each network, (batch, classes, *sides); three in the paper.
        scribbles, ignore_index: as of `scribble_loss`.
        generator: for the random weights.

    Returns:
        The sum of all networks' losses.
    """
    label = mixed_pseudo_label(logits, generator)
    return sum(scribble_loss(each, scribbles, ignore_index) + dice_loss(each, label) for each in logits)
