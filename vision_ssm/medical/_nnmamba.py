"""What the networks of nnMamba share: mixer layers, stages, channel gates, decoder, and the U-Net of them."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from ._base import DenseNetwork, SupervisedDecoder, run
from ._conv import ConvLayers, ResidualBlock
from ._tokens import as_map, as_tokens, in_full_precision

__all__ = ["Decoder", "MixerLayer", "NnMambaEncoder", "NnMambaUNet", "PlainMixerLayer", "double_conv", "doubled"]


class MixerLayer(nn.Module):
    """act(norm(conv(u + mixer(u)))) with u = act(norm(conv(x))), both convolutions 1x1."""

    def __init__(self, layers: ConvLayers, channels: int, mixer: nn.Module):
        super().__init__()
        self.before = layers.conv_norm_act(channels, channels, 1)
        self.mixer = mixer
        self.after = layers.conv_norm_act(channels, channels, 1)

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        return as_map(self.mixer(as_tokens(x)), x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.after(x + in_full_precision(self._mix, x))


class PlainMixerLayer(nn.Module):
    """mixer(act(norm(conv(x)))) over the voxels of a map, with a 1x1 convolution."""

    def __init__(self, layers: ConvLayers, channels: int, mixer: nn.Module):
        super().__init__()
        self.before = layers.conv_norm_act(channels, channels, 1)
        self.mixer = mixer

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        return as_map(self.mixer(as_tokens(x)), x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return in_full_precision(self._mix, self.before(x))


class _Block(ResidualBlock):
    """Residual block whose skip may have a mixer added to it."""

    def forward(self, x: torch.Tensor, mixer: nn.Module | None = None) -> torch.Tensor:
        y = self.branch(x) + self.skip(x)
        return self.act(y if mixer is None else y + mixer(x))


class Stage(nn.Module):
    """Residual blocks, the first of stride 2; one mixer serves all others (its weights and its statistics)."""

    grad_checkpointing = False

    def __init__(self, layers: ConvLayers, in_chans: int, out_chans: int, depth: int, mixer: nn.Module | None):
        super().__init__()
        plain = layers.like(bias=False)
        self.blocks = nn.ModuleList(
            _Block(plain, out_chans if i else in_chans, out_chans, stride=1 if i else 2) for i in range(depth)
        )
        self.mixer_layer = mixer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.blocks):
            x = run(block, self.grad_checkpointing, x, self.mixer_layer if i else None)
        return x


class ChannelGate(nn.Module):
    """Squeeze-and-excitation: each channel times a weight in (0, 1) of its own, computed from the global means."""

    def __init__(self, channels: int, reduction: int = 16, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.reduce = nn.Linear(channels, max(1, channels // reduction), **dd)
        self.expand = nn.Linear(max(1, channels // reduction), channels, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean(dim=(2, 3, 4))))))
        return x * gate.unflatten(1, (-1, 1, 1, 1)).to(x.dtype)


def double_conv(layers: ConvLayers, in_chans: int, out_chans: int, stride: int = 1) -> nn.Sequential:
    """Twice convolution, norm and activation."""
    return nn.Sequential(
        *layers.conv_norm_act(in_chans, out_chans, stride=stride), *layers.conv_norm_act(out_chans, out_chans)
    )


def doubled(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="trilinear")


class Decoder(SupervisedDecoder):
    """Upsampling, concatenation with the skips and two convolutions: maps of strides 8, 4 and 2 from the deepest.

    With deep supervision each map has a 1x1 convolution to classes.
    """

    grad_checkpointing = False

    def __init__(self, layers: ConvLayers, widths: Sequence[int], num_classes: int = 0, deep_supervision: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(
            double_conv(layers, deep + skip, skip) for deep, skip in zip(widths[:0:-1], widths[-2::-1])
        )
        self.heads = nn.ModuleList(
            layers.conv(width, num_classes, 1) if deep_supervision else nn.Identity() for width in widths[-2::-1]
        )
        self._deep_supervision = deep_supervision

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor]) -> list[torch.Tensor]:
        maps = []
        for block, skip in zip(self.blocks, reversed(skips)):
            x = run(block, self.grad_checkpointing, torch.cat([doubled(x), skip], dim=1))
            maps.append(x)
        return maps


class NnMambaEncoder(DenseNetwork):
    """Stem and residual stages that all networks share: maps at strides 2, 4, 8 and 16.

    Args:
        in_chans: channels of the volume.
        num_classes: channels of the output.
        channels: of the stem; each stage doubles them.
        blocks: of each stage.
        mixers: one a stage, or none.
    """

    dims = 3
    multiples = (16, 16, 16)

    def __init__(
        self, in_chans: int, num_classes: int, channels: int, blocks: int, mixers: Sequence[nn.Module] = (), **dd
    ):
        super().__init__()
        if blocks < 1:
            raise ValueError(f"`blocks` is {blocks}: expected at least 1")
        self.in_chans, self.num_classes = in_chans, num_classes
        self.widths = [channels * 2**i for i in range(4)]
        layers = ConvLayers(3, "batch", slope=0, **dd)
        self.stem = double_conv(layers, in_chans, channels, stride=2)
        self.stages = nn.ModuleList(
            Stage(layers, *sizes, blocks, mixers[i] if mixers else None)
            for i, sizes in enumerate(zip(self.widths, self.widths[1:]))
        )

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The layers that end in the classes."""
        return self.head


class NnMambaUNet(NnMambaEncoder):
    """Base of the networks for segmentation: Mamba layers in the encoder, channel gates on the skips.

    Args:
        in_chans, num_classes: channels of the volume and of the output.
        channels: of the stem; each of the three stages doubles them.
        blocks: residual blocks of each stage. All but the first of a stage share one Mamba layer.
        mixer_layer: makes it from the style of its convolutions and its channels.
        deep_supervision: return the logits of every level, full resolution first.
    """

    heads = ("head.", "decoder.heads.")

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        channels: int,
        blocks: int,
        mixer_layer: Callable[[ConvLayers, int], nn.Module],
        deep_supervision: bool = False,
        **dd,
    ):
        layers = ConvLayers(3, "batch", slope=0, **dd)
        widths = [channels * 2**i for i in range(1, 4)]
        mixers = [mixer_layer(layers.like(bias=False), width) for width in widths] if blocks > 1 else []
        super().__init__(in_chans, num_classes, channels, blocks, mixers, **dd)
        self.gates = nn.ModuleList(ChannelGate(width, **dd) for width in self.widths[:3])
        self.decoder = Decoder(layers, self.widths, num_classes, deep_supervision)
        self.head = double_conv(layers, channels, num_classes)
        self.init_weights(needs_reset=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        self.check_input(x)
        x = run(self.stem, self.grad_checkpointing, x)
        skips = []
        for gate, stage in zip(self.gates, self.stages):
            skips.append(gate(x))
            x = stage(x)
        maps = self.decoder(x, skips)
        scores = run(self.head, self.grad_checkpointing, doubled(maps[-1]))
        if not self.decoder.deep_supervision:
            return scores
        return [scores, *[head(y) for head, y in zip(self.decoder.heads, maps)][::-1]]
