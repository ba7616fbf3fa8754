"""Sizes of the networks that follow nnU-Net's plans (U-Mamba, LMa-UNet), and such plans as their arguments."""

import json
import math
import pydoc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn as nn

from ..errors import printable
from ._fields import entries, mapping, numbers, per_axis, whole

__all__ = [
    "ABDOMEN_2D",
    "ABDOMEN_3D",
    "PLAN_KEYS",
    "Plan",
    "arch_kwargs",
    "axes",
    "configuration_of",
    "patch_of",
    "plan_arguments",
    "planned_sizes",
    "stage_strides",
    "strides_product",
    "with_plan",
]  # fmt: skip

# The plans of U-Mamba's paper: abdominal MR in 2D (320x320, 7 stages) and in 3D (48x160x224, 6 stages).
ABDOMEN_2D = dict(dims=2, features=(32, 64, 128, 256, 512, 512, 512))
ABDOMEN_3D = dict(
    dims=3,
    features=(32, 64, 128, 256, 320, 320),
    kernels=((1, 3, 3), 3, 3, 3, 3, 3),
    strides=(1, (1, 2, 2), 2, 2, 2, (1, 2, 2)),
)


def axes(values: Sequence[int | Sequence[int]], dims: int) -> tuple[tuple[int, ...], ...]:
    """One number for each axis in every entry, where an entry may be one number for all axes."""
    return tuple((value,) * dims if isinstance(value, int) else tuple(value) for value in values)


