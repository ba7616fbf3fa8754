"""The timm contract for hierarchical backbones, implemented once."""

from collections.abc import Sequence
from typing import List, Optional, Tuple, Union  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn as nn
from timm.layers import ClassifierHead, get_device_dtype
from timm.models._features import feature_take_indices

from ._base import Backbone, check_smallest, recomputed

__all__ = ["Stage", "StagedBackbone"]

torch.fx.wrap("check_smallest")  # FX tracing takes it as it is, because it reads shapes


class Stage(nn.Module):
    """Optional downsampling, then blocks. NCHW outside (in channels-last memory), NHWC for the blocks."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x).permute(0, 2, 3, 1)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for block in self.blocks:
                x = recomputed(block, x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)


class StagedBackbone(Backbone):
    """stem -> stages -> norm -> head on NCHW maps, with every method that timm calls on a model.

    A family builds `stem`, `stages` and `norm` and passes them here; it should need no other method. Feature maps are
    the stages' outputs, before any norm. Images have at least `smallest` pixels a side.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        dims: Sequence[int],
        stem_stride: int = 4,
        smallest: int = 1,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.smallest = smallest
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.num_features = dims[-1]
        self.feature_info = [
            dict(num_chs=dim, reduction=stem_stride * 2**i, module=f"stages.{i}") for i, dim in enumerate(dims)
        ]
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate, device=device, dtype=dtype)
        self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return dict(stem=r"^stem", blocks=r"^stages\.(\d+)" if coarse else fine)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """A new classifier (none for 0 classes); the pooling stays unless one is given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """The outputs of chosen stages, and the final features unless `intermediates_only`."""
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        take, last = feature_take_indices(len(self.stages), indices)
        final = len(self.stages) - 1
        intermediates = []
        check_smallest(x, self.smallest)
        x = self.stem(x)
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice a Sequential
            stages = self.stages
        else:
            stages = self.stages[: last + 1]
        i = 0
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take:
                intermediates.append(self.norm(x) if norm and i == final else x)
        if intermediates_only:
            return intermediates
        if i == final:
            x = self.norm(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Keep what the given taps need; returns their absolute indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or shortened:
            self.norm = nn.Identity()  # it was sized for the last stage
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        check_smallest(x, self.smallest)
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)
