"""Mamba mixer over windowed and plain scan paths with LocalMamba's gate (LocalVim, arXiv 2403.09338)."""

from collections.abc import Sequence
from typing import List, Literal  # noqa: UP035 - TorchScript needs the typing forms

import torch

from ..scan import ScanPath, scan_tables
from .gate import PathGate
from .path_mamba import PathMamba

__all__ = ["LocalMamba"]


class LocalMamba(PathMamba):
    """`PathMamba` whose paths are weighed (`PathGate`) before they are summed.

    The convolution runs over the pads of a windowed path, too.

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
        super().__init__(dim, paths, d_state, d_conv, expand, dt_rank, device=device, dtype=dtype)
        self.path_gate = PathGate(expand * dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, grid: List[int]) -> torch.Tensor:
        u, z = self.in_proj(x).unsqueeze(1).chunk(2, dim=-1)
        read = scan_tables(self.scan_paths, grid, x)[0]
        u = self.conv1d(u, read)
        tables = scan_tables(self.scan_paths, grid, x, True)
        if "restored" in self.scan_paths:  # gated before it is put back, and put back otherwise than it was taken
            gates = z[:, 0, read.clamp(min=0).long()]
            y = self.ssm(u, None, gates, merge=False)
            write = tables[1]
            step = torch.where(write < 0, write.shape[1], write).argsort(dim=1)[:, : x.shape[1]]
            y = y.gather(2, step[None, :, :, None].expand(len(y), -1, -1, y.shape[3]))
        else:
            y = self.ssm(u, tables, z, x.shape[1], merge=False)
        return self.out_proj(self.path_gate(y).squeeze(1))
