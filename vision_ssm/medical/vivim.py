"""Vivim: SegFormer with spatio-temporal Mamba layers after each stage, for medical video.

Paper: Yang et al., Vivim: a Video Vision Mamba for Medical Video Segmentation, arXiv 2401.14168
Reference code: https://github.com/scott-yjyang/Vivim (CC BY-NC 4.0).
The encoder and the all-MLP head are SegFormer's (Xie et al., arXiv 2105.15203), size B3.

As in the reference, the stages have no last norm, and the clip is cut into `chunks` parts of equal length, which are
frames for a clip of as many. Left out, since nothing depends on them: SegFormer's norms after the stages and its
classifier, which published files hold. The output keeps the axis of the frames; the reference's is
(batch * frames, classes, height, width). A fresh network starts as the reference's does before it loads a pretrained
SegFormer.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import SelectiveSSM, TriOrientatedMamba
from ..models._initialisation import SSMInit, checked_ssm_init, init_linear, init_ssm_as_linear
from ._base import DenseNetwork, create, network_cfg, run
from ._tokens import as_tokens, in_full_precision

__all__ = ["Vivim"]


def _as_frames(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(images, tokens, channels) to (images, channels, height, width)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class Attention(nn.Module):
    """Multi-head attention to keys and values of a coarser map (SegFormer).

    Args:
        dim: width of the tokens.
        heads: number of heads.
        reduction: factor between the sides of the map and those of the coarser one.
    """

    def __init__(self, dim: int, heads: int, reduction: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.heads, self.reduction = heads, reduction
        self.query = nn.Linear(dim, dim, **dd)
        self.key = nn.Linear(dim, dim, **dd)
        self.value = nn.Linear(dim, dim, **dd)
        self.reduce = nn.Conv2d(dim, dim, reduction, reduction, **dd) if reduction > 1 else None
        self.norm = nn.LayerNorm(dim, **dd) if reduction > 1 else None
        self.proj = nn.Linear(dim, dim, **dd)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        source = x
        if self.reduce is not None:
            source = self.norm(as_tokens(self.reduce(_as_frames(x, height, width))))
        query, key, value = self._split(self.query(x)), self._split(self.key(source)), self._split(self.value(source))
        y = F.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).flatten(2))


class MixMLP(nn.Module):
    """Two linear layers with a depthwise 3x3 convolution and GELU between them, on maps (2D) or clips (3D)."""

    def __init__(self, dim: int, dims: int, ratio: int = 4, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.fc1 = nn.Linear(dim, ratio * dim, **dd)
        self.conv = conv(ratio * dim, ratio * dim, 3, padding=1, groups=ratio * dim, **dd)
        self.fc2 = nn.Linear(ratio * dim, dim, **dd)

    def forward(self, x: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """Tokens (batch, length, dim) of a grid to the same shape."""
        x = self.conv(self.fc1(x).transpose(1, 2).unflatten(2, grid))
        return self.fc2(F.gelu(as_tokens(x)))


class SegFormerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), frame by frame: (images, tokens, dim) to the same shape."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float = 0.0, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attention = Attention(dim, heads, reduction, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = MixMLP(dim, 2, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x), (height, width)))


class TemporalBlock(nn.Module):
    """x + mamba(norm(x)), then x + mlp(norm(x)), over all tokens of a clip, (batch, tokens, dim) to the same shape.

    Args:
        dim: width of the tokens.
        chunks: parts of the clip. One of the three scans goes through all first tokens of the parts, then through
            all second ones, and so on.
    """

    def __init__(self, dim: int, chunks: int = 5, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = TriOrientatedMamba(dim, chunks, scale=1 / 3, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = MixMLP(dim, 3, **dd)

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(self.norm1(x))

    def forward(self, x: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
        x = x + in_full_precision(self._mix, x)
        return x + self.mlp(self.norm2(x), (frames, height, width))


class Stage(nn.Module):
    """Patch embedding and SegFormer blocks for each frame, then temporal blocks for the clip."""

    grad_checkpointing = False

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch: int,
        stride: int,
        heads: int,
        reduction: int,
        drop_paths: Sequence[float],
        temporal_depth: int,
        chunks: int,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.embed = nn.Conv2d(in_chans, dim, patch, stride, patch // 2, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.blocks = nn.ModuleList(SegFormerBlock(dim, heads, reduction, rate, **dd) for rate in drop_paths)
        self.temporal = nn.ModuleList(TemporalBlock(dim, chunks, **dd) for _ in range(temporal_depth))

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        """(batch * frames, in_chans, height, width) to (batch * frames, dim, height / stride, width / stride)."""
        x = self.embed(x)
        height, width = x.shape[2:]
        x = self.norm(as_tokens(x))
        for block in self.blocks:
            x = run(block, self.grad_checkpointing, x, height, width)
        x = x.reshape(-1, frames * height * width, x.shape[2])
        for block in self.temporal:
            x = run(block, self.grad_checkpointing, x, frames, height, width)
        return _as_frames(x.reshape(-1, height * width, x.shape[2]), height, width)


class MLPDecoder(nn.Module):
    """SegFormer's head: maps of all stages projected, resized to the first and fused; logits at its size."""

    def __init__(self, dims: Sequence[int], width: int, num_classes: int, drop_rate: float, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.projections = nn.ModuleList(nn.Linear(dim, width, **dd) for dim in dims)
        self.fuse = nn.Conv2d(len(dims) * width, width, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(width, **dd)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Conv2d(width, num_classes, 1, **dd)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        size = maps[0].shape[2:]
        parts = [_as_frames(project(as_tokens(x)), *x.shape[2:]) for project, x in zip(self.projections, maps)]
        parts = [parts[0]] + [F.interpolate(x, size, mode="bilinear") for x in parts[1:]]
        x = F.relu(self.norm(self.fuse(torch.cat(parts[::-1], dim=1))))
        return self.head(self.drop(x))


class Vivim(DenseNetwork):
    """Vivim.

    Args:
        in_chans, num_classes: channels of a frame and of its output.
        dims_by_stage: width of each stage; the strides are 4, 8, 16 and 32.
        depths: SegFormer blocks of each stage.
        num_heads, reductions: of the attention of each stage.
        temporal_depths: temporal blocks of each stage.
        chunks: parts of the clip, see `TemporalBlock`; the number of frames is a multiple of it.
        decoder_dim: width of the head.
        edge: also return the logits of edges, computed from the first stage.
        drop_rate: dropout before the classifier (0.1 in the reference's training).
        drop_path_rate: of the last SegFormer block, growing from 0 (0.1 in the reference's training).
        ssm_init: start of the temporal blocks' projections to steps, B and C and of the steps' bias. "reference": as
            all linear layers, so that a step is softplus(0) = 0.69, as in the published training. This is an accident
            of its code, whose pass over the linear layers overwrites Mamba's start. "mamba": as in Mamba, with steps of
            0.001 to 0.1.

    Shapes: (batch, frames, in_chans, height, width) to (batch, frames, num_classes, height, width), raw logits, for
    any height and width from `smallest`; with `edge` to a tuple of it and (batch, frames, 1, height, width).
    """

    dims = 2
    heads = ("decoder.head.",)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1,
        dims_by_stage: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 18, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        temporal_depths: Sequence[int] = (2, 2, 2, 2),
        chunks: int = 5,
        decoder_dim: int = 768,
        edge: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ssm_init: SSMInit = "reference",
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes, self.chunks = in_chans, num_classes, chunks
        # Each stage's map, its sides rounded up, has a position of the coarser one that its attention reads.
        self.smallest = max((factor - 1) * 4 * 2**i + 1 for i, factor in enumerate(reductions))
        rates = torch.linspace(0, drop_path_rate, sum(depths), dtype=torch.float32, device="cpu").split(list(depths))
        self.stages = nn.ModuleList(
            Stage(
                dims_by_stage[i - 1] if i else in_chans, dims_by_stage[i], 3 if i else 7, 2 if i else 4, num_heads[i],
                reductions[i], rates[i].tolist(), temporal_depths[i], chunks, **dd,
            )
            for i in range(len(depths))
        )  # fmt: skip
        self.decoder = MLPDecoder(dims_by_stage, decoder_dim, num_classes, drop_rate, **dd)
        self.edge_head = nn.Conv2d(dims_by_stage[0], 1, 1, **dd) if edge else None
        self.ssm_init = checked_ssm_init(ssm_init)
        self.init_weights(needs_reset=False)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        """Linear layers and SegFormer's convolutions start with a deviation of 0.02, as in the library from which the
        reference takes SegFormer; the heads and the temporal convolutions start as PyTorch's."""
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name not in ("decoder.head", "edge_head"):
            init_linear(module)
        elif isinstance(module, SelectiveSSM) and self.ssm_init == "reference":
            init_ssm_as_linear(module)

    def get_classifier(self) -> nn.Module:
        """The last convolution."""
        return self.decoder.head

    def _resized(self, logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits, x.shape[3:], mode="bilinear").unflatten(0, x.shape[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if x.dim() != 5 or x.shape[2] != self.in_chans:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, frames, {self.in_chans}, height, width)"
            )
        frames = x.shape[1]
        if frames % self.chunks or frames == 0:
            raise ValueError(f"a clip of {frames} frames: expected a multiple of {self.chunks}, the chunks of the scan")
        if min(x.shape[3:]) < self.smallest:
            raise ValueError(f"frames of {tuple(x.shape[3:])}: expected at least {self.smallest} pixels a side")
        y, maps = x.flatten(0, 1), []
        for stage in self.stages:
            y = stage(y, frames)
            maps.append(y)
        logits = self._resized(self.decoder(maps), x)
        return logits if self.edge_head is None else (logits, self._resized(self.edge_head(maps[0]), x))


_ENCODER = r"^encoder\.downsample_layers\."
_NAMES = [
    (_ENCODER + r"patch_embeddings\.(\d)\.proj\.", r"stages.\1.embed."),
    (_ENCODER + r"patch_embeddings\.(\d)\.layer_norm\.", r"stages.\1.norm."),
    (_ENCODER + r"block\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.sr\.", ".attention.reduce."),
    (r"\.attention\.self\.layer_norm\.", ".attention.norm."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
    (r"^encoder\.stages\.(\d)\.(\d)\.0\.", r"stages.\1.temporal.\2."),
    (r"\.mamba\.", ".mixer."),
    (r"^decoder\.linear_c\.(\d)\.proj\.", r"decoder.projections.\1."),
    (r"^decoder\.linear_fuse\.", "decoder.fuse."),
    (r"^decoder\.batch_norm\.", "decoder.norm."),
    (r"^out\.", "decoder.head."),
    (r"^edgeocr_cls_head\.", "edge_head."),
]
_WITHOUT_EFFECT = ("encoder.downsample_layers.layer_norm.", "decoder.classifier.")


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A Vivim state dict in this package's names.

    SegFormer's norms after the stages and its classifier, which have no effect on the output, are left out.
    """
    state_dict = unwrap(state_dict)
    if not any(name.startswith("encoder.downsample_layers.") for name in state_dict):
        return state_dict
    used = {name: value for name, value in state_dict.items() if not name.startswith(_WITHOUT_EFFECT)}
    return stack_paths(rename(used, _NAMES), mamba_parameters(("", "_b", "_s")))


_SMALL = dict(
    dims_by_stage=(8, 16), depths=(1, 1), num_heads=(1, 2), reductions=(2, 1), temporal_depths=(1, 1), decoder_dim=16
)
_VARIANTS = {"vivim": {}, "vivim_test": _SMALL}


def _cfg(name: str) -> dict:
    known = facts("vivim", name.removesuffix("_test"))
    return network_cfg(known, num_classes=1, first_conv="stages.0.embed", classifier="decoder.head")


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg(name) for name in _VARIANTS})


def _create(name: str, pretrained: bool, **kwargs) -> Vivim:
    return create(Vivim, name, pretrained, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def vivim(pretrained: bool = False, **kwargs) -> Vivim:
    """Vivim with SegFormer-B3, for clips of five frames or a multiple."""
    return _create("vivim", pretrained, **kwargs)


@register_model
def vivim_test(pretrained: bool = False, **kwargs) -> Vivim:
    """A small Vivim of two stages for fast tests."""
    return _create("vivim_test", pretrained, **kwargs)
