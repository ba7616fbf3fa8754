"""What the networks of VMamba's blocks share: encoder, patch expanding, Swin-UNet's decoder, a pretrained start.

Maps are (batch, height, width, channels) between the blocks. The names of the encoder are those of `VMamba`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from timm.layers import calculate_drop_path_rates
from timm.models._manipulate import adapt_input_conv

from ..checkpoints import VSS_NAMES, check_state_dict, fit_shapes, read_state_dict, rename
from ..layers import SS2D
from ..models import vmamba
from ..models._initialisation import init_linear
from ..models.vmamba import PatchMerging, VSSBlock, patch_stem
from ._base import DenseNetwork, SupervisedDecoder, run

__all__ = [
    "BlockStage", "ExpandDecoder", "PatchExpand", "VSSEncoder", "VSSNetwork", "load_encoder", "vss_blocks", "vss_names",
]  # fmt: skip


def vss_blocks(dims: Sequence[int], rates: Sequence[Sequence[float]], **dd) -> list[list[VSSBlock]]:
    """Blocks of each stage, as in VMamba's first release, from the stages' widths and the blocks' stochastic depths."""
    return [[VSSBlock(dim, SS2D(dim, **dd), drop_path=rate, **dd) for rate in stage] for dim, stage in zip(dims, rates)]


class BlockStage(nn.Module):
    """Blocks on a map (batch, height, width, channels), which keep its shape."""

    grad_checkpointing = False

    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = run(block, self.grad_checkpointing, x)
        return x


