"""Which implementation runs an operator.

| backend     | what it is                                                  | where it runs            |
|-------------|-------------------------------------------------------------|--------------------------|
| `reference` | the recurrence, one step after another                      | any device, any float    |
| `chunked`   | plain PyTorch, vectorised over chunks of the sequence       | any device, any float    |
| `cpu`       | compiled kernels: multi-threaded, vectorised, float32 state | CPU, up to 32-bit floats |

Left alone, CPU tensors take `cpu` where it was built, and everything else takes `chunked`. `VISION_SSM_BACKEND` or
`use_backend` choose otherwise.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch

from . import cpu

__all__ = ["BACKENDS", "available_backends", "current_backend", "use_backend"]

BACKENDS = ("reference", "chunked", "cpu")

_HOW_TO_GET = {
    "cpu": "it is compiled by `pip install .` where a C++ compiler (GCC or Clang) is found, "
    "or in a source tree by `python tools/build_kernels.py`",
}

_forced: str | None = None
_decompose = False


def available_backends() -> list[str]:
    """Names of the backends that this installation can run."""
    return [name for name in BACKENDS if name != "cpu" or cpu.available()]


def _check(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    if name not in available_backends():
        raise RuntimeError(f"backend {name!r} is not available: {_HOW_TO_GET[name]}")
    return name


@contextlib.contextmanager
def use_backend(name: str, decompose: bool = False) -> Iterator[None]:
    """Run the operators on `name` inside this context, in every thread.

    Args:
        name: one of `BACKENDS`.
        decompose: with `chunked`, run plain PyTorch operations instead of one operator, for exporters that know no
            custom operators (ONNX). Autograd then differentiates through them.

    Raises:
        ValueError: unknown name, or `decompose` with another backend.
        RuntimeError: the backend is missing; the message says how to get it.
    """
    global _forced, _decompose
    _check(name)
    if decompose and name != "chunked":
        raise ValueError(f"`decompose` needs the chunked backend, got {name!r}")
    before = _forced, _decompose
    _forced, _decompose = name, decompose
    try:
        yield
    finally:
        _forced, _decompose = before


def decomposing() -> bool:
    """Whether operators are to be written out as plain PyTorch operations."""
    return _decompose or torch.onnx.is_in_onnx_export()


_warned = False


def current_backend(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The backend that tensors of this device and dtype use now."""
    global _warned
    device = torch.device(device)
    forced = _forced or os.environ.get("VISION_SSM_BACKEND")
    compiled = device.type == "cpu" and dtype != torch.float64
    if forced:
        _check(forced)
        if forced != "cpu" or compiled:
            return forced
    if compiled and cpu.available():
        return "cpu"
    if compiled and not _warned:
        _warned = True
        warnings.warn(
            f"vision_ssm runs on the slower chunked backend: backend 'cpu' is missing; {_HOW_TO_GET['cpu']}",
            stacklevel=2,
        )
    return "chunked"
