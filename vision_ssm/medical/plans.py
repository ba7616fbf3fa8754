"""nnU-Net's plans as arguments of the networks that follow them (U-Mamba, LMa-UNet)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["axes", "plan_arguments", "with_plan"]


def axes(values: Sequence[int | Sequence[int]], dims: int) -> list[tuple[int, ...]]:
    """One number for each axis in every entry, where an entry may be one number for all axes."""
    return [(value,) * dims if isinstance(value, int) else tuple(value) for value in values]


def _configuration(plans: Mapping, name: str, source) -> dict:
    """A configuration with what it inherits."""
    known = plans.get("configurations", {})
    if name not in known:
        raise ValueError(f"{source} has no configuration {name!r}: expected one of {', '.join(known) or 'none'}")
    found = dict(known[name])
    parent = found.pop("inherits_from", None)
    return _configuration(plans, parent, source) | found if parent else found


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
    plan = _configuration(plans, configuration, source)
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
