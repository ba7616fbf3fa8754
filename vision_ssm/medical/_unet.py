"""The residual U-Net of nnU-Net's plans with token mixers in its encoder: U-Mamba, both releases, and LMa-UNet."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..checkpoints import rename
from ._base import DenseNetwork, SupervisedDecoder, drop_heads, run
from ._conv import ConvLayers, ResidualBlock, Size, init_convolution
from .plans import Plan

__all__ = ["Decoder", "MixerUNet", "plain_blocks", "resnet_d_blocks", "unet_names"]

Blocks = Callable[..., nn.Sequential]


def plain_blocks(layers: ConvLayers, in_chans: int, out_chans: int, kernel: Size, stride: Size, depth: int):
    """Residual blocks of which the first has a 1x1 convolution in its skip."""
    first = ResidualBlock(layers, in_chans, out_chans, kernel, stride, skip="conv")
    return nn.Sequential(
        first, *(ResidualBlock(layers, out_chans, out_chans, kernel, skip="identity") for _ in range(depth - 1))
    )


def resnet_d_blocks(layers: ConvLayers, in_chans: int, out_chans: int, kernel: Size, stride: Size, depth: int):
    """Residual blocks with ResNet-D's skip: pooling where strided, 1x1 convolution and norm where channels change."""
    sizes = [(in_chans, stride)] + [(out_chans, 1)] * (depth - 1)
    return nn.Sequential(
        *(ResidualBlock(layers, chans, out_chans, kernel, step, skip="pool_conv_norm") for chans, step in sizes)
    )


class _Nearest(nn.Module):
    """Nearest upsampling, then a 1x1 convolution."""

    def __init__(self, layers: ConvLayers, in_chans: int, out_chans: int, stride: Sequence[int]):
        super().__init__()
        self.factors = [float(step) for step in stride]
        self.conv = layers.conv(in_chans, out_chans, 1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The convolution acts on each position alone: the other order gives the same for a fraction of the work.
        return F.interpolate(self.conv(x), scale_factor=self.factors, mode="nearest")


class Decoder(SupervisedDecoder):
    """Upsamples and joins the skips from the deepest to the first."""

    grad_checkpointing = False

    def __init__(
        self,
        layers: ConvLayers,
        plan: Plan,
        num_classes: int,
        blocks: Blocks,
        transposed: bool,
        last_skip: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        features = plan.features
        levels = range(len(features) - 2, -1, -1)  # deepest first
        up = layers.up_conv if transposed else lambda *sizes: _Nearest(layers, *sizes)
        self.ups = nn.ModuleList(up(features[i + 1], features[i], plan.strides[i + 1]) for i in levels)
        self.joins = [bool(i) or last_skip for i in levels]
        self.stages = nn.ModuleList(
            blocks(layers, features[i] * (1 + join), features[i], plan.kernels[i], 1, depth)
            for i, join, depth in zip(levels, self.joins, plan.decoder_depths, strict=True)
        )
        head = partial(layers.conv, out_chans=num_classes, kernel=1, bias=True)
        self.make_heads([features[i] for i in levels], head, deep_supervision)

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        x, logits = skips[-1], []
        last = len(self.stages) - 1
        for level, (up, stage, head) in enumerate(zip(self.ups, self.stages, self.heads)):
            x = up(x)
            if self.joins[level]:
                x = torch.cat([x, skips[-2 - level]], dim=1)
            x = run(stage, self.grad_checkpointing, x)
            if self._deep_supervision or level == last:
                logits.append(head(x))
        return logits[::-1] if self._deep_supervision else logits[0]


class MixerUNet(DenseNetwork):
    """stem -> stages, each followed by a mixer -> decoder with the mixers' outputs as skips.

    Args:
        stem: image (volume) to the features of the first stage, at full resolution.
        blocks: makes the blocks of a stage (`plain_blocks`, `resnet_d_blocks`).
        layers: style of the convolutions.
        plan: sizes of the stages.
        mixers: one a stage; `nn.Identity()` for none.
        transposed: upsample by transposed convolution, not by nearest neighbours and a 1x1 convolution.
        last_skip: join the first stage's output at full resolution.
        deep_supervision: return the logits of every level, full resolution first.

    Shapes: (batch, in_chans, *sides) to (batch, num_classes, *sides), or the list of them; each side is a multiple of
    the product of its strides.

    Attributes:
        zero_last_norms: blocks start as their skips.
    """

    heads = ("decoder.heads.",)
    zero_last_norms = False

    def __init__(
        self,
        stem: nn.Module,
        blocks: Blocks,
        layers: ConvLayers,
        plan: Plan,
        mixers: Sequence[nn.Module],
        in_chans: int,
        num_classes: int,
        transposed: bool,
        last_skip: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.dims, self.multiples = plan.dims, plan.multiples
        self.stem = stem
        widths = [plan.features[0], *plan.features]
        self.stages = nn.ModuleList(
            blocks(layers, *sizes) for sizes in zip(widths, plan.features, plan.kernels, plan.strides, plan.depths)
        )
        self.mixers = nn.ModuleList(mixers)
        self.decoder = Decoder(layers, plan, num_classes, blocks, transposed, last_skip, deep_supervision)

    def nominal_sides(self) -> tuple[int, ...]:
        """Sides of an input that the strides divide, 96 or a little more."""
        return tuple(math.ceil(96 / multiple) * multiple for multiple in self.multiples)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        init_convolution(module)
        if self.zero_last_norms and isinstance(module, ResidualBlock):
            nn.init.zeros_(module.norm2.weight)
            nn.init.zeros_(module.norm2.bias)

    def get_classifier(self) -> nn.Module:
        """The head at full resolution."""
        return self.decoder.heads[-1]

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of every stage, first to deepest."""
        x = run(self.stem, self.grad_checkpointing, x)
        outputs = []
        for stage, mixer in zip(self.stages, self.mixers):
            x = run(mixer, self.grad_checkpointing, run(stage, self.grad_checkpointing, x))
            outputs.append(x)
        return outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        self.check_input(x)
        return self.decoder(self.encode(x))


_NAMES = [
    (r"^encoder\.(stem|stages)\.", r"\1."),
    (r"^stem\.convs\.0\.", "stem."),
    (r"^stem\.conv\.", "stem.0."),
    (r"^stem\.norm\.", "stem.1."),
    (r"^((?:decoder\.)?stages\.\d+)\.blocks\.", r"\1."),
    (r"\.conv([12])\.conv\.", r".conv\1."),
    (r"\.conv([12])\.norm\.", r".norm\1."),
    (r"\.conv3\.", ".skip."),
    (r"\.skip\.[01]\.", ".skip."),
    (r"^decoder\.(upsample_layers|transpconvs)\.", "decoder.ups."),
    (r"^decoder\.seg_layers\.", "decoder.heads."),
]


def unet_names(state_dict: dict[str, torch.Tensor], model: MixerUNet) -> dict[str, torch.Tensor]:
    """Names of nnU-Net's residual U-Nets in those of `MixerUNet`.

    The reference lists the encoder a second time in the decoder, and each convolution and norm a second time in
    `all_modules`: in its files these copies are equal. Heads that the model was made without are left out.
    """
    kept = {k: v for k, v in state_dict.items() if not k.startswith("decoder.encoder.") and ".all_modules." not in k}
    return drop_heads(rename(kept, _NAMES), model)
