"""nnU-Net's plans rewritten for other networks."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import printable
from ..medical.plans import PLAN_KEYS, arch_kwargs, configuration_of, patch_of, stage_strides, strides_product
from .factory import NETWORKS, Network, NetworkTraits, network_traits

__all__ = ["architecture", "plans_name", "rewrite_plans"]

# Of plans up to nnU-Net 2.2, whose configurations hold the sizes themselves.
_FLAT = (
    "UNet_class_name", "UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder", "num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes",
)  # fmt: skip
# What is written here: a plan may be rewritten again.
_OURS = {"name", "input_size", "window"}


def _published(network: str) -> str | None:
    """The published name of a network, if it has one."""
    for published, name in NETWORKS.items():
        if network in (name, f"{name}_2d", f"{name}_3d"):
            return published
    return None


def plans_name(network: str) -> str:
    """What nnU-Net's plans are called for a network: nnUNetUMambaEncPlans for "umamba_enc"."""
    return f"nnUNet{_published(network) or network}Plans"


def _between(patch: Sequence[int], outputs: Sequence[torch.Tensor]) -> list[list[int]]:
    """Strides between outputs; nnU-Net leaves out the last, its deepest stage, which has no output."""
    sides = [tuple(patch), *(tuple(y.shape[2:]) for y in outputs)]
    strides = [[a // b for a, b in zip(before, after)] for before, after in pairwise(sides)]
    return [*strides, [1] * len(patch)]


def _forward(arch: Mapping, traits: NetworkTraits, patch: Sequence[int]) -> list[torch.Tensor]:
    """The network's outputs for a patch, by shape alone, without the cost of computing them."""
    kwargs = dict(arch["arch_kwargs"])
    kwargs.setdefault("name", traits.name)
    try:
        model = Network(1, 2, traits.deep_supervision, **kwargs).eval()  # batch norms of one voxel cannot train
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            y = model(torch.empty(1, 1, *patch))
    except (TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"{traits.name} cannot be made by this plan: {error}") from error
    outputs = y if isinstance(y, list) else [y]
    if any(output.dim() != len(patch) + 2 for output in outputs) or list(outputs[0].shape[2:]) != list(patch):
        raise ValueError(
            f"{traits.name} gives {tuple(outputs[0].shape)} for a patch of {tuple(patch)}: no segmentation"
        )
    return outputs


def architecture(network: str, configuration: Mapping) -> dict:
    """The entry `architecture` of a configuration for another network.

    A network that follows plans keeps their sizes; for any other only the strides between its outputs remain, from
    which nnU-Net makes the targets of deep supervision.

    Args:
        network: name in timm, with or without its ending `_2d` or `_3d`.
        configuration: of a plans file, with what it inherits, in the present format or the flat one up to 2.2.

    Raises:
        ValueError: the network does not fit: dimensions, layers, or a patch that it cannot take.
    """
    patch = list(patch_of(configuration, "the plan's configuration"))
    traits = network_traits(network, len(patch))
    given = configuration.get("architecture")
    planned = arch_kwargs(configuration)
    if "strides" not in planned:
        raise ValueError("the plan's arch_kwargs have no 'strides'")
    strides = stage_strides(planned, "the plan's arch_kwargs")
    if len(strides[0]) != len(patch):
        raise ValueError(f"the plan's strides have {len(strides[0])} axes, its patch {len(patch)}")
    of_another = str((given or {}).get("network_class_name", "")).startswith("vision_ssm.")
    kept = PLAN_KEYS | traits.arguments if of_another else planned.keys()
    if not traits.follows_plan:
        kept = {"strides", *traits.arguments}
    kwargs = {key: value for key, value in planned.items() if key in kept and key not in _OURS}
    if published := _published(network):
        found = {"network_class_name": f"vision_ssm.nnunet.{published}"}
    else:
        found, kwargs = {"network_class_name": "vision_ssm.nnunet.Network"}, {"name": traits.name} | kwargs
    if "input_size" in traits.arguments:
        kwargs["input_size"] = patch
    if "window" in traits.arguments:  # the published windows are the deepest maps of their patches
        kwargs["window"] = [side // total for side, total in zip(patch, strides_product(strides))]
    imported = (given or {}).get("_kw_requires_import", ())
    if not isinstance(imported, Sequence) or not all(isinstance(key, str) for key in imported):
        raise ValueError(f"the plan's '_kw_requires_import' is {printable(imported, 60)}: expected a list of names")
    imported = [key for key in imported if key in kwargs]
    found |= {"arch_kwargs": kwargs, "_kw_requires_import": imported}
    outputs = _forward(found, traits, patch)
    if traits.deep_supervision and not traits.follows_plan:
        kwargs["strides"] = _between(patch, outputs)
    return found


def _needed(configurations: Mapping, chosen: Sequence[str]) -> list[str]:
    """The chosen configurations and those that they refer to, in the order of the file."""
    found, open_names = set(), list(chosen)
    while open_names:
        name = open_names.pop()
        if name not in configurations:
            raise ValueError(f"the plan has no configuration {name!r}: expected one of {', '.join(configurations)}")
        if not isinstance(configurations[name], Mapping):
            shown = printable(configurations[name], 60)
            raise ValueError(f"configuration {name} is {shown}: expected keys with their values")
        if name not in found:
            found.add(name)
            for key in ("inherits_from", "previous_stage", "next_stage"):
                value = configurations[name].get(key) or ()
                names = [value] if isinstance(value, str) else value
                if not isinstance(names, Sequence) or not all(isinstance(other, str) for other in names):
                    raise ValueError(f"configuration {name}: '{key}' is {printable(value, 60)}: expected names")
                open_names += names
    return [name for name in configurations if name in found]


def rewrite_plans(
    plans: Mapping, network: str, name: str | None = None, configurations: Sequence[str] | None = None
) -> dict:
    """Plans for another network; what nnU-Net preprocessed for the given ones serves the new ones, too.

    Args:
        plans: content of a plans file (`nnUNetPlans.json`), in the present format or the flat one up to 2.2.
        network: name in timm, with or without its ending `_2d` or `_3d`.
        name: of the new plans, which is the name of their file without `.json`; `plans_name(network)` by default.
        configurations: those to keep, with those that they refer to (a cascade's first stage); by default all that the
            network's dimensions fit. Others are left out, as they would train nnU-Net's own network.

    Raises:
        ValueError: no plans; no such configuration or network; or the network does not fit a configuration.
    """
    known = plans.get("configurations")
    if not isinstance(known, Mapping) or "plans_name" not in plans:
        raise ValueError("this is no plans file of nnU-Net v2: it has no 'configurations' or no 'plans_name'")
    chosen = list(configurations or _fitting(plans, network))
    new = copy.deepcopy(dict(plans))
    new["plans_name"] = name or plans_name(network)
    new["configurations"] = {}
    for key in _needed(known, chosen):
        own = copy.deepcopy(dict(known[key]))
        if "inherits_from" not in own or own.keys() & {"architecture", "patch_size", *_FLAT}:
            try:
                own["architecture"] = architecture(network, copy.deepcopy(configuration_of(plans, key)))
            except ValueError as error:
                raise ValueError(f"configuration {key}: {error}") from error
        new["configurations"][key] = {k: v for k, v in own.items() if k not in _FLAT}
    return new


def _fitting(plans: Mapping, network: str) -> list[str]:
    """Configurations that a network has the dimensions for."""
    errors, found = [], []
    for name in plans["configurations"]:
        try:
            network_traits(network, len(patch_of(configuration_of(plans, name), f"configuration {name}")))
        except ValueError as error:
            errors.append(error)
        else:
            found.append(name)
    if not found:
        raise errors[0] if errors else ValueError("the plan has no configurations")
    return found
