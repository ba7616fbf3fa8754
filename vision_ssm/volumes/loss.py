"""Dice and cross-entropy, at one resolution or at several."""

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from ..engine import level_loss

__all__ = ["DeepSupervision"]


class DeepSupervision(nn.Module):
    """MONAI's `DiceCELoss` of softmax outputs against class ids, summed over resolutions as in nnU-Net.

    Each weighs what `level_loss` says. Voxels of the label -1 are left out: Dice and cross-entropy are those of the
    others, and 0 where there are none.

    Args:
        coarsest: whether the coarsest of several outputs counts.
        weight: of each class, in Dice and in cross-entropy.
        **dice_ce: arguments of `DiceCELoss`; `batch=True` takes the Dice over the whole batch.
    """

    def __init__(self, coarsest: bool = False, weight: Sequence[float] | None = None, **dice_ce):
        super().__init__()
        weight = None if weight is None else torch.tensor(weight, dtype=torch.float32)
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True, weight=weight, **dice_ce)
        self.coarsest = coarsest

    def forward(self, outputs: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """The loss, in float32.

        Args:
            outputs: logits (batch, classes, *size), or several, at full resolution first.
            label: class ids (batch, 1, *size), -1 where nothing is counted; brought to an output's size by nearest
                neighbours.
        """
        levels = [outputs] if isinstance(outputs, Tensor) else outputs
        whole = bool((label >= 0).all())
        return level_loss(self.loss if whole else self._of_counted, levels, label.float(), self.coarsest)

    def _of_counted(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of the voxels that are not ignored."""
        dice, cross_entropy = self.loss.dice, self.loss.ce
        samples = [slice(None)] if dice.batch else [slice(i, i + 1) for i in range(len(logits))]
        parts = [_counted(logits[one], label[one]) for one in samples]
        parts = [part for part in parts if part[1].numel()]
        if not parts:
            return 0.0 * logits.sum()
        overlap = torch.stack([dice(*part) for part in parts])
        overlap = overlap.sum() if dice.reduction == "sum" else overlap.mean()
        everything, ids = (torch.cat(one, -1) for one in zip(*parts, strict=True))
        return self.loss.lambda_dice * overlap + self.loss.lambda_ce * cross_entropy(everything, ids)


def _counted(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (1, classes, voxels) and ids (1, 1, voxels) of the voxels that are not ignored."""
    kept = label.flatten() >= 0
    return logits.movedim(1, 0).flatten(1)[None, :, kept], label.flatten()[None, None, kept]
