"""The residual U-Net of nnU-Net's plans with token mixers in its encoder: U-Mamba, both releases, and LMa-UNet."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..checkpoints import rename
from ._base import DenseNetwork, SupervisedDecoder, check_dims, check_sides, drop_heads, run
from ._conv import ConvLayers, ResidualBlock, Size
from .plans import axes

__all__ = ["Decoder", "MixerUNet", "completed_plan", "plain_blocks", "resnet_d_blocks", "unet_names"]

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
        num_classes: int,
        features: Sequence[int],
        kernels: Sequence[Size],
        strides: Sequence[Sequence[int]],
        depths: Sequence[int],
        blocks: Blocks,
        transposed: bool,
        last_skip: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        levels = range(len(features) - 2, -1, -1)  # deepest first
        up = layers.up_conv if transposed else lambda *sizes: _Nearest(layers, *sizes)
        self.ups = nn.ModuleList(up(features[i + 1], features[i], strides[i + 1]) for i in levels)
        self.joins = [bool(i) or last_skip for i in levels]
        self.stages = nn.ModuleList(
            blocks(layers, features[i] * (1 + join), features[i], kernels[i], 1, depth)
            for i, join, depth in zip(levels, self.joins, depths, strict=True)
        )
        self.heads = nn.ModuleList(
            layers.conv(features[i], num_classes, 1, bias=True) if deep_supervision or i == 0 else nn.Identity()
            for i in levels
        )
        self._deep_supervision = deep_supervision

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
        mixers: one a stage; `nn.Identity()` for none.
        features, kernels, strides: of each stage; the first stride is 1. Strides and kernels may be one number or one
            for each axis.
        depths: blocks of each stage.
        decoder_depths: blocks of each decoder stage, deepest first.
        transposed: upsample by transposed convolution, not by nearest neighbours and a 1x1 convolution.
        last_skip: join the first stage's output at full resolution.
        deep_supervision: return the logits of every level, full resolution first.

    Shapes: (batch, in_chans, *sides) to (batch, num_classes, *sides), or the list of them; each side is a multiple of
    the product of its strides.
    """

    heads = ("decoder.heads.",)
    grad_checkpointing = False

    def __init__(
        self,
        stem: nn.Module,
        blocks: Blocks,
        layers: ConvLayers,
        mixers: Sequence[nn.Module],
        in_chans: int,
        num_classes: int,
        features: Sequence[int],
        kernels: Sequence[Size],
        strides: Sequence[Sequence[int]],
        depths: Sequence[int],
        decoder_depths: Sequence[int],
        transposed: bool,
        last_skip: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        self.in_chans, self.num_classes, self.dims = in_chans, num_classes, layers.dims
        self.multiples = [1] * self.dims
        for stride in strides:
            self.multiples = [total * step for total, step in zip(self.multiples, stride)]
        self.stem = stem
        widths = [features[0], *features]
        self.stages = nn.ModuleList(
            blocks(layers, *sizes) for sizes in zip(widths, features, kernels, strides, depths, strict=False)
        )
        self.mixers = nn.ModuleList(mixers)
        self.decoder = Decoder(
            layers, num_classes, features, kernels, strides, decoder_depths, blocks, transposed, last_skip,
            deep_supervision,
        )  # fmt: skip

    def nominal_sides(self) -> tuple[int, ...]:
        """Sides of an input that the strides divide, 96 or a little more."""
        return tuple(math.ceil(96 / multiple) * multiple for multiple in self.multiples)

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
        check_dims(x, self)
        check_sides(x, self.multiples)
        return self.decoder(self.encode(x))


def completed_plan(dims, features, kernels, strides, depths, decoder_depths):
    """(kernels, strides, depths, decoder_depths) with an entry a stage: 3, 2 and two blocks where nothing is given.

    Raises:
        ValueError: a list has another length, or an entry another number of axes.
    """
    stages = len(features)
    kernels = axes(kernels or [3] * stages, dims)
    strides = axes(strides or [1] + [2] * (stages - 1), dims)
    depths, decoder_depths = tuple(depths or [2] * stages), tuple(decoder_depths or [2] * (stages - 1))
    for name, values, count in (
        ("kernels", kernels, stages),
        ("strides", strides, stages),
        ("depths", depths, stages),
        ("decoder_depths", decoder_depths, stages - 1),
    ):
        if len(values) != count:
            raise ValueError(f"`{name}` has {len(values)} entries: expected {count}, for {stages} stages")
        if any(not isinstance(value, int) and len(value) != dims for value in values):
            raise ValueError(f"`{name}` is {values}: expected {dims} numbers in each entry")
    if max(strides[0]) != 1:
        raise ValueError(f"the first stride is {strides[0]}: expected 1, for the stage at full resolution")
    return kernels, strides, depths, decoder_depths


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
