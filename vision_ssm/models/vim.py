"""Vim: a plain backbone of bidirectional Mamba blocks.

Paper: Zhu et al., Vision Mamba, ICML 2024, https://arxiv.org/abs/2401.09417
Reference code and weights: https://github.com/hustvl/Vim (Apache-2.0).

The published models keep the class token in the middle of the sequence and classify from it, whatever their names say
about mean pooling. Difference: a position table is resized around the class token's row.
"""

from typing import Literal, Optional, Tuple  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn as nn
from timm.layers import lecun_normal_
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import Mamba, SelectiveSSM
from ._base import build, pretrained_cfg
from ._initialisation import SSMInit, checked_ssm_init, init_linear, init_wide
from ._patches import PatchEmbed
from ._positions import fit_positions
from ._sequence import Block, ClassToken, SequenceBackbone, block_drop_paths

__all__ = ["PairedBlock", "VisionMamba"]


class PairedBlock(nn.Module):
    """A block on the sequence and one on its reverse, outputs and residual streams added (Vim's `if_bidirectional`)."""

    def __init__(self, forward_block: Block, backward_block: Block):
        super().__init__()
        self.forward_block, self.backward_block = forward_block, backward_block

    def forward(
        self, hidden: torch.Tensor, residual: Optional[torch.Tensor], height: int, width: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        flipped = residual if residual is None else residual.flip(1)
        h_f, r_f = self.forward_block(hidden, residual, height, width)
        h_b, r_b = self.backward_block(hidden.flip(1), flipped, height, width)
        return h_f + h_b.flip(1), r_f + r_b.flip(1)


class VisionMamba(SequenceBackbone):
    """Vim backbone.

    Args:
        img_size, patch_size, stride: of the patch embedding.
        dim, depth: width and number of blocks.
        d_state, expand, d_conv: of the mixers.
        bidirectional: form of the mixers: "v2" as published, "v1", False for causal ones (None, which timm drops, says
            the same here).
        average: halve the sum of the two directions (v2).
        paired: causal blocks in pairs, the second on the reversed sequence.
        layer_scale: initial scale of the mixers' outputs, none by default.
        drop_path_rate: stochastic depth.
        ssm_init: start of the backward direction's steps. "reference": their bias is 0, so that a step is
            softplus(0) = 0.69, as in the published training. This is an accident of its code, which protects the
            forward bias alone when it zeroes those of linear layers. "mamba": as the forward direction's, 0.001 to 0.1.
        Others: see `SequenceBackbone`. Rope needs a sequence without class token.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 4,
        bidirectional: Literal["v1", "v2", False] | None = "v2",
        average: bool = True,
        paired: bool = False,
        layer_scale: float | None = None,
        class_token: ClassToken | None = "middle",
        pos_embed: bool = True,
        rope: bool = False,
        rms_norm: bool = True,
        global_pool: str = "token",
        dynamic_img_size: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ssm_init: SSMInit = "reference",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if rope and class_token:
            raise ValueError(f"`rope` turns a whole grid: expected class_token=False, got {class_token!r}")
        rates = block_drop_paths(drop_path_rate, depth)
        mixer = dict(d_state=d_state, d_conv=d_conv, expand=expand, average=average, layer_scale=layer_scale)
        mixer["bidirectional"] = False if paired else bidirectional
        blocks: list[nn.Module] = [
            Block(dim, Mamba(dim, **mixer, **dd), rms_norm, rates[i], **dd) for i in range(depth)
        ]
        if paired:
            blocks = [PairedBlock(*blocks[i : i + 2]) for i in range(0, depth, 2)]
        super().__init__(
            blocks,
            dim,
            img_size,
            patch_size,
            stride,
            class_token,
            pos_embed,
            rope,
            rms_norm,
            global_pool,
            dynamic_img_size,
            norm_drop_path=rates[-1],
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
            **dd,
        )
        self.ssm_init = checked_ssm_init(ssm_init)
        self.init_weights(needs_reset=False)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        super()._init_layer(module, name)
        if isinstance(module, PatchEmbed):
            init_wide(lecun_normal_, module.proj.weight)
            nn.init.zeros_(module.proj.bias)
        elif isinstance(module, nn.Linear) and name == "head":
            init_linear(module)
        elif isinstance(module, SelectiveSSM) and self.ssm_init == "reference":
            with torch.no_grad():
                module.dt_bias[1:].zero_()


_NAMES = [
    (r"^norm_f\.", "norm."),
    (r"^cls_token_head$", "cls_token"),
    (r"^cls_token_tail$", "tail_token"),
    (r"^layers\.", "blocks."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A published Vim state dict in this package's names; ours unchanged. Rotary tables are recomputed, so dropped."""
    state_dict = unwrap(state_dict)
    if any(name.startswith("layers.") for name in state_dict):
        state_dict = {name: value for name, value in state_dict.items() if not name.startswith("rope.")}
        state_dict = stack_paths(rename(state_dict, _NAMES), mamba_parameters(("", "_b")))
        if any("blocks.0.forward_block" in name for name in model.state_dict()):
            sides = ("forward_block", "backward_block")
            rule = (r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 2}.{sides[int(m[1]) % 2]}.")
            state_dict = rename(state_dict, [rule])
    return fit_positions(state_dict, model)


_VARIANTS = {
    "vim_tiny_patch16_224": dict(dim=192),
    "vim_tiny_patch16_stride8_224": dict(dim=192, stride=8),
    "vim_small_patch16_224": dict(dim=384),
    "vim_small_patch16_stride8_224": dict(dim=384, stride=8),
    "vim_base_patch16_224": dict(dim=768),
    "vim_test": dict(img_size=64, patch_size=8, dim=32, depth=3),
}


def _cfg(name: str, **kwargs) -> dict:
    defaults = dict(first_conv="patch_embed.proj", classifier="head", pool_size=None, fixed_input_size=True)
    return pretrained_cfg(facts("vim", name), **(defaults | kwargs))


default_cfgs = generate_default_cfgs(
    {f"{name}.hustvl_in1k": _cfg(name) for name in _VARIANTS if not name.endswith("_test")}
    | {"vim_test.untrained": _cfg("vim_tiny_patch16_224", url="", custom_load=False, input_size=(3, 64, 64))}
)


def _create(name: str, pretrained: bool, **kwargs) -> VisionMamba:
    feature_cfg = dict(out_indices=3, feature_cls="getter")
    return build(VisionMamba, name, pretrained, feature_cfg, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-Ti."""
    return _create("vim_tiny_patch16_224", pretrained, **kwargs)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-Ti on overlapping patches: 27x27 tokens."""
    return _create("vim_tiny_patch16_stride8_224", pretrained, **kwargs)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-S."""
    return _create("vim_small_patch16_224", pretrained, **kwargs)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-S on overlapping patches: 27x27 tokens."""
    return _create("vim_small_patch16_stride8_224", pretrained, **kwargs)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs) -> VisionMamba:
    """Vim-B."""
    return _create("vim_base_patch16_224", pretrained, **kwargs)


@register_model
def vim_test(pretrained: bool = False, **kwargs) -> VisionMamba:
    """A small Vim for fast tests and small images."""
    return _create("vim_test", pretrained, **kwargs)
