"""SegMamba: volumes encoded by Mamba along three orders of the voxels, decoded as in UNETR.

Paper: Xing et al., SegMamba: Long-range Sequential Modeling Mamba For 3D Medical Image Segmentation, MICCAI 2024,
arXiv 2401.13560
Reference code: https://github.com/ge-xing/SegMamba (no licence stated for the network).

As in the code, not the paper: the convolutional branches before each stage are added, not multiplied, and the Mamba
layer has no MLP.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn as nn
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import SelectiveSSM, TriOrientatedMamba
from ..models._initialisation import SSMInit, checked_ssm_init
from ._base import DenseNetwork, create, network_cfg, run
from ._conv import ConvLayers, ResidualBlock, UpBlock
from ._tokens import TokenMixer

__all__ = ["SegMamba"]


class _GatedSpatialConv(nn.Module):
    """GSC: two branches of convolutions (3x3x3 twice, 1x1x1), added, one more, and the input."""

    def __init__(self, layers: ConvLayers, dim: int):
        super().__init__()
        self.wide = nn.Sequential(layers.conv_norm_act(dim, dim), layers.conv_norm_act(dim, dim))
        self.narrow = layers.conv_norm_act(dim, dim, 1)
        self.out = layers.conv_norm_act(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(self.wide(x) + self.narrow(x))


class _Stage(nn.Sequential):
    """Mamba layers, one after another."""

    grad_checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = run(layer, self.grad_checkpointing, x)
        return x


class SegMamba(DenseNetwork):
    """SegMamba.

    Args:
        features: channels of the four stages, at strides 2, 4, 8 and 16.
        hidden: channels of the deepest skip.
        depths: Mamba layers of each stage.
        slices: pieces of the third scan in each stage. The published 64, 32, 16, 8 are the slices of a volume of 128;
            at another size they are not slices any more, but it is what trained weights expect.
        ssm_init: start of the steps along the second and third order. "reference": their bias starts as a linear
            layer's, around 0, so that steps are about softplus(0) = 0.69, as in the published training. This is an
            accident of its code, which gives Mamba's start to the forward order alone. "mamba": as the forward order's,
            0.001 to 0.1.

    Shapes: (batch, in_chans, depth, height, width) to (batch, num_classes, depth, height, width). Sides are multiples
    of 16, and the voxels of each stage's map a multiple of its slices (depth * height * width of 2^15 suffices).
    """

    heads = ("head.",)
    dims = 3
    multiples = (16, 16, 16)

    def __init__(
        self,
        features: Sequence[int] = (48, 96, 192, 384),
        hidden: int = 768,
        depths: Sequence[int] = (2, 2, 2, 2),
        slices: Sequence[int] = (64, 32, 16, 8),
        in_chans: int = 1,
        num_classes: int = 13,
        ssm_init: SSMInit = "reference",
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes, self.slices = in_chans, num_classes, tuple(slices)
        layers = ConvLayers(3, "instance_plain", slope=0.0, **dd)
        stem = nn.Conv3d(in_chans, features[0], 7, stride=2, padding=3, **dd)
        halve = [nn.Sequential(layers.make_norm(a), nn.Conv3d(a, b, 2, stride=2, **dd)) for a, b in pairwise(features)]
        self.downsamples = nn.ModuleList([stem, *halve])
        self.convs = nn.ModuleList(_GatedSpatialConv(layers, dim) for dim in features)
        self.stages = nn.ModuleList(
            _Stage(*(TokenMixer(dim, TriOrientatedMamba(dim, cut, **dd), residual=True, **dd) for _ in range(depth)))
            for dim, cut, depth in zip(features, slices, depths, strict=True)
        )
        self.taps = nn.ModuleList(
            nn.Sequential(layers.make_norm(d), layers.conv(d, 2 * d, 1), nn.GELU(), layers.conv(2 * d, d, 1))
            for d in features
        )
        unetr = layers.like(slope=0.01, bias=False)
        widths = [*features, hidden]
        self.skips = nn.ModuleList(
            ResidualBlock(unetr, a, b) for a, b in zip([in_chans, *features], widths, strict=True)
        )
        self.ups = nn.ModuleList(UpBlock(unetr, b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.last = ResidualBlock(unetr, features[0], features[0])
        self.head = nn.Conv3d(features[0], num_classes, 1, **dd)
        self.ssm_init = checked_ssm_init(ssm_init)
        self.init_weights(needs_reset=False)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        if isinstance(module, SelectiveSSM) and self.ssm_init == "reference":
            bound = module.dt_rank**-0.5
            with torch.no_grad():
                module.dt_bias[1:].uniform_(-bound, bound)

    def get_classifier(self) -> nn.Module:
        """The last convolution."""
        return self.head

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The encoder's four maps, after norm and MLP, at strides 2, 4, 8 and 16."""
        maps = []
        for downsample, conv, stage, tap in zip(self.downsamples, self.convs, self.stages, self.taps):
            x = stage(run(conv, self.grad_checkpointing, downsample(x)))
            maps.append(run(tap, self.grad_checkpointing, x))
        return maps

    def check_input(self, x: torch.Tensor) -> None:
        """Raise ValueError unless every stage's map can be cut into its slices."""
        super().check_input(x)
        for step, cut in zip((2, 4, 8, 16), self.slices):
            voxels = x.shape[2:].numel() // step**3
            if voxels % cut:
                raise ValueError(
                    f"input of {tuple(x.shape[2:])}: its map at stride {step} has {voxels} voxels, expected a multiple "
                    f"of {cut}, the `slices` there; sides whose product is a multiple of 2^15 fit, or choose `slices`"
                )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_input(x)
        skips = [run(skip, self.grad_checkpointing, y) for skip, y in zip(self.skips, [x, *self.encode(x)])]
        x = skips.pop()
        for up in self.ups:
            x = run(up, self.grad_checkpointing, x, skips.pop())
        return self.head(run(self.last, self.grad_checkpointing, x))


