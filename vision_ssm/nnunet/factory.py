"""Networks as nnU-Net calls them: `cls(input_channels=, num_classes=, deep_supervision=, **arch_kwargs)`.

`arch_kwargs` of a plans file keep nnU-Net's names; the networks' own arguments keep theirs.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import timm

from ..medical import DenseNetwork, model_names
from ..medical.plans import PLAN_KEYS, planned_sizes

__all__ = ["NETWORKS", "Network", "NetworkTraits", "network_traits"]

# Published names, which plans and trainers bear, and ours without `_2d` and `_3d`.
NETWORKS = {
    "UMambaEnc": "umamba_enc",
    "UMambaBot": "umamba_bot",
    "UMambaV1Enc": "umamba_v1_enc",
    "UMambaV1Bot": "umamba_v1_bot",
    "LMaUNet": "lma_unet",
    "SegMamba": "segmamba",
    "LightMUNet": "lightm_unet",
    "NnMamba": "nnmamba_seg",
    "NnMambaNNUNet": "nnmamba_nnunet",
    "SwinUMamba": "swin_umamba",
    "SwinUMambaD": "swin_umamba_d",
    "VMUNet": "vm_unet",
    "VMUNetV2": "vm_unet_v2",
    "MambaUNet": "mamba_unet",
}

_SET_HERE = frozenset(("dims", "in_chans", "num_classes", "deep_supervision", "device", "dtype"))


@dataclass(frozen=True)
class NetworkTraits:
    """What a registered network is, as far as nnU-Net must know.

    Attributes:
        name: in timm.
        dims: 2 for images, 3 for volumes.
        arguments: of its class.
    """

    name: str
    dims: int
    arguments: frozenset[str]

    @property
    def follows_plan(self) -> bool:
        """Whether features, kernels and strides come from the plan; other networks have their own."""
        return {"features", "kernels", "strides"} <= self.arguments

    @property
    def deep_supervision(self) -> bool:
        """Whether it can return the logits of several levels."""
        return "deep_supervision" in self.arguments


@cache
def network_traits(name: str, dims: int) -> NetworkTraits:
    """The registered network `name`, or its variant `name`_2d or `name`_3d.

    Raises:
        ValueError: there is none, it is none for segmentation, or it has another number of dimensions.
    """
    known = model_names()
    registered = f"{name}_{dims}d" if f"{name}_{dims}d" in known else name
    if registered not in known:
        others = [other for other in known if not other.endswith("_test")]
        raise ValueError(f"no network {name!r} for {dims}D plans: expected one of {', '.join(others)}")
    model = timm.create_model(registered, device="meta")
    if not isinstance(model, DenseNetwork):
        raise ValueError(f"{registered} is no network for segmentation")
    if model.dims != dims:
        raise ValueError(f"{registered} has {model.dims} dimensions, the plan {dims}")
    return NetworkTraits(registered, dims, frozenset(inspect.signature(type(model)).parameters))


class _SingleOutput:
    """The `decoder` of a network without deep supervision: nnU-Net's trainer sets its flag."""

    @property
    def deep_supervision(self) -> bool:
        """Always false."""
        return False

    @deep_supervision.setter
    def deep_supervision(self, enable: bool) -> None:
        if enable:
            raise ValueError(_no_deep_supervision("this network"))


def _no_deep_supervision(name: str) -> str:
    return f"{name} has no deep supervision: train it with `-tr nnUNetTrainerNoDeepSupervision`"


def Network(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    name: str,
    strides: Sequence[Sequence[int]],
    **arch_kwargs,
) -> DenseNetwork:
    """A network of `vision_ssm.medical`, called as nnU-Net calls a class.

    Args:
        input_channels, num_classes: of the data set, cascades and regions included.
        deep_supervision: return the logits of every level. The heads are made in any case, so that a checkpoint fits
            with and without it; nnU-Net sets `decoder.deep_supervision` later.
        name: of the network in timm; its ending `_2d` or `_3d` may be left out.
        strides: of each stage, from the plan; for a network with sizes of its own, those between its outputs.
        arch_kwargs: the plan's others, for networks that follow a plan (features_per_stage, kernel_sizes, ...), and
            the network's own arguments: `input_size`, the patch, wherever it is one.

    Raises:
        ValueError: no such network; the plan asks for layers that the network does not have; an argument is missing or
            unknown; or the network has no deep supervision.
    """
    dims = len(strides[0])
    traits = network_traits(name, dims)
    given = dict(arch_kwargs, strides=strides)
    own = {key: value for key, value in arch_kwargs.items() if key in traits.arguments - _SET_HERE}
    allowed = PLAN_KEYS if traits.follows_plan else {"strides"}
    if unknown := sorted(set(given) - set(own) - allowed):
        raise ValueError(
            f"{traits.name} takes no {', '.join(unknown)}: `vision-ssm nnunet-plans` writes the arguments that it takes"
        )
    if "input_size" in traits.arguments and "input_size" not in own:
        raise ValueError(f"{traits.name} needs `input_size`, the patch: `vision-ssm nnunet-plans` writes it")
    if deep_supervision and not traits.deep_supervision:
        raise ValueError(_no_deep_supervision(traits.name))
    if traits.follows_plan:
        own |= planned_sizes(traits.name, given)
    if traits.deep_supervision:
        own["deep_supervision"] = True
    model = timm.create_model(traits.name, in_chans=input_channels, num_classes=num_classes, **own)
    if traits.deep_supervision:
        model.decoder.deep_supervision = bool(deep_supervision)
    elif not hasattr(model, "decoder"):
        model.decoder = _SingleOutput()
    return model
