"""Training and testing by config on MMEngine: safe checkpoints, exact resume, checked data.

Needs mmengine, which the extras `openmmlab` and `medical` bring.
"""

from importlib.util import find_spec

if find_spec("mmengine") is None:
    raise ImportError(
        "training by config needs mmengine: pip install 'vision-ssm[openmmlab]', or 'vision-ssm[medical]' for volumes"
    )

from .config import ConfigError, load_config, packaged_configs
from .finite import FiniteHook, NonFiniteError
from .launch import test, train
from .network import build_network, check_classes, class_logits, level_loss, load_network, network_state_dict
from .order import DataError
from .precision import BFloat16OptimWrapper
from .runner import Runner

__all__ = [
    "BFloat16OptimWrapper",
    "ConfigError",
    "DataError",
    "FiniteHook",
    "NonFiniteError",
    "Runner",
    "build_network",
    "check_classes",
    "class_logits",
    "level_loss",
    "load_config",
    "load_network",
    "network_state_dict",
    "packaged_configs",
    "test",
    "train",
]
