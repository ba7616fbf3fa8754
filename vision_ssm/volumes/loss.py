"""Dice and cross-entropy, at one resolution or at several."""

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from ..engine import level_loss

__all__ = ["DeepSupervision"]


class DeepSupervision(nn.Module):
    """MONAI's `DiceCELoss` of softmax outputs against class ids, summed over resolutions as in nnU-Net.

    Each weighs what `level_loss` says.

    Args:
        coarsest: whether the coarsest of several outputs counts.
        weight: of each class in the cross-entropy.
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
            label: class ids (batch, 1, *size); brought to an output's size by nearest neighbours.
        """
        levels = [outputs] if isinstance(outputs, Tensor) else outputs
        return level_loss(self.loss, levels, label.float(), self.coarsest)
