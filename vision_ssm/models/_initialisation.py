"""Starts of fresh networks that several families share."""

from typing import Literal

import torch.nn as nn
from timm.layers import trunc_normal_

from ..layers import SelectiveSSM

__all__ = ["SSMInit", "checked_ssm_init", "init_linear", "init_ssm_as_linear"]

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


def init_linear(layer: nn.Linear | nn.Conv2d) -> None:
    """The start of vision transformers: a weight from the truncated normal distribution of 0.02, a bias of 0."""
    trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_ssm_as_linear(ssm: SelectiveSSM) -> None:
    """The start of references whose pass over all linear layers (`init_linear`) meets the scan's projections, too.

    The bias of 0 makes a step of softplus(0) = 0.69.
    """
    trunc_normal_(ssm.x_proj, std=0.02)
    trunc_normal_(ssm.dt_proj, std=0.02)
    nn.init.zeros_(ssm.dt_bias)
