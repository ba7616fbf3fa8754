"""LightM-UNet: a U-Net of Mamba layers with few convolutions, in 2D and 3D.

Paper: Liao et al., LightM-UNet: Mamba Assists in Lightweight UNet for Medical Image Segmentation, arXiv 2403.05246
Reference code: https://github.com/MrBlankness/LightM-UNet (Apache-2.0).

These are the networks of the code since 29 March 2024, with the trainer's arguments. They have 5.0 M parameters; the
paper states 1.09 M. The mixers are plain Mamba layers in one direction.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import Mamba
from ._base import DenseNetwork, create, network_cfg, run
from ._conv import ConvLayers
from ._tokens import as_map, as_tokens, in_full_precision

__all__ = ["LightMUNet"]

_GROUPS = 8


def _group_norm(channels: int, **dd) -> nn.GroupNorm:
    if channels % _GROUPS:
        raise ValueError(f"{channels} channels: expected a multiple of {_GROUPS}, for as many groups of the norm")
    return nn.GroupNorm(_GROUPS, channels, **dd)


def _separable(layers: ConvLayers, in_chans: int, out_chans: int, kernel: int = 3) -> nn.Sequential:
    """Depthwise convolution, then 1x1."""
    depthwise = layers.conv(in_chans, in_chans, kernel, groups=in_chans)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=layers.conv(in_chans, out_chans, 1)))


class MambaProjection(nn.Module):
    """proj(norm(mixer(norm(t)) + scale t)) over the positions t of a map; both norms are one layer."""

    def __init__(self, in_chans: int, out_chans: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(in_chans, **dd)
        self.mixer = Mamba(in_chans, **dd)
        self.skip_scale = nn.Parameter(torch.ones(1, **dd))
        self.proj = nn.Linear(in_chans, out_chans, **dd)

    def reset_parameters(self) -> None:
        """A skip of weight 1."""
        nn.init.ones_(self.skip_scale)

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        tokens = as_tokens(x)
        tokens = torch.addcmul(self.mixer(self.norm(tokens)), self.skip_scale, tokens)
        return as_map(self.proj(self.norm(tokens)), x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return in_full_precision(self._mix, x)


class MambaBlock(nn.Module):
    """x + mamba2(relu(norm2(mamba1(relu(norm1(x))))))."""

    def __init__(self, channels: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = _group_norm(channels, **dd)
        self.mamba1 = MambaProjection(channels, channels, **dd)
        self.norm2 = _group_norm(channels, **dd)
        self.mamba2 = MambaProjection(channels, channels, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mamba1(F.relu(self.norm1(x)))
        return x + self.mamba2(F.relu(self.norm2(y)))


class ConvBlock(nn.Module):
    """relu(norm2(conv(relu(norm1(x))) + scale x)) with a separable convolution."""

    def __init__(self, layers: ConvLayers, channels: int):
        super().__init__()
        self.norm1 = _group_norm(channels, **layers.dd)
        self.conv = _separable(layers, channels, channels)
        self.skip_scale = nn.Parameter(torch.ones(1, **layers.dd))
        self.norm2 = _group_norm(channels, **layers.dd)

    def reset_parameters(self) -> None:
        """A skip of weight 1."""
        nn.init.ones_(self.skip_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(F.relu(self.norm1(x)))
        return F.relu(self.norm2(torch.addcmul(y, self.skip_scale, x)))


class EncoderStage(nn.Module):
    """A Mamba layer that doubles the channels and 2x max pooling (none at full resolution), then Mamba blocks."""

    grad_checkpointing = False

    def __init__(self, layers: ConvLayers, in_chans: int, out_chans: int, depth: int):
        super().__init__()
        self.down = MambaProjection(in_chans, out_chans, **layers.dd) if in_chans != out_chans else None
        self.pool = nn.MaxPool2d(2) if layers.dims == 2 else nn.MaxPool3d(2)
        self.blocks = nn.ModuleList(MambaBlock(out_chans, **layers.dd) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.down is not None:
            x = self.pool(run(self.down, self.grad_checkpointing, x))
        for block in self.blocks:
            x = run(block, self.grad_checkpointing, x)
        return x


class DecoderStage(nn.Module):
    """1x1 convolution that halves the channels, linear upsampling, sum with the skip, convolutional blocks."""

    grad_checkpointing = False

    def __init__(self, layers: ConvLayers, in_chans: int, out_chans: int, depth: int):
        super().__init__()
        self.mode = "bilinear" if layers.dims == 2 else "trilinear"
        self.reduce = layers.conv(in_chans, out_chans, 1)
        self.blocks = nn.ModuleList(ConvBlock(layers, out_chans) for _ in range(depth))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(self.reduce(x), scale_factor=2.0, mode=self.mode) + skip
        for block in self.blocks:
            x = run(block, self.grad_checkpointing, x)
        return x


class LightMUNet(DenseNetwork):
    """LightM-UNet.

    Args:
        dims: 2 or 3.
        in_chans, num_classes: channels of the input and of the output.
        features: channels at full resolution, a multiple of 8; each stage after the first doubles them.
        depths: Mamba blocks of each encoder stage.
        decoder_depths: blocks of each decoder stage, deepest first.

    Shapes: (batch, in_chans, *sides) to (batch, num_classes, *sides), raw logits; each side is a multiple of 2 for
    each stage after the first (8 for four stages). The first stages scan every pixel (voxel).
    """

    heads = ("head.",)

    def __init__(
        self,
        dims: int = 3,
        in_chans: int = 1,
        num_classes: int = 3,
        features: int = 32,
        depths: Sequence[int] = (1, 2, 2, 4),
        decoder_depths: Sequence[int] = (1, 1, 1),
        device=None,
        dtype=None,
    ):
        super().__init__()
        if len(decoder_depths) != len(depths) - 1:
            raise ValueError(f"`decoder_depths` has {len(decoder_depths)} entries: expected {len(depths) - 1}")
        layers = ConvLayers(dims, bias=False, device=device, dtype=dtype)
        self.in_chans, self.num_classes, self.dims = in_chans, num_classes, dims
        self.multiples = [2 ** (len(depths) - 1)] * dims
        widths = [features * 2**i for i in range(len(depths))]
        self.stem = _separable(layers, in_chans, features)
        self.stages = nn.ModuleList(
            EncoderStage(layers, *sizes) for sizes in zip([features, *widths], widths, depths, strict=False)
        )
        self.decoder = nn.ModuleList(
            DecoderStage(layers, *sizes) for sizes in zip(widths[:0:-1], widths[-2::-1], decoder_depths)
        )
        self.norm = _group_norm(features, **layers.dd)
        self.head = _separable(layers.like(bias=True), features, num_classes, kernel=1)
        self.init_weights(needs_reset=False)

    def get_classifier(self) -> nn.Module:
        """The layers that end in the classes."""
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_input(x)
        x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        for stage, skip in zip(self.decoder, skips[-2::-1]):
            x = stage(x, skip)
        return self.head(F.relu(self.norm(x)))


_NAMES = [
    (r"^convInit\.0\.conv\.", "stem.depthwise."),
    (r"^convInit\.1\.conv\.", "stem.pointwise."),
    (r"^down_layers\.(\d+)\.0\.0\.", r"stages.\1.down."),
    (r"^down_layers\.(\d+)\.(\d+)\.", lambda m: f"stages.{m[1]}.blocks.{int(m[2]) - 1}."),
    (r"^(stages\.\d+\.blocks\.\d+)\.conv([12])\.", r"\1.mamba\2."),
    (r"\.mamba\.", ".mixer."),
    (r"^up_samples\.(\d+)\.0\.conv\.", r"decoder.\1.reduce."),
    (r"^up_layers\.(\d+)\.(\d+)\.", r"decoder.\1.blocks.\2."),
    (r"\.conv\.0\.conv\.", ".conv.depthwise."),
    (r"\.conv\.1\.conv\.", ".conv.pointwise."),
    (r"^conv_final\.0\.", "norm."),
    (r"^conv_final\.2\.0\.conv\.", "head.depthwise."),
    (r"^conv_final\.2\.1\.conv\.", "head.pointwise."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A LightM-UNet state dict (nnU-Net's checkpoint files, too) in this package's names."""
    state_dict = unwrap(state_dict)
    if not any(name.startswith("convInit.") for name in state_dict):
        return state_dict
    return stack_paths(rename(state_dict, _NAMES), mamba_parameters())


