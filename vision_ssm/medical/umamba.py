"""U-Mamba: nnU-Net's residual U-Net with a Mamba layer at the bottleneck (Bot) or in the encoder (Enc), in 2D and 3D.

Paper: Ma et al., U-Mamba: Enhancing Long-range Dependency for Biomedical Image Segmentation, arXiv 2401.04722
Reference code: https://github.com/bowang-lab/U-Mamba (Apache-2.0).

Two different networks were published under these names. `umamba_*` is the present code, since the end of March 2024;
`umamba_v1_*` the first release, which the preprint and the comparisons in other papers used (63 and 67 M parameters
on 2D abdominal MR, against 47.5 and 47.0 M).
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn as nn
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import Mamba
from ._base import create, drop_heads, network_cfg
from ._conv import ConvLayers, Size
from ._tokens import TokenMixer
from ._unet import MixerUNet, plain_blocks, resnet_d_blocks, unet_names
from .plans import ABDOMEN_2D, ABDOMEN_3D, Plan, with_plan

__all__ = ["UMamba", "UMambaV1"]


def _halved(plan: Plan) -> Plan:
    """The plan with one block in the stages of the encoder's deeper half and of the decoder's upper half."""
    stages = len(plan.depths)
    first, first_decoder = math.ceil(stages / 2), math.ceil((stages - 1) / 2 + 0.5)
    return replace(
        plan,
        depths=tuple(1 if i >= first else depth for i, depth in enumerate(plan.depths)),
        decoder_depths=tuple(1 if i >= first_decoder else depth for i, depth in enumerate(plan.decoder_depths)),
    )


def _check_where(where: str) -> None:
    if where not in ("bottleneck", "encoder"):
        raise ValueError(f"`where` is {where!r}: expected 'bottleneck' or 'encoder'")


class UMamba(MixerUNet):
    """U-Mamba, present release.

    Args:
        dims: 2 or 3.
        where: "bottleneck" (Bot: one Mamba layer after the last stage) or "encoder" (Enc: after every stage in 3D,
            after every second one, counted from the last, in 2D). The layer's output replaces its input.
        input_size: patch that the network is for. In Enc, a stage whose map has at most as many positions as channels
            scans the channels, and its parameters depend on the size of that map.
        channel_tokens: False scans positions everywhere, so that Enc takes any size; such a network is not U-Mamba's.
        features: of each stage.
        kernels, strides: of each stage, one number or one for each axis; the first stride is 1. One number instead of
            the list serves every stage; 3 and 2 by default.
        depths, decoder_depths: blocks of each stage, as the plan has them, or one number for all; 2 by default. As in
            the reference, the deeper half of the encoder and the upper half of the decoder (which starts at its deepest
            stage) get one block.
        deep_supervision: return the logits of every level, full resolution first.
    """

    def __init__(
        self,
        dims: int = 3,
        where: Literal["bottleneck", "encoder"] = "encoder",
        input_size: Sequence[int] = (48, 160, 224),
        channel_tokens: bool = True,
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        kernels: int | Sequence[Size] | None = None,
        strides: int | Sequence[Size] | None = None,
        depths: int | Sequence[int] | None = None,
        decoder_depths: int | Sequence[int] | None = None,
        in_chans: int = 1,
        num_classes: int = 14,
        deep_supervision: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        _check_where(where)
        layers = ConvLayers(dims, **dd)
        plan = _halved(Plan.complete(dims, features, kernels, strides, depths, decoder_depths))
        stem = plain_blocks(layers, in_chans, features[0], plan.kernels[0], 1, plan.depths[0])
        if where == "bottleneck":
            mixers = _mixers(plan, where, **dd)
        else:
            mixers = _sized_mixers(plan, input_size, channel_tokens, **dd)
        super().__init__(
            stem, plain_blocks, layers, plan, mixers, in_chans, num_classes, transposed=False,
            last_skip=dims == 3, deep_supervision=deep_supervision,
        )  # fmt: skip
        self.input_size = tuple(input_size) if where == "encoder" else None
        self.init_weights(needs_reset=False)

    def nominal_sides(self) -> tuple[int, ...]:
        """Of the patch that the network is for; Bot takes any that its strides divide."""
        return self.input_size or super().nominal_sides()


class UMambaV1(MixerUNet):
    """U-Mamba, first release: ResNet-D blocks, transposed convolutions, a skip at every level.

    The arguments are those of `UMamba`. Enc has a Mamba layer after every stage; every layer scans positions, so any
    size that the strides divide fits.
    """

    def __init__(
        self,
        dims: int = 3,
        where: Literal["bottleneck", "encoder"] = "encoder",
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        kernels: int | Sequence[Size] | None = None,
        strides: int | Sequence[Size] | None = None,
        depths: int | Sequence[int] | None = None,
        decoder_depths: int | Sequence[int] | None = None,
        in_chans: int = 1,
        num_classes: int = 14,
        deep_supervision: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        _check_where(where)
        layers = ConvLayers(dims, **dd)
        plan = Plan.complete(dims, features, kernels, strides, depths, decoder_depths)
        stem = layers.conv_norm_act(in_chans, features[0], plan.kernels[0])
        super().__init__(
            stem, resnet_d_blocks, layers, plan, _mixers(plan, where, **dd), in_chans, num_classes, transposed=True,
            last_skip=True, deep_supervision=deep_supervision,
        )  # fmt: skip
        self.zero_last_norms = where == "encoder"
        self.init_weights(needs_reset=False)


def _mamba(dim: int, **dd) -> TokenMixer:
    return TokenMixer(dim, Mamba(dim, **dd), **dd)


def _channel_mamba(sides: Sequence[int], **dd) -> TokenMixer:
    dim = math.prod(sides)
    return TokenMixer(dim, Mamba(dim, **dd), sequence="channels", sides=sides, **dd)


def _mixers(plan: Plan, where: str, **dd) -> list[nn.Module]:
    """A Mamba layer over positions after the last stage, or after each."""
    *widths, last = plan.features
    return [_mamba(width, **dd) if where == "encoder" else nn.Identity() for width in widths] + [_mamba(last, **dd)]


def _sized_mixers(plan: Plan, input_size: Sequence[int], channel_tokens: bool, **dd) -> list[nn.Module]:
    """Enc's layers for a patch of this size: over positions, or over channels where the map is small."""
    if isinstance(input_size, int) or len(input_size) != plan.dims:
        raise ValueError(f"`input_size` is {input_size}: expected {plan.dims} numbers")
    if any(side % multiple or side < 1 for side, multiple in zip(input_size, plan.multiples)):
        raise ValueError(f"`input_size` is {tuple(input_size)}: expected multiples of {plan.multiples}")
    mixers, sides = [], list(input_size)
    for i, (width, stride) in enumerate(zip(plan.features, plan.strides)):
        sides = [side // step for side, step in zip(sides, stride)]
        if plan.dims == 2 and (i + len(plan.features)) % 2 == 0:
            mixers.append(nn.Identity())
        elif channel_tokens and math.prod(sides) <= width:
            mixers.append(_channel_mamba(sides, **dd))
        else:
            mixers.append(_mamba(width, **dd))
    return mixers


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A U-Mamba state dict of either release (nnU-Net's checkpoint files, too) in this package's names."""
    state_dict = unwrap(state_dict)
    if not any(name.startswith("encoder.") for name in state_dict):
        return drop_heads(state_dict, model)
    last = len(model.stages) - 1
    mixers = [
        (r"^encoder\.mamba_layers\.(\d+)\.norm\.", r"mixers.\1.norm."),
        (r"^encoder\.mamba_layers\.(\d+)\.mamba\.", r"mixers.\1.mixer."),
        (r"^mamba_layer\.norm\.", f"mixers.{last}.norm."),
        (r"^mamba_layer\.mamba\.", f"mixers.{last}.mixer."),
        (r"^ln\.", f"mixers.{last}.norm."),
        (r"^mamba\.", f"mixers.{last}.mixer."),
    ]
    return stack_paths(rename(unet_names(state_dict, model), mixers), mamba_parameters())


_SMALL_2D = dict(dims=2, features=(8, 16, 32))
_SMALL_3D = dict(dims=3, features=(8, 16, 32))
_VARIANTS = {
    "umamba_bot_2d": dict(where="bottleneck", **ABDOMEN_2D),
    "umamba_enc_2d": dict(where="encoder", input_size=(320, 320), **ABDOMEN_2D),
    "umamba_bot_3d": dict(where="bottleneck", **ABDOMEN_3D),
    "umamba_enc_3d": dict(where="encoder", input_size=(48, 160, 224), **ABDOMEN_3D),
    "umamba_v1_bot_2d": dict(where="bottleneck", **ABDOMEN_2D),
    "umamba_v1_enc_2d": dict(where="encoder", **ABDOMEN_2D),
    "umamba_v1_bot_3d": dict(where="bottleneck", **ABDOMEN_3D),
    "umamba_v1_enc_3d": dict(where="encoder", **ABDOMEN_3D),
    "umamba_2d_test": dict(where="encoder", input_size=(16, 24), **_SMALL_2D),
    "umamba_3d_test": dict(where="encoder", input_size=(12, 12, 12), **_SMALL_3D),
    "umamba_v1_3d_test": dict(where="encoder", **_SMALL_3D),
}


def _cfg(name: str) -> dict:
    known = name.replace("v1_3d_test", "v1_enc_3d").replace("_2d_test", "_enc_2d").replace("_3d_test", "_enc_3d")
    size = dict(input_size=(1, *_VARIANTS[known]["input_size"])) if known == "umamba_enc_2d" else {}
    first = "stem.0" if "_v1_" in name else "stem.0.conv1"
    classifier = f"decoder.heads.{len(_VARIANTS[name]['features']) - 2}"
    return network_cfg(facts("umamba", known), num_classes=14, first_conv=first, classifier=classifier, **size)


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg(name) for name in _VARIANTS})


def _create(name: str, pretrained: bool, plans=None, configuration: str | None = None, **kwargs) -> MixerUNet:
    """Build a variant; an nnU-Net plan replaces its sizes."""
    model_cls = UMambaV1 if "_v1_" in name else UMamba
    known = inspect.signature(model_cls).parameters.keys()
    arguments = with_plan(name, _VARIANTS[name], plans, configuration, known)
    return create(model_cls, name, pretrained, checkpoint_filter_fn, **(arguments | kwargs))


@register_model
def umamba_bot_2d(pretrained: bool = False, **kwargs) -> UMamba:
    """U-Mamba Bot for images, plan of abdominal MR."""
    return _create("umamba_bot_2d", pretrained, **kwargs)


@register_model
def umamba_enc_2d(pretrained: bool = False, **kwargs) -> UMamba:
    """U-Mamba Enc for images, plan of abdominal MR (320x320)."""
    return _create("umamba_enc_2d", pretrained, **kwargs)


@register_model
def umamba_bot_3d(pretrained: bool = False, **kwargs) -> UMamba:
    """U-Mamba Bot for volumes, plan of abdominal CT and MR."""
    return _create("umamba_bot_3d", pretrained, **kwargs)


@register_model
def umamba_enc_3d(pretrained: bool = False, **kwargs) -> UMamba:
    """U-Mamba Enc for volumes, plan of abdominal MR (48x160x224)."""
    return _create("umamba_enc_3d", pretrained, **kwargs)


@register_model
def umamba_v1_bot_2d(pretrained: bool = False, **kwargs) -> UMambaV1:
    """U-Mamba Bot for images, first release."""
    return _create("umamba_v1_bot_2d", pretrained, **kwargs)


@register_model
def umamba_v1_enc_2d(pretrained: bool = False, **kwargs) -> UMambaV1:
    """U-Mamba Enc for images, first release."""
    return _create("umamba_v1_enc_2d", pretrained, **kwargs)


@register_model
def umamba_v1_bot_3d(pretrained: bool = False, **kwargs) -> UMambaV1:
    """U-Mamba Bot for volumes, first release."""
    return _create("umamba_v1_bot_3d", pretrained, **kwargs)


@register_model
def umamba_v1_enc_3d(pretrained: bool = False, **kwargs) -> UMambaV1:
    """U-Mamba Enc for volumes, first release."""
    return _create("umamba_v1_enc_3d", pretrained, **kwargs)


@register_model
def umamba_2d_test(pretrained: bool = False, **kwargs) -> UMamba:
    """A small U-Mamba Enc for fast tests on images."""
    return _create("umamba_2d_test", pretrained, **kwargs)


@register_model
def umamba_3d_test(pretrained: bool = False, **kwargs) -> UMamba:
    """A small U-Mamba Enc for fast tests on volumes."""
    return _create("umamba_3d_test", pretrained, **kwargs)


@register_model
def umamba_v1_3d_test(pretrained: bool = False, **kwargs) -> UMambaV1:
    """A small U-Mamba Enc of the first release for fast tests."""
    return _create("umamba_v1_3d_test", pretrained, **kwargs)
