"""Checkpoints: safe reading, recognition of published layouts, conversion, strict loading."""

from .loading import (
    CheckpointError,
    check_state_dict,
    convert_state_dict,
    converting,
    load_checkpoint,
    load_into,
    rename,
)
from .mixers import VSS_NAMES, fit_shapes, mamba_parameters, stack_paths
from .reading import read, unwrap

__all__ = [
    "VSS_NAMES",
    "CheckpointError",
    "check_state_dict",
    "convert_state_dict",
    "converting",
    "fit_shapes",
    "load_checkpoint",
    "load_into",
    "mamba_parameters",
    "read",
    "rename",
    "stack_paths",
    "unwrap",
]
