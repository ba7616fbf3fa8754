"""The networks of `vision_ssm.medical` in nnU-Net v2, without a fork of it.

Two routes: `rewrite_plans` names a network in an nnU-Net plans file, which nnU-Net's own trainer then trains; or
`TRAINERS_FOLDER`, the value for the environment variable `nnUNet_extTrainer`, adds one trainer for each network.

A plans file names `vision_ssm.nnunet.UMambaEnc`, or any other key of `NETWORKS`, or `vision_ssm.nnunet.Network` with a
`name`. Only `vision_ssm.nnunet.trainer` imports nnU-Net.
"""

from functools import partial
from pathlib import Path

from .factory import NETWORKS, Network
from .plans import architecture, rewrite_plans

__all__ = ["NETWORKS", "TRAINERS_FOLDER", "Network", "architecture", "rewrite_plans"]

TRAINERS_FOLDER = Path(__file__).parent / "trainers"


def __getattr__(name: str) -> partial:
    """`Network` for one of `NETWORKS`."""
    if name not in NETWORKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(Network, name=NETWORKS[name])
