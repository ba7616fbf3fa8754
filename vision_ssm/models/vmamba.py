"""VMamba: a hierarchical backbone of 2D selective scans.

Paper: Liu et al., VMamba: Visual State Space Model, NeurIPS 2024, https://arxiv.org/abs/2401.10166
Reference code and weights: https://github.com/MzeroMiko/VMamba (MIT).

The maps stay channels-last from stem to head. On odd maps the vanilla models' patch merging pads bottom and right with
zeros, as the code behind the published weights does.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import fit_shapes, rename, unwrap
from ..layers import SS2D
from ._base import build, pretrained_cfg
from ._initialisation import init_linear
from ._staged import Stage, StagedBackbone

__all__ = ["PatchMerging", "VMamba", "VSSBlock"]


class VSSBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) where there is an MLP; (batch, height, width, dim)."""

    def __init__(
        self, dim: int, mixer: nn.Module, mlp_ratio: float = 0.0, drop_path: float = 0.0, device=None, dtype=None
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd) if mlp_ratio else nn.Identity()
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd) if mlp_ratio else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.mixer(self.norm(x)))
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class PatchMerging(nn.Module):
    """Swin's 2x2 merging of an NCHW map: concatenate, norm, halve. Offsets (row, column): 00, 10, 01, 11.

    Args:
        dim: channels of the input; the output has twice as many.
        odd: what becomes of a last odd row or column: "pad" completes it with zeros, "crop" drops it (VMamba's first
            release and the networks that copied it).
    """

    def __init__(self, dim: int, odd: Literal["pad", "crop"] = "pad", device=None, dtype=None):
        super().__init__()
        if odd not in ("pad", "crop"):
            raise ValueError(f"`odd` is {odd!r}: expected 'pad' or 'crop'")
        dd = {"device": device, "dtype": dtype}
        self.crop = odd == "crop"
        self.norm = nn.LayerNorm(4 * dim, **dd)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        if self.crop:
            x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
        else:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
        return self.reduction(self.norm(x)).permute(0, 3, 1, 2)


def norm2d(dim: int, **dd) -> LayerNorm2d:
    return LayerNorm2d(dim, eps=1e-5, **dd)


def patch_stem(in_chans: int, dim: int, **dd) -> nn.Sequential:
    """Patches of 4x4 pixels (a remainder at the right and bottom is dropped), then norm."""
    return nn.Sequential(nn.Conv2d(in_chans, dim, 4, stride=4, **dd), norm2d(dim, **dd))


def conv_stem(in_chans: int, dim: int, **dd) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2."""
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd),
        norm2d(dim // 2, **dd),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd),
        norm2d(dim, **dd),
    )


_STEM = {"patch": patch_stem, "conv": conv_stem}
_DOWNSAMPLE = {"conv3": (3, 1), "conv2": (2, 0)}  # kernel and padding


def _downsample(kind: str, dim: int, **dd) -> nn.Module:
    if kind == "merge":
        return PatchMerging(dim, **dd)
    size, padding = _DOWNSAMPLE[kind]
    return nn.Sequential(nn.Conv2d(dim, 2 * dim, size, stride=2, padding=padding, **dd), norm2d(2 * dim, **dd))


class VMamba(StagedBackbone):
    """VMamba backbone for any input size; strides 4, 8, 16, 32.

    Args:
        depths: blocks of each stage.
        dim: width of the first stage; it doubles with each stage.
        d_state, expand, conv_bias, gate: of `SS2D`. `gate=False` is none; timm drops arguments that are None.
        mlp_ratio: hidden width of the MLP, 0 for none.
        stem: "patch" (one 4x4 convolution) or "conv" (two 3x3 ones).
        downsample: "merge" (Swin's), "conv3" or "conv2".
        mixer_args: further arguments of `SS2D`.
        mixers: makes the mixer of each block in turn from its width, instead of all that.
        drop_path_rate: stochastic depth of the last block, growing linearly.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 8, 2),
        dim: int = 96,
        d_state: int = 1,
        expand: float = 1.0,
        conv_bias: bool = False,
        gate: Literal["silu", "linear", False] | None = False,
        mlp_ratio: float = 4.0,
        stem: Literal["patch", "conv"] = "conv",
        downsample: Literal["merge", "conv3", "conv2"] = "conv3",
        mixer_args: dict | None = None,
        mixers: Callable[[int], nn.Module] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        for name, value, known in (("stem", stem, _STEM), ("downsample", downsample, ("merge", *_DOWNSAMPLE))):
            if value not in known:
                raise ValueError(f"`{name}` is {value!r}: expected one of {', '.join(map(repr, known))}")
        dd = {"device": device, "dtype": dtype}
        dims = [dim * 2**i for i in range(len(depths))]
        rates = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        mixer = dict(d_state=d_state, expand=expand, conv_bias=conv_bias, gate=gate, **(mixer_args or {}), **dd)
        make_mixer = mixers or (lambda width: SS2D(width, **mixer))
        stages = [
            Stage(
                _downsample(downsample, dims[i - 1], **dd) if i else nn.Identity(),
                [VSSBlock(dims[i], make_mixer(dims[i]), mlp_ratio, rate, **dd) for rate in rates[i]],
            )
            for i in range(len(depths))
        ]
        super().__init__(
            _STEM[stem](in_chans, dim, **dd),
            stages,
            norm2d(dims[-1], **dd),
            dims,
            smallest=4 * (2 ** (len(depths) - 1) if downsample == "conv2" else 1) - (0 if stem == "patch" else 3),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **dd,
        )
        self.init_weights(needs_reset=False)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Linear):
            init_linear(module)


