"""Mamba mixer over windowed and plain scan paths with LocalMamba's gate (LocalVim, arXiv 2403.09338)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn as nn

from ..ops import causal_conv1d
from ..scan import ScanPath, path_text, scan_tables
from .gate import PathGate
from .mamba import DepthwiseConv1d, auto_rank
from .ssm import SelectiveSSM

__all__ = ["LocalMamba"]


class LocalMamba(nn.Module):
    """Multi-path Mamba mixer, tokens (batch, length, dim) of a grid to the same shape.

    The causal convolution runs along each path and over its pads, so the tokens that a path scans are a sequence of
    its own; the outputs are written back to the grid, gated, weighed (`PathGate`) and summed.

    Args:
        dim: width of the tokens.
        paths: scan paths of the grid; for a class token in the middle, paths that visit it (`scan.Middle`).
        d_state, d_conv, expand, dt_rank: as in Mamba.
    """

    def __init__(
        self,
        dim: int,
        paths: Sequence[ScanPath],
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        channels = expand * dim
        self.scan_paths = path_text(paths)
        self.in_proj = nn.Linear(dim, 2 * channels, bias=False, **dd)
        self.conv1d = DepthwiseConv1d(channels, d_conv, len(paths), **dd)
        self.ssm = SelectiveSSM(channels, d_state, auto_rank(dim, dt_rank), len(paths), **dd)
        self.path_gate = PathGate(channels, **dd)
        self.out_proj = nn.Linear(channels, dim, bias=False, **dd)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        u, z = self.in_proj(x).unsqueeze(1).chunk(2, dim=-1)
        read = scan_tables(self.scan_paths, [height, width], x)[0]
        u = causal_conv1d(u, self.conv1d.weight, self.conv1d.bias, read)
        tables = scan_tables(self.scan_paths, [height, width], x, True)
        if "restored" in self.scan_paths:  # gated before it is put back, and put back otherwise than it was taken
            gates = z[:, 0, read.clamp(min=0).long()]
            y = self.ssm(u, None, gates, merge=False)
            write = tables[1]
            step = torch.where(write < 0, write.shape[1], write).argsort(dim=1)[:, : x.shape[1]]
            y = y.gather(2, step[None, :, :, None].expand(len(y), -1, -1, y.shape[3]))
        else:
            y = self.ssm(u, tables, z, x.shape[1], merge=False)
        return self.out_proj(self.path_gate(y).squeeze(1))