_NAMES = [
    (r"^vit\.downsample_layers\.0\.0\.", "downsamples.0."),
    (r"^vit\.downsample_layers\.", "downsamples."),
    (r"^vit\.gscs\.(\d)\.proj\.", r"convs.\1.wide.0.0."),
    (r"^vit\.gscs\.(\d)\.proj2\.", r"convs.\1.wide.1.0."),
    (r"^vit\.gscs\.(\d)\.proj3\.", r"convs.\1.narrow.0."),
    (r"^vit\.gscs\.(\d)\.proj4\.", r"convs.\1.out.0."),
    (r"^vit\.stages\.(\d)\.(\d)\.mamba\.", r"stages.\1.\2.mixer."),
    (r"^vit\.stages\.", "stages."),
    (r"^vit\.mlps\.(\d)\.fc1\.", r"taps.\1.1."),
    (r"^vit\.mlps\.(\d)\.fc2\.", r"taps.\1.3."),
    (r"^encoder(\d)\.layer\.", lambda m: f"skips.{int(m[1]) - 1}."),
    (r"^decoder1\.layer\.", "last."),
    (r"^decoder(\d)\.transp_conv\.conv\.", lambda m: f"ups.{5 - int(m[1])}.up."),
    (r"^decoder(\d)\.conv_block\.", lambda m: f"ups.{5 - int(m[1])}.block."),
    (r"\.conv([12])\.conv\.", r".conv\1."),
    (r"\.conv3\.conv\.", ".skip.conv."),
    (r"^out\.conv\.conv\.", "head."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A SegMamba state dict in this package's names; ours unchanged."""
    state_dict = unwrap(state_dict)
    if not any(name.startswith("vit.") for name in state_dict):
        return state_dict
    return stack_paths(rename(state_dict, _NAMES), mamba_parameters(("", "_b", "_s")))


_VARIANTS = {
    "segmamba": dict(),
    "segmamba_test": dict(features=(8, 12, 16, 24), hidden=32, depths=(1, 1, 1, 1), slices=(8, 4, 2, 1), num_classes=3),
}
default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": network_cfg(
            facts("segmamba", "segmamba"), num_classes=arguments.get("num_classes", 13),
            first_conv="downsamples.0", classifier="head",
        )
        for name, arguments in _VARIANTS.items()
    }
)  # fmt: skip


def _create(name: str, pretrained: bool, **kwargs) -> SegMamba:
    return create(SegMamba, name, pretrained, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def segmamba(pretrained: bool = False, **kwargs) -> SegMamba:
    """SegMamba for volumes."""
    return _create("segmamba", pretrained, **kwargs)


@register_model
def segmamba_test(pretrained: bool = False, **kwargs) -> SegMamba:
    """A small SegMamba for fast tests."""
    return _create("segmamba_test", pretrained, **kwargs)
