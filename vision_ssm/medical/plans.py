"""Sizes of the networks that follow nnU-Net's plans (U-Mamba, LMa-UNet), and such plans as their arguments."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ABDOMEN_2D",
    "ABDOMEN_3D",
    "Plan",
    "axes",
    "configuration_of",
    "plan_arguments",
    "strides_product",
    "with_plan",
]

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
        """Kernels of 3, strides of 2 and two blocks where nothing is given; a kernel or stride may be one number.

        Raises:
            ValueError: a list has another length, or an entry another number of axes.
        """
        stages = len(features)
        plan = cls(
            dims,
            tuple(features),
            axes(kernels or [3] * stages, dims),
            axes(strides or [1] + [2] * (stages - 1), dims),
            tuple(depths or [2] * stages),
            tuple(decoder_depths or [2] * (stages - 1)),
        )
        for name in ("kernels", "strides", "depths", "decoder_depths"):
            values, count = getattr(plan, name), stages - (name == "decoder_depths")
            if len(values) != count:
                raise ValueError(f"`{name}` has {len(values)} entries: expected {count}, for {stages} stages")
            if any(not isinstance(value, int) and len(value) != dims for value in values):
                raise ValueError(f"`{name}` is {values}: expected {dims} numbers in each entry")
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
    known = plans.get("configurations", {})
    if name not in known:
        raise ValueError(f"{source} has no configuration {name!r}: expected one of {', '.join(known) or 'none'}")
    found = dict(known[name])
    parent = found.pop("inherits_from", None)
    return configuration_of(plans, parent, source) | found if parent else found


def plan_arguments(plans: str | Path | Mapping, configuration: str = "3d_fullres") -> dict:
    """Features, kernels, strides, depths and patch size of an nnU-Net v2 plan.

    Args:
        plans: `nnUNetPlans.json`, or its content: of nnU-Net up to 2.2 (flat keys) or newer (`architecture`).
        configuration: "2d", "3d_fullres", "3d_lowres", ...

    Returns:
        `dims`, `input_size`, `features`, `kernels`, `strides`, `depths`, `decoder_depths`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no plan, the configuration is missing, or the plan lacks a key; it is named.
    """
    source = "the plan" if isinstance(plans, Mapping) else str(plans)
    if not isinstance(plans, Mapping):
        try:
            plans = json.loads(Path(plans).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{source} is no JSON: {error}") from error
    plan = configuration_of(plans, configuration, source)
    try:
        patch = tuple(plan["patch_size"])
        if "architecture" in plan:
            network = plan["architecture"]["arch_kwargs"]
            kernels, strides = network["kernel_sizes"], network["strides"]
            features = list(network["features_per_stage"])
            depths = network["n_blocks_per_stage" if "n_blocks_per_stage" in network else "n_conv_per_stage"]
            decoder_depths = network["n_conv_per_stage_decoder"]
        else:
            kernels, strides = plan["conv_kernel_sizes"], plan["pool_op_kernel_sizes"]
            width, most = plan["UNet_base_num_features"], plan["unet_max_num_features"]
            features = [min(width * 2**i, most) for i in range(len(kernels))]
            depths, decoder_depths = plan["n_conv_per_stage_encoder"], plan["n_conv_per_stage_decoder"]
    except KeyError as error:
        raise ValueError(f"{source}: configuration {configuration!r} has no {error}") from error
    stages, dims = len(features), len(patch)
    return dict(
        dims=dims,
        input_size=patch,
        features=tuple(features),
        kernels=axes(kernels, dims),
        strides=axes(strides, dims),
        depths=(depths,) * stages if isinstance(depths, int) else tuple(depths),
        decoder_depths=(decoder_depths,) * (stages - 1) if isinstance(decoder_depths, int) else tuple(decoder_depths),
    )


def with_plan(
    name: str,
    arguments: Mapping,
    plans: str | Path | Mapping | None,
    configuration: str | None,
    sized: bool,
) -> dict:
    """The arguments of a network, its sizes replaced by those of an nnU-Net plan if one is given.

    Args:
        name: of the network, for messages.
        arguments: with `dims`.
        plans, configuration: of `plan_arguments`; "2d" or "3d_fullres" by default.
        sized: whether the network takes an `input_size`.
    """
    if plans is None:
        if configuration is not None:
            raise ValueError(f"{name}: `configuration` is {configuration!r}, but no `plans` are given")
        return dict(arguments)
    dims = arguments["dims"]
    plan = plan_arguments(plans, configuration or ("2d" if dims == 2 else "3d_fullres"))
    if plan["dims"] != dims:
        raise ValueError(f"{name} has {dims} dimensions, the plan {plan['dims']}")
    if not sized:
        del plan["input_size"]
    return dict(arguments) | plan
