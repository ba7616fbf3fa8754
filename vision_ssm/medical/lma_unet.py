"""LMa-UNet (LKM-UNet): a residual U-Net whose encoder has a dilated and a pooled bidirectional Mamba after each stage.

Paper: Wang et al., LKM-UNet: Large Kernel Vision Mamba UNet for Medical Image Segmentation, arXiv 2403.07332
Reference code: https://github.com/wjh892521292/LMa-UNet (no licence stated).

As in the code, not the paper: the pixel layer does not scan windows of neighbouring pixels but lattices of pixels that
lie a window apart, one sequence for each offset.
"""

import inspect
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import TwinMamba
from ..scan import fix_in_trace
from ._base import create, drop_heads, network_cfg
from ._conv import ConvLayers, Size, avg_pool3d
from ._tokens import TokenMixer
from ._unet import MixerUNet, resnet_d_blocks, unet_names
from .plans import ABDOMEN_2D, ABDOMEN_3D, Plan, with_plan

__all__ = ["LMaUNet"]


class PixelMixer(TokenMixer):
    """Bidirectional Mamba over each lattice of positions that lie `period` apart, plus the input.

    A map that the period does not divide is scanned as one sequence, as in the reference.
    """

    def __init__(self, dim: int, period: Sequence[int], **dd):
        super().__init__(dim, TwinMamba(dim, **dd), residual=True, **dd)
        self.period = tuple(period)

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        sides = x.shape[2:]
        fix_in_trace(sides, "a map")
        if any(side % step for side, step in zip(sides, self.period)):
            return super()._mix(x)
        dims = len(sides)
        split = [size for side, step in zip(sides, self.period) for size in (side // step, step)]
        blocks, offsets = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
        lattices = x.reshape(*x.shape[:2], *split).permute(0, *offsets, 1, *blocks)
        shape = lattices.shape
        y = super()._mix(lattices.reshape(-1, *shape[1 + dims :])).view(shape)
        back = [0, 1 + dims, *(axis for i in range(dims) for axis in (2 + dims + i, 1 + i))]
        return y.permute(back).reshape(x.shape)


class WindowMixer(TokenMixer):
    """Bidirectional Mamba over the map pooled by `period`, upsampled again (nearest), plus the input.

    A map that the period does not divide is not pooled, as in the reference.
    """

    def __init__(self, dim: int, period: int, **dd):
        super().__init__(dim, TwinMamba(dim, **dd), **dd)
        self.period = period

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        fix_in_trace(x.shape[2:], "a map")
        if self.period == 1 or any(side % self.period for side in x.shape[2:]):
            return x + super()._mix(x)
        pool = F.avg_pool2d if x.dim() == 4 else avg_pool3d
        y = super()._mix(pool(x, self.period))
        return x + F.interpolate(y, size=x.shape[2:], mode="nearest")


class LMaUNet(MixerUNet):
    """LMa-UNet.

    Args:
        dims: 2 or 3.
        window: sides of the pixel layer's smallest period, which doubles at every second stage towards full
            resolution. The published (5, 5) and (5, 7, 6) fit patches of 320x320 and 40x224x192 alone: on others
            every pixel layer scans the whole map, without a word in the reference. Choose the sides of the deepest map.
        features, kernels, strides, depths, decoder_depths, deep_supervision: as in `UMambaV1`.
    """

    zero_last_norms = True

    def __init__(
        self,
        dims: int = 3,
        window: Sequence[int] | None = None,
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        kernels: int | Sequence[Size] | None = None,
        strides: int | Sequence[Size] | None = None,
        depths: int | Sequence[int] | None = None,
        decoder_depths: int | Sequence[int] | None = None,
        in_chans: int = 1,
        num_classes: int = 14,
        deep_supervision: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        window = tuple(window or ((5, 5) if dims == 2 else (5, 7, 6)))
        if len(window) != dims:
            raise ValueError(f"`window` is {window}: expected {dims} numbers")
        layers = ConvLayers(dims, **dd)
        plan = Plan.complete(dims, features, kernels, strides, depths, decoder_depths)
        stages = len(features)
        factors = [2 ** ((stages - i + 1) // 2 - 1) for i in range(stages)]
        mixers = [
            nn.Sequential(PixelMixer(width, [factor * side for side in window], **dd), WindowMixer(width, factor, **dd))
            for width, factor in zip(features, factors)
        ]
        super().__init__(
            layers.conv_norm_act(in_chans, features[0], plan.kernels[0]), resnet_d_blocks, layers, plan, mixers,
            in_chans, num_classes, transposed=True, last_skip=True, deep_supervision=deep_supervision,
        )  # fmt: skip
        self.init_weights(needs_reset=False)


_MIXERS = [
    (r"^encoder\.mamba_layers\.(\d+)\.", r"mixers.\1.0."),
    (r"^encoder\.w_mamba_layers\.(\d+)\.", r"mixers.\1.1."),
    (r"^(mixers\.\d+\.\d)\.(mamba_forw\.|mamba_backw\.|out_proj\.)", r"\1.mixer.\2"),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """An LMa-UNet (LKM-UNet) state dict, nnU-Net's checkpoint files too, in this package's names."""
    state_dict = unwrap(state_dict)
    if not any(name.startswith("encoder.") for name in state_dict):
        return drop_heads(state_dict, model)
    out = rename(unet_names(state_dict, model), _MIXERS)
    out = stack_paths(out, mamba_parameters(prefixes=("mamba_forw.", "mamba_backw.")))
    for name in list(out):
        if name.endswith("mixer.mamba_forw.in_proj.weight"):
            twin = name.replace("mamba_forw", "mamba_backw")
            out[name.replace("mamba_forw.", "")] = torch.cat([out.pop(name), out.pop(twin)])
    return out


_VARIANTS = {
    "lma_unet_2d": ABDOMEN_2D,
    "lma_unet_3d": ABDOMEN_3D,
    "lma_unet_2d_test": dict(dims=2, features=(8, 16, 32), window=(4, 4)),
    "lma_unet_3d_test": dict(dims=3, features=(8, 16, 32), window=(2, 2, 2)),
}


def _cfg(name: str) -> dict:
    size = dict(input_size=(1, 320, 320)) if name == "lma_unet_2d" else {}
    classifier = f"decoder.heads.{len(_VARIANTS[name]['features']) - 2}"
    card = facts("lma_unet", name.removesuffix("_test"))
    return network_cfg(card, num_classes=14, first_conv="stem.0", classifier=classifier, **size)


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg(name) for name in _VARIANTS})


def _create(name: str, pretrained: bool, plans=None, configuration: str | None = None, **kwargs) -> LMaUNet:
    """Build a variant; an nnU-Net plan replaces its sizes."""
    known = inspect.signature(LMaUNet).parameters.keys()
    arguments = with_plan(name, _VARIANTS[name], plans, configuration, known)
    return create(LMaUNet, name, pretrained, checkpoint_filter_fn, **(arguments | kwargs))


@register_model
def lma_unet_2d(pretrained: bool = False, **kwargs) -> LMaUNet:
    """LMa-UNet for images, plan of abdominal MR (320x320)."""
    return _create("lma_unet_2d", pretrained, **kwargs)


@register_model
def lma_unet_3d(pretrained: bool = False, **kwargs) -> LMaUNet:
    """LMa-UNet for volumes, plan of abdominal CT (40x224x192)."""
    return _create("lma_unet_3d", pretrained, **kwargs)


@register_model
def lma_unet_2d_test(pretrained: bool = False, **kwargs) -> LMaUNet:
    """A small LMa-UNet for fast tests on images."""
    return _create("lma_unet_2d_test", pretrained, **kwargs)


@register_model
def lma_unet_3d_test(pretrained: bool = False, **kwargs) -> LMaUNet:
    """A small LMa-UNet for fast tests on volumes."""
    return _create("lma_unet_3d_test", pretrained, **kwargs)
