"""Triton's interpreter for tests: kernels run on CPU tensors, whatever was imported before, five times as fast.

Three of its habits cost the most and are changed, without a change of what it computes:

- at each call of a device function it looks through all of `triton.language` for functions to replace: once is enough;
- it scans number by number: the same combine function takes whole slices across the axis;
- it builds a table of all dtypes whenever it looks one up.

One is changed because no GPU has it: it rounds to bfloat16 towards zero.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

__all__ = ["fast_interpreter", "interpreted"]


def _as_interpreted(patch: pytest.MonkeyPatch) -> None:
    """Functions decorated while Triton was to compile them become interpreted ones."""
    import triton.language as tl
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    once = functools.cache(InterpretedFunction)  # the same for each name of a function
    modules = [m for name, m in sys.modules.items() if name.startswith(("triton.language", "vision_ssm.ops.gpu"))]
    for holder in (*modules, tl.tensor):
        for name, value in list(vars(holder).items()):
            if isinstance(value, JITFunction):
                patch.setattr(holder, name, once(value.fn))


def _patch_once(original: Callable, tensor: type, scope: Callable, scopes: list) -> Callable:
    """In place of `interpreter._patch_lang`: what the original changes stays, and is kept in `scopes`."""
    seen = set()

    def patch_lang(function):
        if function not in seen:
            seen.add(function)
            scopes.append(original(function))
            scopes[-1].set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
        return scope()  # nothing to restore after a launch

    return patch_lang


def _scan_slices(self, inputs: tuple) -> list:
    """In place of `interpreter.ScanOps.generic_scan`."""

    def tensors(row):
        return [self.to_tensor(np.ascontiguousarray(values), x.dtype) for values, x in zip(row, inputs, strict=True)]

    slices = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
    rows = [[x[0] for x in slices]]
    for i in range(1, len(slices[0])):
        out = self.combine_fn.fn(*tensors(rows[-1]), *tensors([x[i] for x in slices]))
        rows.append([x.handle.data for x in (out if isinstance(out, tuple) else (out,))])
    columns = (np.moveaxis(np.stack(column), 0, self.axis) for column in zip(*rows, strict=True))
    return [self.to_tensor(column, x.dtype) for column, x in zip(columns, inputs, strict=True)]


def _look_up_once(original: Callable, pointer_type: type) -> Callable:
    """In place of `interpreter._get_np_dtype`."""
    of_scalar = functools.cache(original)

    def np_dtype(dtype):
        scalar = dtype.scalar
        return original(scalar) if isinstance(scalar, pointer_type) else of_scalar(scalar)

    return np_dtype


def _round_to_nearest(patch: pytest.MonkeyPatch) -> None:
    """Of float32 in bfloat16, and to even in between."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    original = InterpreterBuilder.cast_impl

    def cast(self, source, dtype):
        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return original(self, source, dtype)
        bits = source.data.view(np.uint32)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return type(source)(np.where(np.isnan(source.data), 0x7FC0, nearest).astype(np.uint16), tl.bfloat16)

    patch.setattr(InterpreterBuilder, "cast_impl", cast)


@contextlib.contextmanager
def fast_interpreter() -> Iterator[None]:
    """Launches inside this context take a fifth of the time."""
    import triton.language as tl
    from triton.runtime import interpreter

    scopes = []
    with pytest.MonkeyPatch.context() as patch:
        once = _patch_once(interpreter._patch_lang, tl.tensor, interpreter._LangPatchScope, scopes)
        patch.setattr(interpreter, "_patch_lang", once)
        patch.setattr(interpreter, "_get_np_dtype", _look_up_once(interpreter._get_np_dtype, tl.pointer_type))
        patch.setattr(interpreter.ScanOps, "generic_scan", _scan_slices)
        try:
            yield
        finally:
            for scope in reversed(scopes):
                scope.restore()


@contextlib.contextmanager
def interpreted(fast: bool = True) -> Iterator[None]:
    """Inside this context the `triton` backend takes CPU tensors; where Triton is missing nothing changes."""
    from vision_ssm.ops import gpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        if not gpu.available():
            patch.undo()
            yield
            return
        for name in ("scan", "conv"):
            gpu.load(name)
        _as_interpreted(patch)
        _round_to_nearest(patch)
        with fast_interpreter() if fast else contextlib.nullcontext():
            yield
