"""Mamba token mixers on sequences: causal and bidirectional."""

import math
from typing import List, Literal, Optional  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn as nn

from ..ops import causal_conv1d
from ..scan import bidirectional, path_text, scan_tables
from .ssm import SelectiveSSM

__all__ = ["DepthwiseConv1d", "Mamba", "auto_rank"]


def auto_rank(dim: int, dt_rank: int | Literal["auto"] = "auto") -> int:
    """The rank of the step-size projection; ceil(dim / 16) by default."""
    return math.ceil(dim / 16) if dt_rank == "auto" else dt_rank


class DepthwiseConv1d(nn.Module):
    """K causal depthwise convolutions with SiLU, one a path: weight (K, channels, width), bias (K, channels)."""

    def __init__(self, channels: int, width: int, paths: int = 1, bias: bool = True, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(paths, channels, width, **dd))
        self.bias = nn.Parameter(torch.empty(paths, channels, **dd)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's convolution default: uniform with bound width^-0.5."""
        bound = self.weight.shape[2] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self, x: torch.Tensor, tables: Optional[torch.Tensor] = None, mirrored: Optional[List[bool]] = None
    ) -> torch.Tensor:
        """The arguments and the result are those of `causal_conv1d`."""
        return causal_conv1d(x, self.weight, self.bias, tables, mirrored)


class Mamba(nn.Module):
    """Mamba mixer, (batch, length, dim) to (batch, length, dim), in one direction or in both.

    - False or None: the causal mixer of Mamba (arXiv 2312.00752).
    - "v1": Vim's first form. Both scans read the forward convolution and share projections and skip; A is separate.
    - "v2": Vim (arXiv 2401.09417). Each direction has its own convolution, projections and A.

    Args:
        dim: width of the tokens.
        d_state, d_conv, expand, dt_rank: as in Mamba; dt_rank "auto" is ceil(dim / 16).
        bidirectional: see above.
        average: halve the sum of the two directions ("div2" in Vim's names; v2 only).
        bias: bias in the input and output projections.
        conv_bias: bias in the convolution.
        layer_scale: initial value of a learned scale of the output, none by default.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bidirectional: Literal["v1", "v2", False] | None = None,
        average: bool = True,
        bias: bool = False,
        conv_bias: bool = True,
        layer_scale: float | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if bidirectional not in (None, False, "v1", "v2"):
            raise ValueError(f"`bidirectional` is {bidirectional!r}: expected False, 'v1' or 'v2'")
        dd = {"device": device, "dtype": dtype}
        channels = expand * dim
        paths, convs = (2 if bidirectional else 1), (2 if bidirectional == "v2" else 1)
        self.in_proj = nn.Linear(dim, 2 * channels, bias=bias, **dd)
        self.conv1d = DepthwiseConv1d(channels, d_conv, convs, conv_bias, **dd)
        scale = 0.5 if bidirectional == "v2" and average else 1.0
        shared = bidirectional == "v1"
        self.ssm = SelectiveSSM(channels, d_state, auto_rank(dim, dt_rank), paths, shared, scale=scale, **dd)
        self.out_proj = nn.Linear(channels, dim, bias=bias, **dd)
        self.layer_scale = layer_scale or 0.0
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale, **dd))
        self.mirrored = [False, True][:convs]
        self.two_way = bool(bidirectional)
        self.scan_paths = _BOTH_WAYS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, z = self.in_proj(x).unsqueeze(1).chunk(2, dim=-1)
        u = self.conv1d(u, None, self.mirrored)
        tables = scan_tables(self.scan_paths, [x.shape[1]], x) if self.two_way else None
        y = self.out_proj(self.ssm(u, tables, z).squeeze(1))
        return y if self.gamma is None else y * self.gamma


_BOTH_WAYS = path_text(bidirectional())
