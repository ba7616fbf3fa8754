"""Image to patch tokens."""

from typing import Tuple  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["PatchEmbed"]


class PatchEmbed(nn.Module):
    """Image to patch tokens (batch, height, width, dim); patches overlap where the stride is smaller than their size.

    A remainder at the right and bottom is dropped, or filled up with zeros where `pad`.
    """

    def __init__(
        self, patch_size: int, stride: int, in_chans: int, dim: int, pad: bool = False, device=None, dtype=None
    ):
        super().__init__()
        self.patch_size, self.stride, self.pad = patch_size, stride, pad
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=stride, device=device, dtype=dtype)

    def grid_size(self, height: int, width: int) -> Tuple[int, int]:
        """Number of tokens in each direction."""
        if self.pad:
            height, width = height + -height % self.patch_size, width + -width % self.patch_size
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pad:
            x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        return self.proj(x).permute(0, 2, 3, 1)
