"""VM-UNet: a U-Net of VMamba's blocks, whose skips are added before the upsampling.

Paper: Ruan and Xiang, VM-UNet: Vision Mamba UNet for Medical Image Segmentation, arXiv 2402.02491
Reference code: https://github.com/JCruan519/VM-UNet (Apache-2.0).
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import unwrap
from ._base import create, network_cfg
from ._vss import BlockStage, PatchExpand, VSSEncoder, VSSNetwork, drop_path_rates, vss_blocks, vss_names

__all__ = ["VMUNet"]


class _Decoder(nn.Module):
    """Blocks on the deepest map; at each level sum with the skip, patch expanding, blocks; at last expanding by 4."""

    def __init__(self, blocks: Sequence[Sequence[nn.Module]], dim: int, **dd):
        super().__init__()
        self.stages = nn.ModuleList(BlockStage(stage) for stage in blocks)
        widths = [dim * 2**i for i in range(len(blocks) - 2, -1, -1)]
        self.ups = nn.ModuleList([PatchExpand(2 * width, width, **dd) for width in widths])
        self.ups.append(PatchExpand(dim, dim // 4, 4, **dd))

    def forward(self, x: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        x = self.stages[0](x)
        for stage, up, skip in zip(self.stages[1:], self.ups, reversed(skips)):
            x = stage(up(x + skip))
        return self.ups[-1](x)


class VMUNet(VSSNetwork):
    """VM-UNet.

    Args:
        depths: blocks of each encoder stage. The published networks have 2 each; the reference's own default is
            (2, 2, 9, 2), with `decoder_depths` (2, 9, 2, 2).
        decoder_depths: blocks of each decoder stage, deepest first.
        dim: width of the first stage; it doubles with each stage.
        in_chans: channels of the image. A network of three channels takes grey images, too, and repeats them; the
            published networks for grey images are such. One channel gives a stem of one channel.
        num_classes: channels of the output.
        activation: return the sigmoid of the logits if there is one class, as the reference does.
        drop_path_rate: stochastic depth of the deepest blocks; it falls linearly to both ends.

    Shapes: (batch, in_chans, height, width) to (batch, num_classes, height, width); sides are multiples of 32.
    """

    heads = ("head.",)

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_depths: Sequence[int] = (2, 2, 2, 1),
        dim: int = 96,
        in_chans: int = 3,
        num_classes: int = 1,
        activation: bool = False,
        drop_path_rate: float = 0.2,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if len(depths) != len(decoder_depths):
            raise ValueError(f"`decoder_depths` has {len(decoder_depths)} entries: expected {len(depths)}, as `depths`")
        dd = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes, self.activation = in_chans, num_classes, activation
        self.multiples, self.mirrored = [2 ** (len(depths) + 1)] * 2, len(depths) - 1
        dims = [dim * 2**i for i in range(len(depths))]
        decoder_rates = [rates[::-1] for rates in drop_path_rates(drop_path_rate, decoder_depths[::-1])[::-1]]
        self.encoder = VSSEncoder(vss_blocks(dims, drop_path_rates(drop_path_rate, depths), **dd), dim, in_chans, **dd)
        self.decoder = _Decoder(vss_blocks(dims[::-1], decoder_rates, **dd), dim, **dd)
        self.head = nn.Conv2d(dim // 4, num_classes, 1, **dd)
        self.init_weights(needs_reset=False)

    def get_classifier(self) -> nn.Module:
        """The convolution to classes."""
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entries, outputs = self.encoder(self.prepare(x))
        x = self.head(self.decoder(outputs[-1], entries[1:]).permute(0, 3, 1, 2))
        return x.sigmoid() if self.activation and self.num_classes == 1 else x


_NAMES = [
    (r"^vmunet\.", ""),
    (r"^layers_up\.(\d+)\.blocks\.", r"decoder.stages.\1.blocks."),
    (r"^layers_up\.(\d+)\.upsample\.", lambda m: f"decoder.ups.{int(m[1]) - 1}."),
    (r"^final_conv\.", "head."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: VMUNet) -> dict[str, torch.Tensor]:
    """A VM-UNet state dict of the reference in this package's names; ours unchanged."""
    state_dict = unwrap(state_dict)
    if any(name.startswith("encoder.") for name in state_dict):
        return state_dict
    return vss_names(state_dict, model, [*_NAMES, (r"^final_up\.", f"decoder.ups.{len(model.decoder.ups) - 1}.")])


_VARIANTS = {"vm_unet": {}, "vm_unet_test": dict(depths=(1, 1, 2, 1), decoder_depths=(1, 2, 1, 1), dim=16)}

default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": network_cfg(
            facts("vm_unet", "vm_unet"),
            num_classes=1,
            input_size=(3, 256, 256),
            first_conv="encoder.stem.0",
            classifier="head",
        )
        for name in _VARIANTS
    }
)


@register_model
def vm_unet(pretrained: bool = False, **kwargs) -> VMUNet:
    """VM-UNet as published for skin lesions (one class) and Synapse (`num_classes=9`)."""
    return create(VMUNet, "vm_unet", pretrained, checkpoint_filter_fn, **(_VARIANTS["vm_unet"] | kwargs))


@register_model
def vm_unet_test(pretrained: bool = False, **kwargs) -> VMUNet:
    """A small VM-UNet for fast tests."""
    return create(VMUNet, "vm_unet_test", pretrained, checkpoint_filter_fn, **(_VARIANTS["vm_unet_test"] | kwargs))
