"""The `triton` backend: kernels for NVIDIA GPUs, compiled when first used. Importing this loads no Triton.

`TRITON_INTERPRET=1` runs the same kernels on the CPU, slowly, for tests.
"""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

from .plan import states_shape

__all__ = [
    "MOST_PATHS",
    "MOST_STATES",
    "MOST_TAPS",
    "available",
    "interpreting",
    "load",
    "runs_on",
    "states_shape",
]

# What the kernels are written for; the chunked backend takes the rest.
MOST_STATES = 64  # of the scan
MOST_PATHS, MOST_TAPS = 62, 16  # of the convolution
_OLDEST = (7, 5)  # compute capability that Triton compiles for


def interpreting() -> bool:
    """Whether Triton interprets kernels, which then take CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capable(index: int) -> bool:
    nvidia = torch.version.cuda is not None and torch.cuda.is_available()
    return nvidia and torch.cuda.get_device_capability(index) >= _OLDEST


def available() -> bool:
    """Whether the kernels can run on this machine."""
    if not _installed():
        return False
    return interpreting() or (torch.cuda.is_available() and any(map(_capable, range(torch.cuda.device_count()))))


def runs_on(device: torch.device) -> bool:
    """Whether the kernels take tensors of this device."""
    if device.type == "cpu":
        return _installed() and interpreting()
    if device.type != "cuda" or not _installed():
        return False
    current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # fake tensors need no GPU
    return _capable(current if device.index is None else device.index)


def load(name: str) -> ModuleType:
    """The host side of the kernels, "scan" or "conv"; loads Triton."""
    return importlib.import_module(f".{name}", __name__)
