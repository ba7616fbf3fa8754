"""Every backbone of this package, and of timm, in the registries of MMSegmentation and MMDetection."""

from collections.abc import Mapping, Sequence
from typing import Literal

import timm
import torch
import torch.nn as nn
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d

from ..checkpoints import CheckpointError, check_state_dict, convert_state_dict, converting, read_state_dict, rename
from ..models import SequenceBackbone, model_names

__all__ = ["TimmFeatures"]

# Names of published dense checkpoints: Vim's pyramid, which is MMSegmentation's `Feature2Pyramid` here.
_NECK = {"fpn1.": "neck.upsample_4x.", "fpn2.": "neck.upsample_2x."}


@MODELS.register_module(name="TimmFeatures")
class TimmFeatures(BaseModule):
    """Feature maps of a timm model, for images of any size.

    Args:
        model_name: registered in timm.
        out_indices: stages (hierarchical models) or blocks (plain ones) whose outputs are returned, one map each.
        out_norm: a learned LayerNorm on each output, as the published VMamba and LocalMamba dense models have.
        tap: plain models only. "stream": the residual stream after a block. "mixer": the mixer's output alone, which
            is what the references' segmentation models read.
        drop_path_rate: stochastic depth.
        frozen_stages: -1 trains all, 0 freezes the stem, n the stem and the first n stages (or blocks).
        with_cp: recompute activations in the backward pass (gradient checkpointing).
        checkpoint: classification weights to start from: a file or URL in any layout that `load_checkpoint` reads, or
            True for the model's published weights. Loaded when training starts, not when the model is built.
        init_cfg: MMEngine's form of the same: `dict(type="Pretrained", checkpoint=...)`.
        pretrained: another name of `checkpoint`: a segmentor's `pretrained` arrives here.
        **model_args: for the model: `img_size`, `rope`, `in_chans`, ... Plain models get no class token and take
            images of any size unless told otherwise.

    Shapes: (batch, channels, height, width) in, a tuple of (batch, num_channels[i], height / stride, width / stride)
    out.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = False,
        tap: Literal["stream", "mixer"] = "stream",
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        checkpoint: str | bool | None = None,
        init_cfg: dict | None = None,
        pretrained: str | bool | None = None,
        **model_args,
    ):
        checkpoint = checkpoint or pretrained
        if init_cfg is not None and init_cfg.get("type") == "Pretrained":
            checkpoint, init_cfg = init_cfg["checkpoint"], None
        super().__init__(init_cfg)
        if not timm.is_model(model_name):
            raise ValueError(f"no model {model_name!r} in timm: `vision-ssm list` shows those of this package")
        self._ours = model_name in model_names()
        plain = self._ours and isinstance(_whole(model_name), SequenceBackbone)
        if plain:
            model_args = dict(class_token=False, global_pool="", dynamic_img_size=True) | model_args
        model = timm.create_model(model_name, num_classes=0, drop_path_rate=drop_path_rate, **model_args)
        if tap not in ("stream", "mixer") or (tap == "mixer" and not plain):
            raise ValueError(f"`tap` is {tap!r}: expected 'stream', or 'mixer' for a plain model")
        if plain:
            model.mixer_taps = tap == "mixer"
        self.model_name, self.checkpoint, self.frozen_stages = model_name, checkpoint, frozen_stages
        self.out_indices = model.prune_intermediate_layers(list(out_indices), prune_norm=True, prune_head=True)
        if self.out_indices != sorted(set(self.out_indices)):
            raise ValueError(f"`out_indices` is {tuple(out_indices)}: expected each once, in the order of the model")
        self.num_channels = [model.feature_info[i]["num_chs"] for i in self.out_indices]
        self.model = model
        self.out_norms = nn.ModuleDict(
            {
                str(i): LayerNorm2d(channels, eps=1e-5)
                for i, channels in zip(self.out_indices, self.num_channels, strict=True)
                if out_norm
            }
        )
        model.set_grad_checkpointing(with_cp)
        model.is_init = True  # timm's models fill their weights when they are built, perhaps with pretrained ones
        self.register_load_state_dict_pre_hook(self._convert_in_place)
        self._freeze()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Feature maps of images."""
        maps = self.model.forward_intermediates(x, indices=self.out_indices, intermediates_only=True)
        if self.out_norms:
            maps = [self.out_norms[str(i)](one) for i, one in zip(self.out_indices, maps, strict=True)]
        return tuple(maps)

    # Freezing

    def _frozen(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        model = self.model
        if isinstance(model, SequenceBackbone):
            return [model.patch_embed, *model.blocks[: self.frozen_stages]]
        if not hasattr(model, "stem") or not hasattr(model, "stages"):
            raise ValueError(f"`frozen_stages` is {self.frozen_stages}: {self.model_name} has no stem and stages")
        return [model.stem, *model.stages[: self.frozen_stages]]

    def _freeze(self) -> None:
        frozen = [p for module in self._frozen() for p in module.parameters()]
        if frozen:  # what a plain model's stem adds to the patches
            tables = (getattr(self.model, name, None) for name in ("pos_embed", "cls_token", "tail_token"))
            frozen += [table for table in tables if table is not None]
        for parameter in frozen:
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "TimmFeatures":
        """As every module's; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    # Weights

    def init_weights(self) -> None:
        """Load the weights to start from, if there are any; MMEngine calls it when training starts."""
        super().init_weights()
        if not self.checkpoint:
            return
        source = self.checkpoint
        if source is True:
            source = timm.get_pretrained_cfg(self.model_name).url
            if not source:
                raise CheckpointError(f"no published weights of {self.model_name} are known: give `checkpoint` a file")
        self._load_classifier(source)

    def _load_classifier(self, source: str) -> None:
        """Classification weights, without what no dense model has: head, last norm, class token, unused stages."""
        whole = _whole(self.model_name)
        state_dict = read_state_dict(source, whole, convert_state_dict if self._ours else lambda names, _: dict(names))
        if self._ours:
            with converting(source, whole):
                state_dict = without_class_token(state_dict, self.model)
                state_dict = convert_state_dict(state_dict, self.model)  # again, for the position table's size
        own = self.model.state_dict()
        unused = whole.state_dict().keys() - own.keys()
        state_dict = {name: value for name, value in state_dict.items() if name not in unused}
        for name, value in own.items():  # weights of RMSNorms in LayerNorms, as in the references' dense models
            if name.endswith("norm.bias") and name not in state_dict and name[: -len("bias")] + "weight" in state_dict:
                state_dict[name] = torch.zeros_like(value)
        check_state_dict(state_dict, own, self.model, source)
        self.model.load_state_dict(state_dict)

    def convert_state_dict(self, state_dict: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
        """A published dense checkpoint with its backbone, below `prefix`, in this package's names; ours unchanged."""
        ours = (prefix + "model.", prefix + "out_norms.")
        theirs = any(name.startswith(prefix) for name in state_dict) and self._ours
        if not theirs or any(name.startswith(ours) for name in state_dict):
            return dict(state_dict)
        out = {name: value for name, value in state_dict.items() if not name.startswith(prefix)}
        body = {}
        for name, value in state_dict.items():
            if not name.startswith(prefix):
                continue
            name = name[len(prefix) :]
            for level, neck in _NECK.items():
                if name.startswith(level):
                    out[neck + name[len(level) :]] = value
                    break
            else:
                body[name] = value
        body = rename(body, self._norm_names())
        norms = {name: body.pop(name) for name in list(body) if name.startswith("out_norms.")}
        body = convert_state_dict(body, self.model)
        classifier, own = (*self.model.heads, "norm."), self.model.state_dict()  # some references keep the classifier's
        body = {name: value for name, value in body.items() if name in own or not name.startswith(classifier)}
        out |= {f"{prefix}model.{name}": value for name, value in body.items()}
        return out | {prefix + name: value for name, value in norms.items()}

    def _norm_names(self) -> list[tuple[str, str]]:
        """Rules for the norms of the outputs: LocalVim counts its outputs, the hierarchical models name the stage."""
        if not isinstance(self.model, SequenceBackbone):
            return [(r"^outnorm(\d+)\.", r"out_norms.\1.")]
        return [(rf"^outnorm_{k}\.", f"out_norms.{block}.") for k, block in enumerate(self.out_indices)]

    def _convert_in_place(self, module, state_dict, prefix, *_) -> None:
        """Published names through any door: `load_state_dict`, mmseg's `init_model`, MMEngine's loaders.

        Only Vim's pyramid, which is a neighbour here, needs `convert_state_dict` on the whole network's weights first,
        as this package's runner does.
        """
        converted = self.convert_state_dict(state_dict, prefix)
        if converted.keys() != state_dict.keys():
            state_dict.clear()
            state_dict.update(converted)


def _whole(model_name: str) -> nn.Module:
    """The classifier, without memory, to recognise its checkpoints by."""
    return timm.create_model(model_name, device="meta")


def without_class_token(state_dict: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A classifier's weights for a model without class token: the token goes, and its row of the position table.

    The references drop row 0 instead, which belongs to the first patch.
    """
    if not isinstance(model, SequenceBackbone) or model.cls_token is not None or "cls_token" not in state_dict:
        return dict(state_dict)
    out = {name: value for name, value in state_dict.items() if name not in ("cls_token", "tail_token")}
    table = out.get("pos_embed")
    if table is not None:
        middle = (table.shape[1] - 1) // 2
        out["pos_embed"] = torch.cat([table[:, :middle], table[:, middle + 1 :]], dim=1)
    return out
