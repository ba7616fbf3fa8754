"""Starts of fresh networks that several families share."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn as nn
from timm.layers import trunc_normal_

from ..layers import SelectiveSSM

__all__ = [
    "SSMInit", "checked_ssm_init", "init_linear", "init_ssm_as_linear", "init_truncated", "init_wide",
]  # fmt: skip

# How the scans of a family start whose reference loses Mamba's own start, by accident as it seems.
SSMInit = Literal["reference", "mamba"]


def checked_ssm_init(given: str) -> str:
    """`given`, an argument `ssm_init`.

    Raises:
        ValueError: there is no such start.
    """
    if given not in ("reference", "mamba"):
        raise ValueError(f"`ssm_init` is {given!r}: expected 'reference' or 'mamba'")
    return given


def init_wide(init: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> None:
    """`init(tensor)`, drawn in float32 at least.

    In bfloat16 timm's truncated normal distributions put one value in a few hundred on their far cuts, at +-2.
    """
    wide = torch.empty_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    init(wide)
    with torch.no_grad():
        tensor.copy_(wide)


def init_truncated(tensor: torch.Tensor) -> None:
    """The truncated normal distribution of 0.02, with which vision transformers start."""
    init_wide(partial(trunc_normal_, std=0.02), tensor)


def init_linear(layer: nn.Linear | nn.Conv2d) -> None:
    """The start of vision transformers: a weight from `init_truncated`, a bias of 0."""
    init_truncated(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_ssm_as_linear(ssm: SelectiveSSM) -> None:
    """The start of references whose pass over all linear layers (`init_linear`) meets the scan's projections, too.

    The bias of 0 makes a step of softplus(0) = 0.69.
    """
    init_truncated(ssm.x_proj)
    init_truncated(ssm.dt_proj)
    nn.init.zeros_(ssm.dt_bias)
