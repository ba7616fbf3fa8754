"""The networks that train beside Mamba-UNet: the U-Net of Semi-Mamba-UNet and, with it, Swin-UNet of Weak-Mamba-UNet.

Papers: Ma and Wang, Semi-Mamba-UNet, Knowledge-Based Systems 300, 2024; Wang and Ma, Weak-Mamba-UNet, arXiv 2402.10887;
Cao et al., Swin-Unet, arXiv 2105.05537
Reference code: https://github.com/ziyangwang007/Mamba-UNet (Apache-2.0).

`cosupervision` has the losses that join them.
"""

import math
from collections.abc import MutableMapping, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformerBlock

from ..cards import facts
from ..checkpoints import CheckpointError, rename, unwrap
from ..models._initialisation import init_truncated
from ..models._positions import fit_positions, stated_grid
from ..scan import fix_in_trace
from ._base import DenseNetwork, create, network_cfg, run
from ._conv import ConvLayers
from ._vss import drop_path_rates
from .mamba_unet import ExpandUNet, expand_unet_names

__all__ = ["SwinUNet", "UNet"]


def _convs(layers: ConvLayers, in_chans: int, out_chans: int, drop: float = 0.0) -> nn.Sequential:
    """Twice convolution, batch norm, leaky ReLU; dropout between the two."""
    first, second = layers.conv_norm_act(in_chans, out_chans), layers.conv_norm_act(out_chans, out_chans)
    return nn.Sequential(*first, nn.Dropout(drop), *second)


