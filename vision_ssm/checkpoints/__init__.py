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
from .reading import read, unwrap

__all__ = [
    "CheckpointError",
    "check_state_dict",
    "convert_state_dict",
    "converting",
    "load_checkpoint",
    "load_into",
    "read",
    "rename",
    "unwrap",
]
