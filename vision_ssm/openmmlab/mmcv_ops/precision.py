"""The precision in which the bridged operators compute."""

import torch
from torch import Tensor

__all__ = ["wide"]


def wide(x: Tensor) -> Tensor:
    """In at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