class _UNetDecoder(nn.Module):
    """At each level a 1x1 convolution, bilinear upsampling with aligned corners, the skip before it, convolutions."""

    grad_checkpointing = False

    def __init__(self, layers: ConvLayers, features: Sequence[int]):
        super().__init__()
        pairs = list(zip(features[:0:-1], features[-2::-1]))
        self.projs = nn.ModuleList(layers.conv(*pair, kernel=1) for pair in pairs)
        self.stages = nn.ModuleList(_convs(layers, 2 * width, width) for _, width in pairs)

    def forward(self, x: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        for proj, stage, skip in zip(self.projs, self.stages, reversed(skips)):
            x = F.interpolate(proj(x), scale_factor=2.0, mode="bilinear", align_corners=True)
            x = run(stage, self.grad_checkpointing, torch.cat([skip, x], dim=1))
        return x


class UNet(DenseNetwork):
    """The convolutional U-Net of Semi-Mamba-UNet and Weak-Mamba-UNet.

    Args:
        features: of each level, full resolution first.
        drops: dropout of each encoder level.
        in_chans, num_classes: channels of the image and of the output.

    Shapes: (batch, in_chans, height, width) to (batch, num_classes, height, width); sides are multiples of 16.
    """

    dims = 2

    def __init__(
        self,
        features: Sequence[int] = (16, 32, 64, 128, 256),
        drops: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        in_chans: int = 1,
        num_classes: int = 4,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if len(drops) != len(features):
            raise ValueError(f"`drops` has {len(drops)} entries: expected {len(features)}, as `features`")
        layers = ConvLayers(2, "batch", device=device, dtype=dtype)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.multiples = [2 ** (len(features) - 1)] * 2
        self.stages = nn.ModuleList(
            _convs(layers, *sizes) for sizes in zip([in_chans, *features[:-1]], features, drops)
        )
        self.decoder = _UNetDecoder(layers, features)
        self.head = layers.conv(features[0], num_classes)

    def get_classifier(self) -> nn.Module:
        """The convolution to classes."""
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_input(x)
        maps = []
        for i, stage in enumerate(self.stages):
            x = run(stage, self.grad_checkpointing, F.max_pool2d(x, 2) if i else x)
            maps.append(x)
        return self.head(self.decoder(x, maps[:-1]))


class _SwinBlock(SwinTransformerBlock):
    """timm's block, also for an empty batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if not torch.jit.is_tracing() and x.shape[0] == 0 else super().forward(x)


class SwinUNet(ExpandUNet):
    """Swin-UNet, the transformer of Weak-Mamba-UNet.

    Args:
        img_size: height and width of the images, or one number for both; multiples of 32. The networks of different
            sizes have the same parameters where every map is at least as large as a window.
        depths: blocks of each stage, in encoder and decoder.
        dim: width of the first stage; it doubles with each stage.
        num_heads: of each stage.
        window_size: of the attention; the windows of every second block are shifted by half of it.
        in_chans, num_classes, drop_path_rate: as of `MambaUNet`.
    """

    mirrored = None

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        depths: Sequence[int] = (2, 2, 2, 2),
        dim: int = 96,
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        in_chans: int = 3,
        num_classes: int = 4,
        drop_path_rate: float = 0.2,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        multiple = 2 ** (len(depths) + 1)
        if any(side % multiple for side in sides):
            raise ValueError(f"`img_size` is {sides}: expected multiples of {multiple}")
        rates = drop_path_rates(drop_path_rate, depths)

        def blocks(i: int) -> list[nn.Module]:
            grid = tuple(side // (4 * 2**i) for side in sides)
            return [
                _SwinBlock(
                    dim * 2**i, grid, num_heads[i], window_size=window_size, shift_size=j % 2 * (window_size // 2),
                    drop_path=rate, **dd,
                )
                for j, rate in enumerate(rates[i])
            ]  # fmt: skip

        stages = range(len(depths))
        super().__init__(
            [blocks(i) for i in stages], [blocks(i) for i in stages[-2::-1]], dim, in_chans, num_classes, **dd
        )
        self.img_size, self.window_size = sides, window_size

    def table_grid(self) -> tuple[int, ...]:
        """The image size, from which the windows of the relative positions follow."""
        return self.img_size

    def fit_tables(self, state_dict: MutableMapping[str, torch.Tensor], prefix: str = "") -> None:
        """Refuse tables for other windows, also those of as many rows; windows are cut to maps that are smaller."""
        stated = stated_grid(state_dict, prefix, 2)
        for name, block in self.named_modules():
            if not isinstance(block, _SwinBlock):
                continue
            table, windows = state_dict.get(f"{prefix}{name}.attn.relative_position_bias_table"), block.window_size
            if stated is not None:
                stride = self.img_size[0] // block.input_resolution[0]
                windows = tuple(min(side // stride, self.window_size) for side in stated)
            elif table is not None and math.isqrt(len(table)) ** 2 == len(table):  # a square window, as published
                windows = ((math.isqrt(len(table)) + 1) // 2,) * 2
            if windows != block.window_size:
                raise CheckpointError(
                    f"{prefix}{name} of the checkpoint has windows of {windows[0]}x{windows[1]}, expected "
                    f"{block.window_size[0]}x{block.window_size[1]}: make the network with the `img_size` that the "
                    "checkpoint is for"
                )

    def _init_layer(self, module: nn.Module, name: str) -> None:
        super()._init_layer(module, name)
        if hasattr(module, "relative_position_bias_table"):
            init_truncated(module.relative_position_bias_table)

    def nominal_sides(self) -> tuple[int, ...]:
        """The size that the windows are for."""
        return self.img_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if tuple(x.shape[2:]) != self.img_size:
            raise ValueError(f"input of {tuple(x.shape[2:])}: expected {self.img_size}, the network's `img_size`")
        fix_in_trace(x.shape[2:], "images")
        return super().forward(x)


_UNET_NAMES = [
    (r"^encoder\.in_conv\.conv_conv\.", "stages.0."),
    (r"^encoder\.down(\d)\.maxpool_conv\.1\.conv_conv\.", r"stages.\1."),
    (r"^decoder\.up(\d)\.conv1x1\.", lambda m: f"decoder.projs.{int(m[1]) - 1}."),
    (r"^decoder\.up(\d)\.conv\.conv_conv\.", lambda m: f"decoder.stages.{int(m[1]) - 1}."),
    (r"^decoder\.out_conv\.", "head."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A partner's state dict in this package's names; ours unchanged.

    The masks and position indices that files of Swin-UNet hold are left out: they follow from the sizes.
    """
    state_dict = unwrap(state_dict)
    if isinstance(model, UNet):
        return rename(state_dict, _UNET_NAMES)
    computed = ("attn_mask", "relative_position_index")
    kept = {k: v for k, v in state_dict.items() if not k.endswith(computed)}
    return fit_positions(expand_unet_names(kept, model), model)


_VARIANTS = {
    "unet_semi": {},
    "swin_unet_weak": {},
    "unet_semi_test": dict(features=(4, 8, 16, 24, 32)),
    "swin_unet_weak_test": dict(img_size=64, depths=(1, 1, 2, 1), dim=16, num_heads=(1, 2, 2, 4), window_size=4),
}


def _cfg(name: str) -> dict:
    found = facts("mamba_unet", name.removesuffix("_test"))
    layers = dict(first_conv="stages.0.0", classifier="head")
    if name.startswith("swin"):
        layers = dict(first_conv="encoder.stem.0", classifier="decoder.heads.3")
    chans, side = 3 if name.startswith("swin") else 1, _VARIANTS[name].get("img_size", 224)
    return network_cfg(found, num_classes=4, input_size=(chans, side, side), **layers)


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg(name) for name in _VARIANTS})


def _create(name: str, pretrained: bool, **kwargs) -> DenseNetwork:
    model_cls = SwinUNet if name.startswith("swin") else UNet
    return create(model_cls, name, pretrained, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def unet_semi(pretrained: bool = False, **kwargs) -> UNet:
    """U-Net of Semi-Mamba-UNet and Weak-Mamba-UNet."""
    return _create("unet_semi", pretrained, **kwargs)


@register_model
def swin_unet_weak(pretrained: bool = False, **kwargs) -> SwinUNet:
    """Swin-UNet of Weak-Mamba-UNet."""
    return _create("swin_unet_weak", pretrained, **kwargs)


@register_model
def unet_semi_test(pretrained: bool = False, **kwargs) -> UNet:
    """A small U-Net for fast tests."""
    return _create("unet_semi_test", pretrained, **kwargs)


@register_model
def swin_unet_weak_test(pretrained: bool = False, **kwargs) -> SwinUNet:
    """A small Swin-UNet for fast tests."""
    return _create("swin_unet_weak_test", pretrained, **kwargs)
