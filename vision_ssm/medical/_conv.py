"""Convolutional blocks that the networks share, in two and three dimensions."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = [
    "ConvLayers", "InstanceNorm2d", "InstanceNorm3d", "ResidualBlock", "UpBlock", "avg_pool3d", "init_convolution",
]  # fmt: skip

Size = int | Sequence[int]


def avg_pool3d(x: torch.Tensor, size: Size) -> torch.Tensor:
    """`F.avg_pool3d` over blocks, also in 16 bits on CPUs, which PyTorch's own has not."""
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        return F.avg_pool3d(x.float(), size).to(x.dtype)
    return F.avg_pool3d(x, size)


class _AvgPool3d(nn.AvgPool3d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return avg_pool3d(x, self.kernel_size)


class _EmptyBatches(nn.Module):
    """An instance norm that takes empty batches, which PyTorch's refuses where it has a scale."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.affine and not torch.jit.is_tracing() and x.shape[0] == 0:
            scale, shift = (p.unflatten(0, (-1,) + (1,) * (x.dim() - 2)) for p in (self.weight, self.bias))
            return x * scale + shift
        return super().forward(x)


class InstanceNorm2d(_EmptyBatches, nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` for any batch."""


class InstanceNorm3d(_EmptyBatches, nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` for any batch."""


@dataclass(frozen=True)
class ConvLayers:
    """Makes the layers of one style: dimensions, norm, activation, bias.

    Args:
        dims: 2 or 3.
        norm: "instance" (as nnU-Net, with scale and shift), "instance_plain" (as MONAI's default, without) or "batch".
        slope: of the leaky ReLU; 0 for ReLU.
        bias: of the convolutions.
    """

    dims: int
    norm: Literal["instance", "instance_plain", "batch"] = "instance"
    slope: float = 0.01
    bias: bool = True
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self):
        if self.dims not in (2, 3):
            raise ValueError(f"`dims` is {self.dims}: expected 2 or 3")

    @property
    def dd(self) -> dict:
        """Device and dtype of the parameters."""
        return {"device": self.device, "dtype": self.dtype}

    def like(self, **changes) -> "ConvLayers":
        """Another style."""
        return replace(self, **changes)

    def conv(
        self, in_chans: int, out_chans: int, kernel: Size = 3, stride: Size = 1, bias: bool | None = None, groups=1
    ):
        """Convolution that keeps the sides (divided by the stride, rounded up)."""
        padding = kernel // 2 if isinstance(kernel, int) else tuple(size // 2 for size in kernel)
        kind = nn.Conv2d if self.dims == 2 else nn.Conv3d
        kernel, stride = (size if isinstance(size, int) else tuple(size) for size in (kernel, stride))
        bias = self.bias if bias is None else bias
        return kind(in_chans, out_chans, kernel, stride, padding, groups=groups, bias=bias, **self.dd)

    def up_conv(self, in_chans: int, out_chans: int, stride: Size = 2, bias: bool | None = None) -> nn.Module:
        """Transposed convolution whose kernel is its stride."""
        kind = nn.ConvTranspose2d if self.dims == 2 else nn.ConvTranspose3d
        stride = stride if isinstance(stride, int) else tuple(stride)
        return kind(in_chans, out_chans, stride, stride, bias=self.bias if bias is None else bias, **self.dd)

    def make_norm(self, channels: int) -> nn.Module:
        """Norm of the style."""
        if self.norm == "batch":
            return (nn.BatchNorm2d if self.dims == 2 else nn.BatchNorm3d)(channels, **self.dd)
        kind = InstanceNorm2d if self.dims == 2 else InstanceNorm3d
        return kind(channels, affine=self.norm == "instance", **self.dd)

    def act(self) -> nn.Module:
        """Activation of the style, in place: it always follows a norm or a sum."""
        return nn.LeakyReLU(self.slope, inplace=True) if self.slope else nn.ReLU(inplace=True)

    def pool(self, stride: Size) -> nn.Module:
        """Average over blocks of `stride`."""
        stride = stride if isinstance(stride, int) else tuple(stride)
        return (nn.AvgPool2d if self.dims == 2 else _AvgPool3d)(stride, stride)

    def conv_norm_act(self, in_chans: int, out_chans: int, kernel: Size = 3, stride: Size = 1) -> nn.Sequential:
        """Convolution, norm, activation."""
        return nn.Sequential(self.conv(in_chans, out_chans, kernel, stride), self.make_norm(out_chans), self.act())


def init_convolution(module: nn.Module) -> None:
    """nnU-Net's start (its `InitWeights_He`), for networks that it builds from a plan in their references.

    A convolution's weight is drawn from He's normal distribution for a slope of 0.01, its bias is 0; other modules stay
    as they are.
    """
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ResidualBlock(nn.Module):
    """act(norm(conv(act(norm(conv(x))))) + skip(x)), the two-layer block of ResNet, nnU-Net, MONAI and U-Mamba.

    Args:
        layers: style.
        in_chans, out_chans: channels.
        kernel, stride: of the first convolution; the second has stride 1.
        skip: "conv" (1x1 with the stride and a bias), "conv_norm" (1x1 with the stride, without bias, then norm),
            "pool_conv_norm" (average pooling if strided, then "conv_norm" if the channels change; ResNet-D) or
            "identity". "conv_norm" is the identity where neither stride nor channels change.
    """

    def __init__(
        self,
        layers: ConvLayers,
        in_chans: int,
        out_chans: int,
        kernel: Size = 3,
        stride: Size = 1,
        skip: Literal["conv", "conv_norm", "pool_conv_norm", "identity"] = "conv_norm",
    ):
        super().__init__()
        self.conv1 = layers.conv(in_chans, out_chans, kernel, stride)
        self.norm1 = layers.make_norm(out_chans)
        self.conv2 = layers.conv(out_chans, out_chans, kernel)
        self.norm2 = layers.make_norm(out_chans)
        self.act = layers.act()
        strided = (stride if isinstance(stride, int) else max(stride)) > 1
        self.skip = _skip(layers, in_chans, out_chans, stride, strided, skip)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the skip."""
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.branch(x) + self.skip(x))


def _skip(layers: ConvLayers, in_chans: int, out_chans: int, stride: Size, strided: bool, kind: str) -> nn.Module:
    if kind == "conv":
        return layers.conv(in_chans, out_chans, 1, stride, bias=True)
    if kind == "identity":
        return nn.Identity()
    parts = {}
    if kind == "pool_conv_norm" and strided:
        parts["pool"] = layers.pool(stride)
        stride, strided = 1, False
    if strided or in_chans != out_chans:
        parts["conv"] = layers.conv(in_chans, out_chans, 1, stride, bias=False)
        parts["norm"] = layers.make_norm(out_chans)
    return nn.Sequential(OrderedDict(parts))


class UpBlock(nn.Module):
    """Transposed convolution, concatenation with the skip connection, residual block (UNETR's decoder).

    Source: Hatamizadeh et al., UNETR, arXiv 2103.10504; MONAI's `UnetrUpBlock`.
    """

    def __init__(self, layers: ConvLayers, in_chans: int, out_chans: int, skip_chans: int | None = None):
        super().__init__()
        self.up = layers.up_conv(in_chans, out_chans)
        self.block = ResidualBlock(layers, out_chans + (out_chans if skip_chans is None else skip_chans), out_chans)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.block(torch.cat([self.up(x), skip], dim=1))
