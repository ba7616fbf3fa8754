"""Vision SSM: the zoo of vision state-space models for timm.

Importing the package registers its models: `timm.create_model("vmamba_tiny_s1l8")`.
"""

from . import medical, models
from .checkpoints import CheckpointError, convert_state_dict, load_checkpoint
from .ops import available_backends, selective_scan, selective_scan_nd, use_backend
from .registry import model_names

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "__version__",
    "available_backends",
    "convert_state_dict",
    "load_checkpoint",
    "medical",
    "model_names",
    "models",
    "selective_scan",
    "selective_scan_nd",
    "use_backend",
]
