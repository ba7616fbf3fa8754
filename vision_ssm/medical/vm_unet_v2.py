"""VM-UNetV2: VMamba's encoder, attention over its maps, their product at each scale (semantics and detail infusion).

Paper: Zhang et al., VM-UNet-V2: Rethinking Vision Mamba UNet for Medical Image Segmentation, arXiv 2403.09157
Reference code: https://github.com/nobodyplayer1/VM-UNetV2 (Apache-2.0).

What has no effect on the reference's output is not made: the blocks of the last stage, two of the four heads, one
transposed convolution. Published files hold these parameters; the conversion leaves them out.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import unwrap
from ._base import create, network_cfg, run
from ._vss import VSSEncoder, VSSNetwork, drop_path_rates, vss_blocks, vss_names

__all__ = ["VMUNetV2"]


class _Gate(nn.Module):
    """A map, (batch, channels, height, width), weighted by channel, then by position (CBAM, arXiv 1807.06521), then
    projected to `out_chans` channels."""

    def __init__(self, channels: int, out_chans: int, ratio: int = 16, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.reduce = nn.Conv2d(channels, channels // ratio, 1, bias=False, **dd)
        self.expand = nn.Conv2d(channels // ratio, channels, 1, bias=False, **dd)
        self.position = nn.Conv2d(2, 1, 7, padding=3, bias=False, **dd)
        self.proj = nn.Conv2d(channels, out_chans, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(out_chans, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        x = sum(self.expand(F.relu(self.reduce(values))) for values in pooled).sigmoid() * x
        x = self.position(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)).sigmoid() * x
        return self.norm(self.proj(x))


def _resized(x: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """Averaged to a smaller map, or interpolated to a larger one with aligned corners."""
    if x.shape[2] > sides[0]:
        return F.adaptive_avg_pool2d(x, sides)
    return F.interpolate(x, sides, mode="bilinear", align_corners=True) if x.shape[2] < sides[0] else x


class _Product(nn.Module):
    """The product over all maps of their convolutions at the size of one of them."""

    def __init__(self, channels: int, maps: int, device=None, dtype=None):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype) for _ in range(maps)
        )

    def forward(self, sides: Sequence[int], *maps: torch.Tensor) -> torch.Tensor:
        product = None
        for conv, x in zip(self.convs, maps):
            x = conv(_resized(x, sides))
            product = x if product is None else product * x
        return product


class _Decoder(nn.Module):
    """Gates, products, and their sum from the deepest scale up: the maps of every scale, deepest first."""

    grad_checkpointing = False

    def __init__(self, dims: Sequence[int], channels: int, **dd):
        super().__init__()
        self.gates = nn.ModuleList(_Gate(dim, channels, **dd) for dim in dims)
        self.products = nn.ModuleList(_Product(channels, len(dims), **dd) for _ in dims)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False, **dd) for _ in dims[1:]
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        maps = [run(gate, self.grad_checkpointing, x) for gate, x in zip(self.gates, maps)]
        outputs: list[torch.Tensor] = []
        for i in range(len(maps) - 1, -1, -1):
            x = run(self.products[i], self.grad_checkpointing, maps[i].shape[2:], *maps)
            outputs.append(self.ups[i](outputs[-1]) + x if outputs else x)
        return outputs


class VMUNetV2(VSSNetwork):
    """VM-UNetV2.

    Args:
        depths: blocks of each encoder stage. Those of the last stage are not made; they count in the stochastic depths.
        dim: width of the first stage; it doubles with each stage.
        mid_chans: channels of the decoder.
        half_scale: add the logits of the map at stride 8, upsampled by a transposed convolution. The reference calls it
            deep supervision, though one map is returned, and has it for one class alone; here, each class has its own
            kernel. None: for one class.
        in_chans, num_classes, activation: as of `VMUNet`.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Shapes: (batch, in_chans, height, width) to (batch, num_classes, height, width); sides are multiples of 32. The
    reference takes square images alone; others follow the same rule for both sides.
    """

    heads = ("head.", "half_head.", "half_up.")

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 9, 2),
        dim: int = 96,
        mid_chans: int = 48,
        half_scale: bool | None = None,
        in_chans: int = 3,
        num_classes: int = 1,
        activation: bool = False,
        drop_path_rate: float = 0.2,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes, self.activation = in_chans, num_classes, activation
        self.multiples = [2 ** (len(depths) + 1)] * 2
        self.half_scale = num_classes == 1 if half_scale is None else half_scale
        dims = [dim * 2**i for i in range(len(depths))]
        rates = [*drop_path_rates(drop_path_rate, depths)[:-1], []]
        self.encoder = VSSEncoder(vss_blocks(dims, rates, **dd), dim, in_chans, **dd)
        self.decoder = _Decoder(dims, mid_chans, **dd)
        self.head = nn.Conv2d(mid_chans, num_classes, 1, **dd)
        if self.half_scale:
            self.half_head = nn.Conv2d(mid_chans, num_classes, 1, **dd)
            self.half_up = nn.ConvTranspose2d(
                num_classes, num_classes, 3, stride=2, padding=1, output_padding=1, groups=num_classes, **dd
            )
        self.init_weights(needs_reset=False)

    def get_classifier(self) -> nn.Module:
        """The convolution to classes at the finest scale."""
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entries, _ = self.encoder(self.prepare(x))
        maps = self.decoder([entry.permute(0, 3, 1, 2) for entry in entries])
        x = F.interpolate(self.head(maps[-1]), scale_factor=4.0, mode="bilinear")
        if self.half_scale:
            x = x + self.half_up(F.interpolate(self.half_head(maps[-2]), scale_factor=4.0, mode="bilinear"))
        return x.sigmoid() if self.activation and self.num_classes == 1 else x


_NAMES = [
    (r"^ca_(\d)\.fc1\.", lambda m: f"decoder.gates.{int(m[1]) - 1}.reduce."),
    (r"^ca_(\d)\.fc2\.", lambda m: f"decoder.gates.{int(m[1]) - 1}.expand."),
    (r"^sa_(\d)\.conv1\.", lambda m: f"decoder.gates.{int(m[1]) - 1}.position."),
    (r"^Translayer_(\d)\.conv\.", lambda m: f"decoder.gates.{int(m[1]) - 1}.proj."),
    (r"^Translayer_(\d)\.bn\.", lambda m: f"decoder.gates.{int(m[1]) - 1}.norm."),
    (r"^sdi_(\d)\.convs\.", lambda m: f"decoder.products.{int(m[1]) - 1}.convs."),
    (r"^deconv([234])\.", lambda m: f"decoder.ups.{4 - int(m[1])}."),
    (r"^seg_outs\.3\.", "head."),
    (r"^seg_outs\.2\.", "half_head."),
    (r"^deconv6\.", "half_up."),
    (r"^vmunet\.", ""),
]
_UNUSED = ("seg_outs.0.", "seg_outs.1.", "deconv5.", "vmunet.layers.3.")


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: VMUNetV2) -> dict[str, torch.Tensor]:
    """A VM-UNetV2 state dict of the reference in this package's names, without what has no effect; ours unchanged."""
    state_dict = unwrap(state_dict)
    if any(name.startswith("encoder.") for name in state_dict):
        return state_dict
    unused = _UNUSED if model.half_scale else (*_UNUSED, "seg_outs.2.", "deconv6.")
    return vss_names({k: v for k, v in state_dict.items() if not k.startswith(unused)}, model, _NAMES)


_VARIANTS = {"vm_unet_v2": {}, "vm_unet_v2_test": dict(depths=(1, 1, 2, 1), dim=16, mid_chans=8)}

default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": network_cfg(
            facts("vm_unet", "vm_unet_v2"),
            num_classes=1,
            input_size=(3, 256, 256),
            first_conv="encoder.stem.0",
            classifier="head",
        )
        for name in _VARIANTS
    }
)


@register_model
def vm_unet_v2(pretrained: bool = False, **kwargs) -> VMUNetV2:
    """VM-UNetV2 as published for skin lesions and polyps (one class)."""
    return create(VMUNetV2, "vm_unet_v2", pretrained, checkpoint_filter_fn, **(_VARIANTS["vm_unet_v2"] | kwargs))


@register_model
def vm_unet_v2_test(pretrained: bool = False, **kwargs) -> VMUNetV2:
    """A small VM-UNetV2 for fast tests."""
    arguments = _VARIANTS["vm_unet_v2_test"] | kwargs
    return create(VMUNetV2, "vm_unet_v2_test", pretrained, checkpoint_filter_fn, **arguments)
