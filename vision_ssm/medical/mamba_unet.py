"""Mamba-UNet: Swin-UNet with VMamba's blocks.

Paper: Wang et al., Mamba-UNet: UNet-Like Pure Visual Mamba for Medical Image Segmentation, arXiv 2402.05079
Reference code: https://github.com/ziyangwang007/Mamba-UNet (Apache-2.0).

The same network is trained in Semi-Mamba-UNet and Weak-Mamba-UNet, beside those of `partners`.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import unwrap
from ._base import create, network_cfg
from ._vss import ExpandDecoder, VSSEncoder, VSSNetwork, drop_path_rates, vss_blocks, vss_names

__all__ = ["MambaUNet"]


class ExpandUNet(VSSNetwork):
    """Swin-UNet's form: `VSSEncoder` with a norm, `ExpandDecoder` with what enters each encoder stage as its skips.

    Args:
        blocks: of each encoder stage.
        decoder_blocks: of each decoder level, deepest first.
        dim: width of the first stage; it doubles with each stage.
        in_chans, num_classes: channels of the image and of the output.
    """

    heads = ("decoder.heads.",)

    def __init__(
        self,
        blocks: Sequence[Sequence[nn.Module]],
        decoder_blocks: Sequence[Sequence[nn.Module]],
        dim: int,
        in_chans: int,
        num_classes: int,
        **dd,
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.multiples, self.mirrored = [2 ** (len(blocks) + 1)] * 2, len(blocks) - 2
        self.encoder = VSSEncoder(blocks, dim, in_chans, norm=True, **dd)
        self.decoder = ExpandDecoder(decoder_blocks, dim, num_classes, norm=True, head_bias=False, **dd)
        self.init_weights(needs_reset=False)

    def get_classifier(self) -> nn.Module:
        """The head at full resolution."""
        return self.decoder.heads[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entries, outputs = self.encoder(self.prepare(x))
        return self.decoder(outputs[-1], entries[:-1])


class MambaUNet(ExpandUNet):
    """Mamba-UNet.

    Args:
        depths: blocks of each encoder stage; the decoder's stages have those of the same width. The published network
            has 2 each; the default of the reference's own configuration class is (2, 2, 9, 2).
        dim: width of the first stage; it doubles with each stage. The reference has 96, whatever its configuration
            says, and no MLP.
        in_chans: channels of the image. A network of three channels takes grey images, too, and repeats them, as the
            reference does. One channel gives a stem of one channel.
        num_classes: channels of the output.
        drop_path_rate: stochastic depth of the deepest block, growing linearly; the decoder's blocks have that of the
            encoder's.

    Shapes: (batch, in_chans, height, width) to (batch, num_classes, height, width); sides are multiples of 32.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 2, 2),
        dim: int = 96,
        in_chans: int = 3,
        num_classes: int = 4,
        drop_path_rate: float = 0.2,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        dims = [dim * 2**i for i in range(len(depths))]
        rates = drop_path_rates(drop_path_rate, depths)
        decoder_blocks = vss_blocks(dims[-2::-1], rates[-2::-1], **dd)
        super().__init__(vss_blocks(dims, rates, **dd), decoder_blocks, dim, in_chans, num_classes, **dd)


NAMES = [
    (r"^(mamba|swin)_unet\.", ""),
    (r"^norm\.", "encoder.norm."),
    (r"^layers_up\.(\d+)\.blocks\.", lambda m: f"decoder.stages.{int(m[1]) - 1}.blocks."),
    (r"^layers_up\.(\d+)\.(?:upsample\.)?(expand|norm)\.", r"decoder.ups.\1.\2."),
    (r"^concat_back_dim\.(\d+)\.", lambda m: f"decoder.joins.{int(m[1]) - 1}."),
    (r"^norm_up\.", "decoder.norm."),
]


def expand_unet_names(state_dict: dict[str, torch.Tensor], model: ExpandUNet) -> dict[str, torch.Tensor]:
    """Names of Swin-UNet and Mamba-UNet in those of `ExpandUNet`; ours unchanged."""
    if any(name.startswith("encoder.") for name in state_dict):
        return state_dict
    last = len(model.decoder.stages)
    ends = [(r"^up\.", f"decoder.ups.{last}."), (r"^output\.", f"decoder.heads.{last}.")]
    return vss_names(state_dict, model, NAMES + ends)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: MambaUNet) -> dict[str, torch.Tensor]:
    """A Mamba-UNet state dict of the reference in this package's names; ours unchanged."""
    return expand_unet_names(unwrap(state_dict), model)


_VARIANTS = {"mamba_unet": {}, "mamba_unet_test": dict(depths=(1, 1, 2, 1), dim=16)}

default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": network_cfg(
            facts("mamba_unet", "mamba_unet"),
            num_classes=4,
            input_size=(3, 224, 224),
            first_conv="encoder.stem.0",
            classifier="decoder.heads.3",
        )
        for name in _VARIANTS
    }
)


@register_model
def mamba_unet(pretrained: bool = False, **kwargs) -> MambaUNet:
    """Mamba-UNet as published for cardiac MR (ACDC, 4 classes)."""
    return create(MambaUNet, "mamba_unet", pretrained, checkpoint_filter_fn, **(_VARIANTS["mamba_unet"] | kwargs))


@register_model
def mamba_unet_test(pretrained: bool = False, **kwargs) -> MambaUNet:
    """A small Mamba-UNet for fast tests."""
    arguments = _VARIANTS["mamba_unet_test"] | kwargs
    return create(MambaUNet, "mamba_unet_test", pretrained, checkpoint_filter_fn, **arguments)
