"""Swin-UMamba: a U-Net on VMamba's encoder, with a convolutional decoder or, in the smaller D, one of VMamba's blocks.

Paper: Liu et al., Swin-UMamba: Mamba-based UNet with ImageNet-based pretraining, arXiv 2402.03302
Reference code: https://github.com/JiarunLiu/Swin-UMamba (Apache-2.0).

`load_encoder` starts either from Vanilla-VMamba-T, as the reference does. Swin-UMamba takes no patch embedding from it,
whose input differs, but for the bias of its norm; D takes the whole for images of three channels, else nothing of it.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn as nn
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import unwrap
from ..models.vmamba import norm2d
from ._base import SupervisedDecoder, create, drop_heads, network_cfg, run
from ._conv import ConvLayers, InstanceNorm2d, ResidualBlock, UpBlock, init_convolution
from ._vss import ExpandDecoder, VSSEncoder, VSSNetwork, drop_path_rates, vss_blocks, vss_names

__all__ = ["SwinUMamba", "SwinUMambaD"]


class _ConvDecoder(SupervisedDecoder):
    """Up blocks from the deepest map to full resolution, then a residual block.

    The heads are on the maps at strides 8, 4, 2 and 1; the deepest, at stride 16, has none.
    """

    grad_checkpointing = False

    def __init__(self, layers: ConvLayers, features: Sequence[int], num_classes: int, deep_supervision: bool):
        super().__init__()
        widths = [features[-1], *features[::-1]]
        self.ups = nn.ModuleList(UpBlock(layers, *sizes) for sizes in pairwise(widths))
        self.last = ResidualBlock(layers, features[0], features[0])
        head = partial(layers.conv, out_chans=num_classes, kernel=1, bias=True)
        self.make_heads([*widths[2:-1], features[0]], head, deep_supervision)

    def forward(self, x: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        maps = []
        for up, skip in zip(self.ups, reversed(skips)):
            x = run(up, self.grad_checkpointing, x, skip)
            maps.append(x)
        maps = [*maps[1:-1], run(self.last, self.grad_checkpointing, x)]
        if self._deep_supervision:
            return [head(x) for head, x in zip(self.heads, maps)][::-1]
        return self.heads[-1](maps[-1])


class _SwinUMambaBase(VSSNetwork):
    """What both networks do alike."""

    heads = ("decoder.heads.",)
    first_blocks = False

    def get_classifier(self) -> nn.Module:
        """The head at full resolution."""
        return self.decoder.heads[-1]


class SwinUMamba(_SwinUMambaBase):
    """Swin-UMamba.

    Args:
        depths: blocks of each encoder stage.
        dim: width of the first stage, at stride 4; it doubles with each stage.
        deep_supervision: return the logits at strides 1, 2, 4 and 8, in this order.
        in_chans, num_classes: channels of the image and of the output.
        drop_path_rate: stochastic depth of the deepest block, growing linearly.

    Shapes: (batch, in_chans, height, width) to (batch, num_classes, height, width); sides are multiples of 32.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 9, 2),
        dim: int = 96,
        deep_supervision: bool = False,
        in_chans: int = 1,
        num_classes: int = 14,
        drop_path_rate: float = 0.2,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        layers = ConvLayers(2, "instance_plain", bias=False, **dd)
        features = [dim * 2**i // 2 for i in range(len(depths) + 1)]  # from full resolution to the last but one stage
        self.in_chans, self.num_classes = in_chans, num_classes
        self.multiples = [2 ** (len(depths) + 1)] * 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, features[0], 7, stride=2, padding=3, **dd),
            InstanceNorm2d(features[0], affine=True, **dd),
        )
        patches = nn.Sequential(nn.Conv2d(features[0], dim, 2, stride=2, **dd), norm2d(dim, **dd))
        blocks = vss_blocks(features[1:], drop_path_rates(drop_path_rate, depths), **dd)
        self.encoder = VSSEncoder(blocks, dim, stem=patches, **dd)
        self.skips = nn.ModuleList(ResidualBlock(layers, *sizes) for sizes in zip([in_chans, *features[:-1]], features))
        self.decoder = _ConvDecoder(layers, features, num_classes, deep_supervision)
        self.init_weights(needs_reset=False)

    def vmamba_names(self) -> dict[str, str]:
        """The encoder but for the patch embedding, of which the bias of the norm alone is taken."""
        names = super().vmamba_names()
        return {k: v for k, v in names.items() if not k.startswith("encoder.stem.") or k == "encoder.stem.1.bias"}

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        x = self.prepare(x)
        stem = self.stem(x)
        _, outputs = self.encoder(stem)
        *maps, deepest = [y.permute(0, 3, 1, 2) for y in outputs]
        skips = [run(skip, self.decoder.grad_checkpointing, y) for skip, y in zip(self.skips, [x, stem, *maps])]
        return self.decoder(deepest, skips)


