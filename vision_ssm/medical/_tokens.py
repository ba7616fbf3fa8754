"""Token mixers on maps: every pixel or voxel is a token, in row-major order."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn as nn

from ..scan import fix_in_trace

__all__ = ["TokenMixer", "as_map", "as_tokens", "in_full_precision"]


def as_tokens(x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, *grid) to (batch, tokens, channels); a view of channels-last memory."""
    return x.flatten(2).transpose(1, 2)


def as_map(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, channels) to (batch, channels, *grid), the grid being that of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def in_full_precision(function: Callable[..., torch.Tensor], x: torch.Tensor, *args) -> torch.Tensor:
    """`function(x, ...)` outside of autocast, which overflows in float16 where Mamba is trained.

    Args:
        function: a module or a method of one; `x` gets the dtype of its parameters (not of quantised ones).
    """
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            module = function if isinstance(function, nn.Module) else function.__self__
            dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
            return function(x.to(dtype), *args)
    return function(x, *args)


class TokenMixer(nn.Module):
    """norm and mixer over the positions of a map as one sequence, (batch, channels, *grid) to the same.

    Args:
        dim: width of the tokens: the channels, or the positions if the channels are the sequence.
        mixer: (batch, length, dim) to the same.
        residual: add the input.
        sequence: what the scan runs over: the "positions", or the "channels" (U-Mamba's small maps).
        sides: of the map, if the channels are the sequence.

    It leaves autocast, as U-Mamba and its followers do.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        residual: bool = False,
        sequence: Literal["positions", "channels"] = "positions",
        sides: Sequence[int] = (),
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.mixer = mixer
        self.residual, self.sequence, self.sides = residual, sequence, tuple(sides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return in_full_precision(self._mix, x)

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        if self.sequence == "channels":
            fix_in_trace(x.shape[2:], "a map")
            if tuple(x.shape[2:]) != self.sides:
                raise ValueError(
                    f"a map of {tuple(x.shape[2:])}: expected {self.sides}, that of the `input_size` that the network "
                    "was made for"
                )
            y = self.mixer(self.norm(x.flatten(2))).unflatten(2, x.shape[2:])
        else:
            y = as_map(self.mixer(self.norm(as_tokens(x))), x)
        return x + y if self.residual else y
