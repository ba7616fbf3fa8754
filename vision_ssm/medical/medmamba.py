"""MedMamba: a backbone whose blocks convolve one half of the channels and scan the other; for classification.

Paper: Yue and Li, MedMamba: Vision Mamba for Medical Image Classification, arXiv 2403.03849
Reference code: https://github.com/YubiaoYue/MedMamba (no licence file).

It is a backbone as those of `vision_ssm.models`, with `features_only` and `forward_intermediates`; the reference has no
feature maps. On odd maps the last row or column is dropped before the merging, as in the reference.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import VSS_NAMES, fit_shapes, rename, unwrap
from ..layers import SS2D
from ..models._base import build
from ..models._initialisation import init_linear
from ..models._staged import Stage, StagedBackbone
from ..models.vmamba import PatchMerging, patch_stem
from ._base import network_cfg

__all__ = ["MedMamba"]


class ConvSSMBlock(nn.Module):
    """x + shuffle(conv(first half), mixer(norm(second half))); (batch, height, width, dim).

    The shuffle takes channels from both halves in turn. The convolutions, each after a batch norm, end with a ReLU.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        half = dim // 2
        self.conv = nn.Sequential(
            nn.BatchNorm2d(half, **dd),
            nn.Conv2d(half, half, 3, padding=1, **dd),
            nn.BatchNorm2d(half, **dd),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, **dd),
            nn.BatchNorm2d(half, **dd),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 1, **dd),
            nn.ReLU(inplace=True),
        )
        self.norm = nn.LayerNorm(half, **dd)
        self.mixer = SS2D(half, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=-1)
        left = self.conv(left.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        right = self.drop_path(self.mixer(self.norm(right)))
        return x + torch.stack([left, right], dim=-1).flatten(-2)


class MedMamba(StagedBackbone):
    """MedMamba for any input size from 32; strides 4, 8, 16, 32. No norm stands before the pooling.

    Args:
        depths: blocks of each stage.
        dim: width of the first stage, even; it doubles with each stage.
        drop_path_rate: stochastic depth of the last block, growing linearly; of the scanned half alone.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 4, 2),
        dim: int = 96,
        in_chans: int = 3,
        num_classes: int = 6,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        dims = [dim * 2**i for i in range(len(depths))]
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = [
            Stage(
                PatchMerging(dims[i - 1], odd="crop", **dd) if i else nn.Identity(),
                [ConvSSMBlock(dims[i], rate, **dd) for rate in rates[i]],
            )
            for i in range(len(depths))
        ]
        super().__init__(
            patch_stem(in_chans, dim, **dd), stages, nn.Identity(), dims, smallest=2 ** (len(depths) + 1),
            in_chans=in_chans, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate, **dd,
        )  # fmt: skip
        self.init_weights(needs_reset=False)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init_linear(module)


_NAMES = [
    (r"^patch_embed\.proj\.", "stem.0."),
    (r"^patch_embed\.norm\.", "stem.1."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.conv33conv33conv11\.", ".conv."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    *VSS_NAMES,
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A MedMamba state dict of the reference in this package's names; ours unchanged."""
    state_dict = unwrap(state_dict)
    if not any(name.startswith(("layers.", "patch_embed.")) for name in state_dict):
        return state_dict
    return fit_shapes(rename(state_dict, _NAMES), model.state_dict())


_VARIANTS = {
    "medmamba_tiny": dict(depths=(2, 2, 4, 2)),
    "medmamba_small": dict(depths=(2, 2, 8, 2)),
    "medmamba_base": dict(depths=(2, 2, 12, 2), dim=128),
    "medmamba_test": dict(depths=(1, 1, 2, 1), dim=16),
}


def _cfg(name: str) -> dict:
    return network_cfg(
        facts("medmamba", name.replace("_test", "_tiny")), num_classes=6, input_size=(3, 224, 224), pool_size=(7, 7),
        crop_pct=1.0, crop_mode="squash", interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        first_conv="stem.0", classifier="head.fc",
    )  # fmt: skip


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg(name) for name in _VARIANTS})


def _create(name: str, pretrained: bool, **kwargs) -> MedMamba:
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return build(MedMamba, name, pretrained, feature_cfg, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def medmamba_tiny(pretrained: bool = False, **kwargs) -> MedMamba:
    """MedMamba-T."""
    return _create("medmamba_tiny", pretrained, **kwargs)


@register_model
def medmamba_small(pretrained: bool = False, **kwargs) -> MedMamba:
    """MedMamba-S: 8 blocks in the third stage."""
    return _create("medmamba_small", pretrained, **kwargs)


@register_model
def medmamba_base(pretrained: bool = False, **kwargs) -> MedMamba:
    """MedMamba-B: 12 blocks in the third stage, width 128."""
    return _create("medmamba_base", pretrained, **kwargs)


@register_model
def medmamba_test(pretrained: bool = False, **kwargs) -> MedMamba:
    """A small MedMamba for fast tests."""
    return _create("medmamba_test", pretrained, **kwargs)
