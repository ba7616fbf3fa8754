"""Starting kernels, on the device of their tensors."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["intercepted", "launch"]

_intercept: Callable | None = None


@contextlib.contextmanager
def intercepted(instead: Callable) -> Iterator[None]:
    """Hand every launch to `instead(kernel, args, options)`, for tools that compile kernels and do not run them."""
    global _intercept
    before, _intercept = _intercept, instead
    try:
        yield
    finally:
        _intercept = before


def launch(kernel, programs: int, like: Tensor, *args, warps: int = 1, registers: int | None = None, **constants):
    """Run `programs` programs of a kernel on the device and the current stream of `like`.

    Multiply-adds are always fused: Triton's default changes between versions, and with it the last bits.
    """
    if programs == 0:
        return
    options = constants | dict(num_warps=warps, enable_fp_fusion=True)
    if registers is not None:
        options["maxnreg"] = registers
    if _intercept is not None:
        _intercept(kernel, args, options)
        return
    with torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext():
        kernel[(programs,)](*args, **options)