def strides_product(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Along each axis, how many times smaller the deepest map is."""
    return tuple(math.prod(steps) for steps in zip(*strides))


@dataclass(frozen=True)
class Plan:
    """Sizes of a residual U-Net: one entry a stage, from full resolution down.

    Attributes:
        dims: 2 or 3.
        features: channels.
        kernels, strides: one number for each axis; the first stride is 1.
        depths: blocks.
        decoder_depths: blocks of the decoder's stages, one less, deepest first.
    """

    dims: int
    features: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]

    @classmethod
    def complete(cls, dims, features, kernels=None, strides=None, depths=None, decoder_depths=None) -> "Plan":
        """Kernels of 3, strides of 2 and two blocks where nothing is given.

        A kernel or stride may be one number; one number instead of a list serves every stage (as a stride every stage
        after the first).

        Raises:
            ValueError: a list has another length, or an entry another number of axes.
        """
        stages = len(features)

        def each(value, default: int, count: int) -> Sequence:
            value = default if value is None else value
            return [value] * count if isinstance(value, int) else value

        strides = 2 if strides is None else strides
        plan = cls(
            dims,
            tuple(features),
            axes(each(kernels, 3, stages), dims),
            axes([1] + [strides] * (stages - 1) if isinstance(strides, int) else strides, dims),
            tuple(each(depths, 2, stages)),
            tuple(each(decoder_depths, 2, stages - 1)),
        )
        if stages < 2:
            raise ValueError(f"`features` has {stages} entries: expected two stages or more")
        for name in ("kernels", "strides", "depths", "decoder_depths"):
            values, count = getattr(plan, name), stages - (name == "decoder_depths")
            if len(values) != count:
                raise ValueError(f"`{name}` has {len(values)} entries: expected {count}, for {stages} stages")
            if any(not isinstance(value, int) and len(value) != dims for value in values):
                raise ValueError(f"`{name}` is {values}: expected {dims} numbers in each entry")
        if any(size % 2 == 0 for kernel in plan.kernels for size in kernel):
            raise ValueError(f"`kernels` is {plan.kernels}: expected odd numbers, which keep the sides")
        if max(plan.strides[0]) != 1:
            raise ValueError(f"the first stride is {plan.strides[0]}: expected 1, for the stage at full resolution")
        return plan

    @property
    def multiples(self) -> tuple[int, ...]:
        """What each side of an input is a multiple of."""
        return strides_product(self.strides)


def configuration_of(plans: Mapping, name: str, source: str = "the plan") -> dict:
    """A configuration of nnU-Net's plans with what it inherits.

    Raises:
        ValueError: there is none of that name in `source`.
    """
    known = mapping(plans.get("configurations", {}), f"{source}: 'configurations'")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{source} has no configuration {name!r}: expected one of {', '.join(known) or 'none'}")
    found = dict(mapping(known[name], f"{source}: configuration {name!r}"))
    if parent := found.pop("inherits_from", None):
        others = {key: value for key, value in known.items() if key != name}  # no way round in a circle
        found = configuration_of({"configurations": others}, parent, source) | found
    return found


# The layers of the networks that follow a plan. A plan may name others: they are refused, not replaced.
_FIXED = {
    "conv_op": (nn.Conv2d, nn.Conv3d),
    "conv_bias": (True,),
    "norm_op": (nn.InstanceNorm2d, nn.InstanceNorm3d),
    "norm_op_kwargs": ({"eps": 1e-05, "affine": True},),
    "dropout_op": (None,),
    "nonlin": (nn.LeakyReLU,),
    "nonlin_kwargs": ({"inplace": True}, {"inplace": False}, {}, None),
    "nonlin_first": (False,),
}
_MOST_WEIGHTS = 10**9  # of the encoder; nnU-Net's largest has a tenth
_DEPTHS = ("n_blocks_per_stage", "n_conv_per_stage")
# nnU-Net's names in `arch_kwargs`; the arguments of a dropout that is not there mean nothing.
PLAN_KEYS = frozenset(
    (*_FIXED, *_DEPTHS, "n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder",
     "dropout_op_kwargs")
)  # fmt: skip


def _layer(name: str) -> object:
    """The class of PyTorch that a plan names; any other name stays text, since finding it would import it."""
    return (pydoc.locate(name) if name.startswith("torch.nn.") else None) or name


def _check_layers(name: str, dims: int, given: Mapping) -> None:
    for key, supported in _FIXED.items():
        value = given.get(key, supported[0])
        if key in ("conv_op", "norm_op", "dropout_op", "nonlin") and isinstance(value, str):
            value = _layer(value)
        if value not in supported:
            expected = " or ".join(dict.fromkeys(getattr(one, "__name__", str(one)) for one in supported))
            raise ValueError(f"{name}: `{key}` of the plan is {printable(value, 60)}: expected {expected}")
        if key in ("conv_op", "norm_op") and key in given and not value.__name__.endswith(f"{dims}d"):
            raise ValueError(f"{name}: `{key}` of the plan is {value.__name__}, its strides have {dims} axes")


def planned_sizes(name: str, given: Mapping) -> dict:
    """nnU-Net's `arch_kwargs` as `features`, `kernels`, `strides`, `depths` and `decoder_depths`.

    Args:
        name: of the network, or of the plan, for messages.
        given: `arch_kwargs`; keys that are not in `PLAN_KEYS` are left alone.

    Raises:
        ValueError: a size is missing or does not fit the others, or the plan asks for other layers.
    """
    needed = ("strides", "features_per_stage", "kernel_sizes", "n_conv_per_stage_decoder")
    missing = [key for key in needed if key not in given]
    depths = [key for key in _DEPTHS if key in given]
    if missing or len(depths) != 1:
        missing += [] if depths else [" or ".join(_DEPTHS)]
        raise ValueError(
            f"{name}: the plan's arch_kwargs lack {', '.join(missing)}"
            if missing
            else f"{name}: the plan has both {' and '.join(_DEPTHS)}"
        )
    strides = stage_strides(given, name)
    stages, dims = len(strides), len(strides[0])
    if given.get("n_stages", stages) != stages:
        raise ValueError(f"{name}: the plan has {given['n_stages']} stages, but {stages} strides")
    _check_layers(name, dims, given)

    def each(key: str, count: int, least: int = 1) -> tuple[int, ...]:
        if isinstance(given[key], int):
            return (whole(given[key], f"{name}: `{key}`", least),) * count
        return numbers(given[key], f"{name}: `{key}`", least)

    kernels = entries(given["kernel_sizes"], f"{name}: `kernel_sizes`", stages)
    sizes = dict(
        features=each("features_per_stage", stages),
        kernels=axes([per_axis(size, f"{name}: `kernel_sizes[{i}]`", dims) for i, size in enumerate(kernels)], dims),
        strides=strides,
        depths=each(depths[0], stages),
        decoder_depths=each("n_conv_per_stage_decoder", stages - 1),
    )
    stages = zip(sizes["features"], sizes["kernels"], sizes["depths"])
    weights = sum(width**2 * math.prod(kernel) * depth for width, kernel, depth in stages)
    if weights > _MOST_WEIGHTS:
        raise ValueError(f"{name}: the plan's network has {weights / 1e9:.0f} thousand millions of weights")
    return sizes


def stage_strides(given: Mapping, name: str) -> tuple[tuple[int, ...], ...]:
    """The strides in `arch_kwargs`: of each stage one number for each axis.

    Raises:
        ValueError: they are of another kind.
    """
    strides = entries(given.get("strides"), f"{name}: `strides`")
    dims = len(numbers(strides[0], f"{name}: `strides[0]`", most=3))
    return axes([per_axis(stride, f"{name}: `strides[{i}]`", dims) for i, stride in enumerate(strides)], dims)


def patch_of(configuration: Mapping, name: str) -> tuple[int, ...]:
    """The `patch_size` of a configuration of a plan: voxels along each of two or three axes.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    if "patch_size" not in configuration:
        raise ValueError(f"{name} has no 'patch_size'")
    patch = numbers(configuration["patch_size"], f"{name}: 'patch_size'", most=3)
    if len(patch) < 2:
        raise ValueError(f"{name}: 'patch_size' is {list(patch)}: expected two sides, or three")
    return patch


def _present(flat: Mapping) -> dict:
    """The sizes of a configuration of nnU-Net up to 2.2 as `arch_kwargs`."""
    kernels, strides = (entries(flat[key], f"`{key}`") for key in ("conv_kernel_sizes", "pool_op_kernel_sizes"))
    width, most = (whole(flat[key], f"`{key}`") for key in ("UNet_base_num_features", "unet_max_num_features"))
    return dict(
        n_stages=len(kernels),
        features_per_stage=[min(width * 2**i, most) for i in range(len(kernels))],
        kernel_sizes=list(kernels),
        strides=list(strides),
        n_conv_per_stage=flat["n_conv_per_stage_encoder"],
        n_conv_per_stage_decoder=flat["n_conv_per_stage_decoder"],
    )


def arch_kwargs(configuration: Mapping, name: str = "the plan") -> dict:
    """The `arch_kwargs` of a configuration of nnU-Net's plans, also of the flat ones up to 2.2.

    Raises:
        ValueError: it lacks a key; it is named.
    """
    try:
        if "architecture" in configuration:
            given = mapping(configuration["architecture"], f"{name}: 'architecture'")
            return dict(mapping(given["arch_kwargs"], f"{name}: 'arch_kwargs'"))
        return _present(configuration)
    except KeyError as error:
        raise ValueError(f"{name} has no {error}") from error


def plan_arguments(plans: str | Path | Mapping, configuration: str = "3d_fullres") -> dict:
    """Sizes of an nnU-Net v2 plan, and what it sets of the network's own.

    Args:
        plans: `nnUNetPlans.json`, or its content: of nnU-Net up to 2.2 (flat keys) or newer (`architecture`).
        configuration: "2d", "3d_fullres", "3d_lowres", ...

    Returns:
        `dims`, `input_size`, `features`, `kernels`, `strides`, `depths`, `decoder_depths`; of plans that were rewritten
        for a network of this package its arguments too, such as `window`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no plan, the configuration is missing, the plan lacks a key, or it asks for layers that
            the networks do not have.
    """
    source = "the plan" if isinstance(plans, Mapping) else str(plans)
    if not isinstance(plans, Mapping):
        try:
            plans = json.loads(Path(plans).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source} is no JSON: {error}") from error
        mapping(plans, source)
    plan = configuration_of(plans, configuration, source)
    name = f"{source}: configuration {configuration!r}"
    patch = patch_of(plan, name)
    given = arch_kwargs(plan, name)
    sizes = planned_sizes(name, given)
    own = {key: value for key, value in given.items() if key not in PLAN_KEYS | {"name", "input_size"}}
    return dict(dims=len(patch), input_size=patch, **sizes, **own)


def with_plan(
    name: str,
    arguments: Mapping,
    plans: str | Path | Mapping | None,
    configuration: str | None,
    known: Collection[str],
) -> dict:
    """The arguments of a network, its sizes replaced by those of an nnU-Net plan if one is given.

    Args:
        name: of the network, for messages.
        arguments: with `dims`.
        plans, configuration: of `plan_arguments`; "2d" or "3d_fullres" by default.
        known: arguments that the network takes.

    Raises:
        ValueError: the plan has other dimensions, or arguments that are another network's.
    """
    if plans is None:
        if configuration is not None:
            raise ValueError(f"{name}: `configuration` is {configuration!r}, but no `plans` are given")
        return dict(arguments)
    dims = arguments["dims"]
    plan = plan_arguments(plans, configuration or ("2d" if dims == 2 else "3d_fullres"))
    if plan["dims"] != dims:
        raise ValueError(f"{name} has {dims} dimensions, the plan {plan['dims']}")
    if "input_size" not in known:
        del plan["input_size"]
    if strange := sorted(plan.keys() - known):
        raise ValueError(f"{name} takes no {', '.join(strange)}, which the plan sets: it was made for another network")
    return dict(arguments) | plan