# The names of classification/models/vmamba.py, after those of older and newer copies were brought to them.
_STEMS = {"0": "0", "2": "1", "5": "3", "7": "4"}
_OLDER = [
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.(weight|bias)$", r"classifier.head.\1"),
    (r"\.op\.x_proj\.weight$", ".op.x_proj_weight"),
    (r"\.op\.dt_projs\.weight$", ".op.dt_projs_weight"),
]
_NAMES = [
    (r"^patch_embed\.(\d)\.", lambda m: f"stem.{_STEMS[m[1]]}."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"^layers\.(\d+)\.downsample\.1\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.0."),
    (r"^layers\.(\d+)\.downsample\.3\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.1."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
    (r"\.op\.x_proj_weight$", ".mixer.ssm.x_proj"),
    (r"\.op\.dt_projs_weight$", ".mixer.ssm.dt_proj"),
    (r"\.op\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
    (r"\.op\.A_logs$", ".mixer.ssm.A_log"),
    (r"\.op\.Ds$", ".mixer.ssm.D"),
    (r"\.op\.out_norm\.1\.weight$", ".mixer.out_norm.conv.weight"),
    (r"\.op\.out_norm\.0\.", ".mixer.out_norm.norm."),
    (r"\.op\.out_norm\.weight$", lambda m: ".mixer.out_norm.norm.weight"),
    (r"\.op\.out_norm\.bias$", ".mixer.out_norm.norm.bias"),
    (r"\.op\.multi_scan\.attn\.norm\.", ".mixer.path_gate.norm."),
    (r"\.op\.multi_scan\.attn\.global_reduce\.", ".mixer.path_gate.reduce."),
    (r"\.op\.multi_scan\.attn\.channel_select\.", ".mixer.path_gate.expand."),
    (r"\.op\.", ".mixer."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A published VMamba or LocalVMamba state dict, in any layout, in this package's names; ours unchanged."""
    state_dict = unwrap(state_dict)
    if not any(name.startswith(("layers.", "patch_embed.")) for name in state_dict):
        return state_dict
    # In the single-file copy the merging's norm and linear are downsample.1 and .2; elsewhere .1 is a convolution.
    merging = [
        (rf"^{re.escape(name[: -len('2.weight')])}{i}\.", f"{name[: -len('2.weight')]}{part}.")
        for name in state_dict
        if re.fullmatch(r"layers\.\d+\.downsample\.2\.weight", name)
        for i, part in ((1, "norm"), (2, "reduction"))
    ]
    out = rename(rename(state_dict, merging + _OLDER), _NAMES)
    return fit_shapes(out, model.state_dict())


def _cfg(name: str, stem: str = "stem.0", **kwargs) -> dict:
    return pretrained_cfg(facts("vmamba", name), first_conv=stem, classifier="head.fc", pool_size=(7, 7), **kwargs)


_VANILLA = dict(d_state=16, expand=2.0, conv_bias=True, gate="silu", mlp_ratio=0.0, stem="patch", downsample="merge")
_S2 = dict(expand=2.0)
_VARIANTS = {
    "vanilla_vmamba_tiny": dict(depths=(2, 2, 9, 2), **_VANILLA),
    "vanilla_vmamba_small": dict(depths=(2, 2, 27, 2), **_VANILLA),
    "vanilla_vmamba_base": dict(depths=(2, 2, 27, 2), dim=128, **_VANILLA),
    "vmamba_tiny_s2l5": dict(depths=(2, 2, 5, 2), **_S2),
    "vmamba_small_s2l15": dict(depths=(2, 2, 15, 2), **_S2),
    "vmamba_base_s2l15": dict(depths=(2, 2, 15, 2), dim=128, **_S2),
    "vmamba_tiny_s1l8": dict(depths=(2, 2, 8, 2)),
    "vmamba_small_s1l20": dict(depths=(2, 2, 20, 2)),
    "vmamba_base_s1l20": dict(depths=(2, 2, 20, 2), dim=128),
    "vmamba_test": dict(depths=(1, 1, 2, 1), dim=24),
    "vanilla_vmamba_test": dict(depths=(1, 1, 2, 1), dim=16, **_VANILLA),
}

default_cfgs = generate_default_cfgs(
    {f"{name}.in1k": _cfg(name) for name in _VARIANTS if not name.endswith("_test")}
    | {
        "vmamba_test.untrained": _cfg("vmamba_tiny_s1l8", url="", custom_load=False),
        "vanilla_vmamba_test.untrained": _cfg("vanilla_vmamba_tiny", url="", custom_load=False),
    }
)


def _create(name: str, pretrained: bool, **kwargs) -> VMamba:
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return build(VMamba, name, pretrained, feature_cfg, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **kwargs) -> VMamba:
    """Vanilla-VMamba-T: state 16, gate, no MLP."""
    return _create("vanilla_vmamba_tiny", pretrained, **kwargs)


@register_model
def vanilla_vmamba_small(pretrained: bool = False, **kwargs) -> VMamba:
    """Vanilla-VMamba-S."""
    return _create("vanilla_vmamba_small", pretrained, **kwargs)


@register_model
def vanilla_vmamba_base(pretrained: bool = False, **kwargs) -> VMamba:
    """Vanilla-VMamba-B."""
    return _create("vanilla_vmamba_base", pretrained, **kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-T with expansion 2 and 5 blocks in the third stage."""
    return _create("vmamba_tiny_s2l5", pretrained, **kwargs)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-S with expansion 2 and 15 blocks in the third stage."""
    return _create("vmamba_small_s2l15", pretrained, **kwargs)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-B with expansion 2 and 15 blocks in the third stage."""
    return _create("vmamba_base_s2l15", pretrained, **kwargs)


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-T with expansion 1 and 8 blocks in the third stage."""
    return _create("vmamba_tiny_s1l8", pretrained, **kwargs)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-S with expansion 1 and 20 blocks in the third stage."""
    return _create("vmamba_small_s1l20", pretrained, **kwargs)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-B with expansion 1 and 20 blocks in the third stage."""
    return _create("vmamba_base_s1l20", pretrained, **kwargs)


@register_model
def vmamba_test(pretrained: bool = False, **kwargs) -> VMamba:
    """A small VMamba for fast tests and for small images."""
    return _create("vmamba_test", pretrained, **kwargs)


@register_model
def vanilla_vmamba_test(pretrained: bool = False, **kwargs) -> VMamba:
    """A small vanilla VMamba for fast tests."""
    return _create("vanilla_vmamba_test", pretrained, **kwargs)