class SwinUMambaD(_SwinUMambaBase):
    """Swin-UMamba D (dagger): encoder on patches of 4x4 pixels, decoder of patch expanding and VMamba's blocks.

    Args:
        depths: blocks of each encoder stage; each level of the decoder has two.
        deep_supervision: return the logits at strides 1, 4, 8 and 16, in this order.
        dim, in_chans, num_classes, drop_path_rate: as of `SwinUMamba`; the decoder's blocks have stochastic depths of
            their own, which fall linearly to 0.

    Shapes: as of `SwinUMamba`.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 9, 2),
        dim: int = 96,
        deep_supervision: bool = False,
        in_chans: int = 1,
        num_classes: int = 14,
        drop_path_rate: float = 0.2,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        dims = [dim * 2**i for i in range(len(depths))]
        self.in_chans, self.num_classes = in_chans, num_classes
        self.multiples = [2 ** (len(depths) + 1)] * 2
        decoder_rates = [rates[::-1] for rates in drop_path_rates(drop_path_rate, [2] * (len(depths) - 1))[::-1]]
        self.encoder = VSSEncoder(vss_blocks(dims, drop_path_rates(drop_path_rate, depths), **dd), dim, in_chans, **dd)
        decoder_blocks = vss_blocks(dims[-2::-1], decoder_rates, **dd)
        self.decoder = ExpandDecoder(decoder_blocks, dim, num_classes, deep_supervision=deep_supervision, **dd)
        self.init_weights(needs_reset=False)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        if name.startswith("encoder."):  # the decoder's linear layers start as PyTorch's
            super()._init_layer(module, name)
        init_convolution(module)

    def vmamba_names(self) -> dict[str, str]:
        """The encoder, with the patch embedding if the images have three channels."""
        names = super().vmamba_names()
        return {k: v for k, v in names.items() if self.in_chans == 3 or not k.startswith("encoder.stem.")}

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        _, outputs = self.encoder(self.prepare(x))
        return self.decoder(outputs[-1], outputs[:-1])


def _names(model: nn.Module) -> list:
    last = len(model.decoder.heads) - 1
    d = [
        (r"^decoder\.expand_layers\.", "decoder.ups."),
        (r"^decoder\.concat_back_dim\.", "decoder.joins."),
        (r"^decoder\.seg_layers\.", "decoder.heads."),
    ]
    conv = [
        (r"^encoder(\d)\.layer\.", lambda m: f"skips.{int(m[1]) - 1}."),
        (r"^decoder1\.layer\.", "decoder.last."),
        (r"^decoder(\d)\.transp_conv\.conv\.", lambda m: f"decoder.ups.{last + 3 - int(m[1])}.up."),
        (r"^decoder(\d)\.conv_block\.", lambda m: f"decoder.ups.{last + 3 - int(m[1])}.block."),
        (r"\.conv([12])\.conv\.weight$", r".conv\1.weight"),
        (r"\.conv3\.conv\.weight$", ".skip.conv.weight"),
        (r"^out_layers\.(\d)\.conv\.conv\.", lambda m: f"decoder.heads.{last - int(m[1])}."),
    ]
    return [*(conv if isinstance(model, SwinUMamba) else d), (r"^vssm_encoder\.", "")]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A Swin-UMamba state dict of the reference in this package's names; ours unchanged.

    nnU-Net's checkpoint files are read, too. Heads that the model was made without are left out.
    """
    state_dict = unwrap(state_dict)
    if not any(name.startswith("encoder.") for name in state_dict):
        state_dict = vss_names(state_dict, model, _names(model))
    return drop_heads(state_dict, model)


_SMALL = dict(depths=(1, 1, 2, 1), dim=16)
_VARIANTS = {"swin_umamba": {}, "swin_umamba_d": {}, "swin_umamba_test": _SMALL, "swin_umamba_d_test": _SMALL}


def _cfg(name: str) -> dict:
    found = facts("swin_umamba", name.removesuffix("_test"))
    first = "encoder.stem.0" if "_d" in name else "stem.0"
    return network_cfg(found, num_classes=14, input_size=(1, 320, 320), first_conv=first, classifier="decoder.heads.3")


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg(name) for name in _VARIANTS})


def _create(name: str, pretrained: bool, **kwargs) -> VSSNetwork:
    model_cls = SwinUMambaD if "_d" in name else SwinUMamba
    return create(model_cls, name, pretrained, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def swin_umamba(pretrained: bool = False, **kwargs) -> SwinUMamba:
    """Swin-UMamba as published for abdominal MR (1 channel, 14 classes)."""
    return _create("swin_umamba", pretrained, **kwargs)


@register_model
def swin_umamba_d(pretrained: bool = False, **kwargs) -> SwinUMambaD:
    """Swin-UMamba D as published for abdominal MR."""
    return _create("swin_umamba_d", pretrained, **kwargs)


@register_model
def swin_umamba_test(pretrained: bool = False, **kwargs) -> SwinUMamba:
    """A small Swin-UMamba for fast tests."""
    return _create("swin_umamba_test", pretrained, **kwargs)


@register_model
def swin_umamba_d_test(pretrained: bool = False, **kwargs) -> SwinUMambaD:
    """A small Swin-UMamba D for fast tests."""
    return _create("swin_umamba_d_test", pretrained, **kwargs)