class _EncoderStage(nn.Module):
    """Downsampling of a map (batch, channels, height, width), then blocks; returns what enters and what leaves them."""

    grad_checkpointing = False

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = entry = self.downsample(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = run(block, self.grad_checkpointing, x)
        return entry, x


class VSSEncoder(nn.Module):
    """Patch embedding, then stages with Swin's merging between them, which drops an odd row or column.

    Args:
        blocks: of each stage.
        dim: width of the first stage; it doubles with each stage.
        in_chans: channels of the input.
        stem: patch embedding; patches of 4x4 pixels by default.
        norm: layer norm of the last stage's output.

    `forward` takes (batch, in_chans, height, width) and returns two lists of maps (batch, height, width, channels):
    what enters the blocks of each stage, and what leaves them.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[nn.Module]],
        dim: int,
        in_chans: int = 3,
        stem: nn.Module | None = None,
        norm: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.stem = stem or patch_stem(in_chans, dim, **dd)
        self.stages = nn.ModuleList(
            _EncoderStage(PatchMerging(dim * 2 ** (i - 1), odd="crop", **dd) if i else nn.Identity(), stage)
            for i, stage in enumerate(blocks)
        )
        self.norm = nn.LayerNorm(dim * 2 ** (len(blocks) - 1), **dd) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        entries, outputs = [], []
        x = self.stem(x)
        for stage in self.stages:
            entry, output = stage(x)
            entries.append(entry)
            outputs.append(output)
            x = output.permute(0, 3, 1, 2)
        outputs[-1] = self.norm(outputs[-1])
        return entries, outputs


class PatchExpand(nn.Module):
    """Linear layer, then every position becomes `factor` x `factor` positions, then norm (Swin-UNet)."""

    def __init__(self, in_chans: int, out_chans: int, factor: int = 2, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.factor = factor
        self.expand = nn.Linear(in_chans, factor * factor * out_chans, bias=False, **dd)
        self.norm = nn.LayerNorm(out_chans, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.expand(x).unflatten(-1, (self.factor, self.factor, -1))  # batch, height, width, row, column, channels
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))


class ExpandDecoder(SupervisedDecoder):
    """Swin-UNet's decoder: at each level patch expanding, concatenation with the skip, linear layer, blocks; at the end
    patch expanding by `last_factor`.

    Args:
        blocks: of each level, deepest first.
        dim: width of the finest level; the deepest input has `dim * 2 ** len(blocks)` channels.
        num_classes: channels of the logits.
        last_factor: stride of the finest level.
        norm: layer norm after the last blocks.
        head_bias: bias of the 1x1 convolutions to classes.
        deep_supervision: return the logits of every level, full resolution first.

    `forward` takes the deepest map and the skips, finest first; the logits are (batch, classes, height, width).
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[nn.Module]],
        dim: int,
        num_classes: int,
        last_factor: int = 4,
        norm: bool = False,
        head_bias: bool = True,
        deep_supervision: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        widths = [dim * 2**i for i in range(len(blocks) - 1, -1, -1)]
        self.ups = nn.ModuleList([PatchExpand(2 * width, width, **dd) for width in widths])
        self.ups.append(PatchExpand(dim, dim, last_factor, **dd))
        self.joins = nn.ModuleList(nn.Linear(2 * width, width, **dd) for width in widths)
        self.stages = nn.ModuleList(BlockStage(stage) for stage in blocks)
        self.norm = nn.LayerNorm(dim, **dd) if norm else nn.Identity()
        head = partial(nn.Conv2d, out_channels=num_classes, kernel_size=1, bias=head_bias, **dd)
        self.make_heads([*widths, dim], head, deep_supervision)

    def forward(self, x: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        logits = []
        for up, join, stage, head, skip in zip(self.ups, self.joins, self.stages, self.heads, reversed(skips)):
            x = stage(join(torch.cat([up(x), skip], dim=-1)))
            if self._deep_supervision:
                logits.append(head(x.permute(0, 3, 1, 2)))
        x = self.ups[-1](self.norm(x))
        logits.append(self.heads[-1](x.permute(0, 3, 1, 2)))
        return logits[::-1] if self._deep_supervision else logits[0]


class VSSNetwork(DenseNetwork):
    """Base of 2D networks with a `VSSEncoder` named `encoder`.

    Attributes:
        mirrored: index of the encoder's stage that has the width of the decoder's first; from there a VMamba's blocks
            also start the decoder's. None: they start the encoder alone.
        first_blocks: a VMamba may have more blocks than the encoder; the first ones of each stage are taken.
    """

    dims = 2
    mirrored: int | None = None
    first_blocks = True

    def _init_layer(self, module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Linear):
            init_linear(module)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """The checked input; a grey image is repeated for a network of three channels, as the references do."""
        if x.dim() == 4 and x.shape[1] == 1 and self.in_chans == 3:
            x = x.expand(-1, 3, -1, -1)
        self.check_input(x)
        return x

    def vmamba_names(self) -> dict[str, str]:
        """Names of the parameters that start as a VMamba's, each with the VMamba's name of it."""
        names = {}
        for name in self.state_dict():
            if name.startswith("encoder."):
                names[name] = name.removeprefix("encoder.")
            elif self.mirrored is not None and (found := re.match(r"decoder\.stages\.(\d+)\.(blocks\..*)", name)):
                names[name] = f"stages.{self.mirrored - int(found[1])}.{found[2]}"
        return names


def load_encoder(model: VSSNetwork, source: str | Path | Mapping) -> VSSNetwork:
    """Start a network from a VMamba pretrained on ImageNet, as its reference does (`vmamba_names` says with what).

    Args:
        model: a network; its other parameters stay. Where it takes the patch embedding for another number of channels,
            that is adapted (for one channel: the sum over the colours).
        source: file, URL or state dict of a vanilla VMamba, in its published names or in ours.

    Returns:
        The network.

    Raises:
        CheckpointError: keys are missing, unexpected, of another shape or not finite; they are named. Or the source is
            no checkpoint.
        FileNotFoundError: no such file. No code of the file is run.
    """
    published = read_state_dict(source, model.encoder, vmamba.checkpoint_filter_fn)
    names, own = model.vmamba_names(), model.state_dict()
    start = {name: published[theirs] for name, theirs in names.items() if theirs in published}
    stem = start.get("encoder.stem.0.weight")
    if stem is not None and stem.dim() == 4 and stem.shape[1] == 3 != model.in_chans:
        start["encoder.stem.0.weight"] = adapt_input_conv(model.in_chans, stem)
    depths = [len(stage.blocks) for stage in model.encoder.stages]
    taken = set(names.values())
    for name, value in published.items():
        block = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name)
        beyond = block and int(block[1]) < len(depths) and int(block[2]) >= depths[int(block[1])]
        if name.startswith("stages.") and name not in taken and not (beyond and model.first_blocks):
            start[name] = value
    check_state_dict(start, {name: own[name] for name in names}, model, source)
    model.load_state_dict(own | start)
    return model


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of each block of each stage, growing linearly from 0 to `rate`."""
    return calculate_drop_path_rates(rate, list(depths), stagewise=True)


ENCODER_NAMES = [
    (r"^patch_embed\.proj\.", "encoder.stem.0."),
    (r"^patch_embed\.norm\.", "encoder.stem.1."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"encoder.stages.{int(m[1]) + 1}.downsample."),
    (r"^downsamples\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.(\d+)\.blocks\.", r"encoder.stages.\1.blocks."),
]


def vss_names(state_dict: dict[str, torch.Tensor], model: nn.Module, rules: Sequence) -> dict[str, torch.Tensor]:
    """A reference's state dict with the encoder and the blocks in our names, after the network's own `rules`."""
    return fit_shapes(rename(state_dict, [*rules, *ENCODER_NAMES, *VSS_NAMES]), model.state_dict())
