"""Which implementation runs an operator.

| backend     | what it is                                                  | where it runs            |
|-------------|-------------------------------------------------------------|--------------------------|
| `reference` | the recurrence, one step after another                      | any device, any float    |
| `chunked`   | plain PyTorch, vectorised over chunks of the sequence       | any device, any float    |
| `cpu`       | compiled kernels: multi-threaded, vectorised, float32 state | CPU, up to 32-bit floats |
| `triton`    | fused kernels, compiled when first used, float32 state      | NVIDIA GPUs, likewise    |

Left alone, CPU tensors take `cpu` where it was built, CUDA tensors take `triton` where Triton is installed, and
everything else takes `chunked`. `VISION_SSM_BACKEND` or `use_backend` choose otherwise.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from . import cpu, gpu
from .transforms import forward_mode

__all__ = ["BACKENDS", "available_backends", "current_backend", "same_backend", "use_backend"]

BACKENDS = ("reference", "chunked", "cpu", "triton")

_HOW_TO_GET = {
    "cpu": "it is compiled by `pip install .` where a C++ compiler (GCC or Clang) is found, "
    "or in a source tree by `python tools/build_kernels.py`",
    "triton": "it needs an NVIDIA GPU and Triton, which PyTorch's CUDA builds bring along; "
    "TRITON_INTERPRET=1, set before the first use, interprets its kernels on the CPU",
}


@dataclass(frozen=True, eq=False)
class _Choice:
    """What one `use_backend` asks for."""

    name: str
    decompose: bool


# Those that are open in this thread or task, the innermost last. A choice is taken away by identity, so that contexts
# which are not left in the order in which they were entered (generators) leave nothing behind.
_choices: ContextVar[tuple[_Choice, ...]] = ContextVar("vision_ssm_backends", default=())


def available_backends() -> list[str]:
    """Names of the backends that this installation can run."""
    found = {"cpu": cpu.available, "triton": gpu.available}
    return [name for name in BACKENDS if name not in found or found[name]()]


def _check(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    if name not in available_backends():
        raise RuntimeError(f"backend {name!r} is not available: {_HOW_TO_GET[name]}")
    return name


@contextlib.contextmanager
def use_backend(name: str, decompose: bool = False) -> Iterator[None]:
    """Run the operators on `name` inside this context.

    It holds for this thread or asyncio task, and for the backward pass of what runs inside, wherever that runs, with
    what the models' gradient checkpointing computes again. Threads that are started inside choose for themselves, and
    so does what `torch.utils.checkpoint` of one's own computes again; `VISION_SSM_BACKEND` is for the whole process.

    Args:
        name: one of `BACKENDS`.
        decompose: with `chunked`, run plain PyTorch operations instead of one operator, for exporters that know no
            custom operators (ONNX). Autograd then differentiates through them.

    Raises:
        ValueError: unknown name, or `decompose` with another backend.
        RuntimeError: the backend is missing; the message says how to get it.
    """
    choice = _Choice(_check(name), decompose)
    if decompose and name != "chunked":
        raise ValueError(f"`decompose` needs the chunked backend, got {name!r}")
    _choices.set((*_choices.get(), choice))
    try:
        yield
    finally:
        _choices.set(tuple(other for other in _choices.get() if other is not choice))


def same_backend() -> Callable[[], contextlib.AbstractContextManager[None]] | None:
    """Makes contexts in which the operators run on what `use_backend` has chosen here and now, wherever and whenever
    they are entered; None if it has chosen nothing."""
    choices = _choices.get()
    return functools.partial(_reopened, choices) if choices else None


@contextlib.contextmanager
def _reopened(choices: tuple[_Choice, ...]) -> Iterator[None]:
    token = _choices.set(choices)
    try:
        yield
    finally:
        _choices.reset(token)


@torch.compiler.assume_constant_result
def decomposing() -> bool:
    """Whether operators are to be written out as plain PyTorch operations: when asked to, and where no operator is
    known (ONNX) or has a derivative (forward mode)."""
    choices = _choices.get()
    return bool(choices and choices[-1].decompose) or forward_mode() or torch.onnx.is_in_onnx_export()


@functools.cache
def _warn(name: str) -> None:
    warnings.warn(
        f"vision_ssm runs on the slower chunked backend: backend {name!r} is missing; {_HOW_TO_GET[name]}",
        stacklevel=3,
    )


def _takes(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend takes tensors of this device and dtype."""
    if name == "cpu":
        return device.type == "cpu" and dtype != torch.float64 and cpu.available()
    if name == "triton":
        return dtype != torch.float64 and gpu.runs_on(device)
    return True


def current_backend(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The backend that tensors of this device and dtype use now."""
    device = torch.device(device)
    choices = _choices.get()
    forced = choices[-1].name if choices else os.environ.get("VISION_SSM_BACKEND")
    if forced and _takes(_check(forced), device, dtype):
        return forced
    best = {"cpu": "cpu", "cuda": "triton"}.get(device.type)
    if best is None or dtype == torch.float64:
        return "chunked"
    if _takes(best, device, dtype):
        return best
    _warn(best)
    return "chunked"