_VARIANTS = {
    "lightm_unet_2d": dict(dims=2, in_chans=3, num_classes=2),
    "lightm_unet_3d": dict(dims=3, in_chans=1, num_classes=3),
    "lightm_unet_2d_test": dict(dims=2, in_chans=3, num_classes=2, features=8, depths=(1, 1, 1), decoder_depths=(1, 1)),
    "lightm_unet_3d_test": dict(dims=3, in_chans=1, num_classes=3, features=8, depths=(1, 1, 1), decoder_depths=(1, 1)),
}


def _cfg(name: str) -> dict:
    known = facts("lightm_unet", name.removesuffix("_test"))
    classes = _VARIANTS[name]["num_classes"]
    return network_cfg(known, num_classes=classes, first_conv="stem.pointwise", classifier="head.pointwise")


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg(name) for name in _VARIANTS})


def _create(name: str, pretrained: bool, **kwargs) -> LightMUNet:
    return create(LightMUNet, name, pretrained, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def lightm_unet_2d(pretrained: bool = False, **kwargs) -> LightMUNet:
    """LightM-UNet for images, arguments of LungXray."""
    return _create("lightm_unet_2d", pretrained, **kwargs)


@register_model
def lightm_unet_3d(pretrained: bool = False, **kwargs) -> LightMUNet:
    """LightM-UNet for volumes, arguments of LiverCT."""
    return _create("lightm_unet_3d", pretrained, **kwargs)


@register_model
def lightm_unet_2d_test(pretrained: bool = False, **kwargs) -> LightMUNet:
    """A small LightM-UNet for fast tests on images."""
    return _create("lightm_unet_2d_test", pretrained, **kwargs)


@register_model
def lightm_unet_3d_test(pretrained: bool = False, **kwargs) -> LightMUNet:
    """A small LightM-UNet for fast tests on volumes."""
    return _create("lightm_unet_3d_test", pretrained, **kwargs)
