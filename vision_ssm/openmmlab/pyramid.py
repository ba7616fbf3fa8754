"""A feature pyramid from one map, for plain backbones."""

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import nn

__all__ = ["SimpleFeaturePyramid"]


def _rescaled(dim: int, scale: float) -> tuple[list[nn.Module], int]:
    """Layers that rescale a map, and its channels after them."""
    if scale == 4:
        half = dim // 2
        up = [nn.ConvTranspose2d(dim, half, 2, 2), LayerNorm2d(half), nn.GELU()]
        return [*up, nn.ConvTranspose2d(half, half // 2, 2, 2)], half // 2
    if scale == 2:
        return [nn.ConvTranspose2d(dim, dim // 2, 2, 2)], dim // 2
    if scale == 1:
        return [], dim
    if scale == 0.5:
        return [nn.MaxPool2d(2)], dim
    raise ValueError(f"`scales` has {scale}: expected 4, 2, 1 or 0.5")


@MODELS.register_module(name="SimpleFeaturePyramid")
class SimpleFeaturePyramid(BaseModule):
    """Levels of other strides from a plain backbone's last map (Li et al., ViTDet, https://arxiv.org/abs/2203.16527).

    Args:
        in_channels: of the map.
        out_channels: of every level.
        scales: of the levels, relative to the map: 4, 2, 1 or 0.5.
        num_outs: levels in all; those beyond `scales` are subsampled from the last.

    Shapes: a sequence whose last map is (batch, in_channels, h, w) in, `num_outs` maps (batch, out_channels, h * scale,
    w * scale) out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scales: tuple[float, ...] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        if num_outs < len(scales):
            raise ValueError(f"`num_outs` is {num_outs}: expected at least {len(scales)}, the number of scales")
        self.extra = num_outs - len(scales)
        self.levels = nn.ModuleList()
        for scale in scales:
            layers, dim = _rescaled(in_channels, scale)
            layers += [nn.Conv2d(dim, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
            layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
            self.levels.append(nn.Sequential(*layers))

    def forward(self, maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The levels, finest first."""
        levels = [level(maps[-1]) for level in self.levels]
        for _ in range(self.extra):
            levels.append(levels[-1][:, :, ::2, ::2])
        return tuple(levels)
