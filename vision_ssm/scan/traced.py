"""Traces of `torch.jit.trace` are for one size: tables of a grid and decisions by size are constants in them."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fix_in_trace"]

_library = torch.library.Library("vision_ssm", "FRAGMENT")
# Conservative: a trace keeps the call, though nothing reads its result.
_library.define("fixed_sizes(Tensor sizes, int[] expected, str what) -> Tensor", alias_analysis="CONSERVATIVE")


@torch.library.impl(_library, "fixed_sizes", "CompositeExplicitAutograd")
def _fixed_sizes(sizes: Tensor, expected: Sequence[int], what: str) -> Tensor:
    found = sizes.tolist()
    if found != list(expected):
        raise ValueError(
            f"this trace is for {what} of {list(expected)}, the input has {found}: trace the model at that size"
        )
    return torch.empty_like(sizes)


def fix_in_trace(sizes: Sequence[int], what: str) -> None:
    """Under `torch.jit.trace`, record that the trace is for these sizes: with others it raises a RuntimeError.

    ONNX has no such operator: an exported graph is for the sizes that its inputs declare.

    Args:
        sizes: from the shape of an input.
        what: they are the sizes of, for the message.
    """
    if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
        found = torch.stack([torch.as_tensor(size) for size in sizes])
        torch.ops.vision_ssm.fixed_sizes(found, [int(size) for size in sizes], what)
