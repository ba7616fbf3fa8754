"""Checkpoints: safe reading, recognition of published layouts, conversion, strict loading."""

from .checks import check_state_dict
from .error import CheckpointError
from .fitting import count_entries
from .loading import convert_state_dict, converting, load_checkpoint, load_into, read_state_dict, rename
from .mixers import VSS_NAMES, fit_shapes, mamba_parameters, stack_paths
from .reading import read, unwrap
from .safetensors_files import safetensors_bytes

__all__ = [
    "VSS_NAMES",
    "CheckpointError",
    "check_state_dict",
    "convert_state_dict",
    "converting",
    "count_entries",
    "fit_shapes",
    "load_checkpoint",
    "load_into",
    "mamba_parameters",
    "read",
    "read_state_dict",
    "rename",
    "safetensors_bytes",
    "stack_paths",
    "unwrap",
]
