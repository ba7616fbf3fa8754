"""Mamba mixer along any scan paths of a grid, each with its own convolution, projections and state matrix."""

from collections.abc import Sequence
from typing import List, Literal  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn as nn

from ..scan import ScanPath, column, path_text, row, scan_tables
from .mamba import DepthwiseConv1d, auto_rank
from .ssm import SelectiveSSM

__all__ = ["PathMamba", "TriOrientatedMamba"]


class PathMamba(nn.Module):
    """Multi-path Mamba mixer, tokens (batch, length, dim) of a grid to the same shape.

    Input and output projections are shared. The causal convolution runs along each path, so the tokens that a path
    scans are a sequence of its own; the outputs are written back to the grid and summed, and gated there.

    Args:
        dim: width of the tokens.
        paths: scan paths of the grid.
        d_state, d_conv, expand, dt_rank: as in Mamba.
        scale: of the sum of the paths.
    """

    def __init__(
        self,
        dim: int,
        paths: Sequence[ScanPath],
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        scale: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        channels = expand * dim
        self.scan_paths = path_text(paths)
        self.in_proj = nn.Linear(dim, 2 * channels, bias=False, **dd)
        self.conv1d = DepthwiseConv1d(channels, d_conv, len(paths), **dd)
        self.ssm = SelectiveSSM(channels, d_state, auto_rank(dim, dt_rank), len(paths), scale=scale, **dd)
        self.out_proj = nn.Linear(channels, dim, bias=False, **dd)

    def forward(self, x: torch.Tensor, grid: List[int]) -> torch.Tensor:
        u, z = self.in_proj(x).unsqueeze(1).chunk(2, dim=-1)
        read = scan_tables(self.scan_paths, grid, x)[0]
        u = self.conv1d(u, read)
        y = self.ssm(u, scan_tables(self.scan_paths, grid, x, True), z, x.shape[1])
        return self.out_proj(y.squeeze(1))


class TriOrientatedMamba(PathMamba):
    """Mamba forward, backward and across slices; the three outputs are summed.

    The third scan cuts the sequence into `slices` pieces and takes one token of each in turn. Source: SegMamba (arXiv
    2401.13560, section 2.2); Vivim's (arXiv 2401.14168) has the scale 1/3.

    Args:
        dim: width of the tokens.
        slices: pieces; the number of tokens is a multiple of it.
        scale: of the sum.
    """

    def __init__(self, dim: int, slices: int, scale: float = 1.0, **kwargs):
        super().__init__(dim, (row(), row().reversed(), column()), scale=scale, **kwargs)
        self.slices = slices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] % self.slices:
            raise ValueError(f"a map of {x.shape[1]} tokens cannot be cut into {self.slices} equal pieces")
        return super().forward(x, [self.slices, x.shape[1] // self.slices])
