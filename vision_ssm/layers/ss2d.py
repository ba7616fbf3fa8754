"""SS2D: selective scans of a 2D map along several paths (VMamba, arXiv 2401.10166; LocalMamba, arXiv 2403.09338)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import get_act_layer

from ..scan import ScanPath, cross, path_text, row, scan_tables
from .gate import PathGate
from .mamba import auto_rank
from .ssm import SelectiveSSM

__all__ = ["SS2D", "CascadeSS2D", "one_way", "two_way"]

OutNorm = Literal["layer", "none", "dwconv", "layer_dwconv", "softmax", "sigmoid"]


def one_way() -> tuple[ScanPath, ...]:
    """Four row-major scans with parameters of their own (VMamba's ablation v051d)."""
    return (row(),) * 4


def two_way() -> tuple[ScanPath, ...]:
    """Two row-major and two reversed scans (VMamba's ablation v052d)."""
    return (row(),) * 2 + (row().reversed(),) * 2


class _OutNorm(nn.Module):
    """What stands between the scan and the output projection, on (batch, height, width, channels)."""

    def __init__(self, kind: OutNorm, channels: int, device=None, dtype=None):
        super().__init__()
        if kind not in ("layer", "none", "dwconv", "layer_dwconv", "softmax", "sigmoid"):
            raise ValueError(f"`out_norm` is {kind!r}: expected layer, none, dwconv, layer_dwconv, softmax or sigmoid")
        dd = {"device": device, "dtype": dtype}
        self.kind = kind
        self.norm = nn.LayerNorm(channels, **dd) if kind.startswith("layer") else nn.Identity()
        conv = kind.endswith("dwconv")
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False, **dd) if conv else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        if self.conv is not None:
            x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.kind == "softmax":  # over positions
            x = x.flatten(1, 2).softmax(dim=1).view(x.shape)
        elif self.kind == "sigmoid":
            x = x.sigmoid()
        return x


class SS2D(nn.Module):
    """2D selective-scan mixer, (batch, height, width, dim) to the same shape.

    Projection, depthwise convolution, scans along `paths` with parameters of their own, sum, normalisation, gate,
    projection. VMamba's `forward_type` strings name combinations of these arguments: v0 is the default here, v05_noz
    is `gate=None, conv_bias=False`, and the suffixes `_on...` choose `out_norm`.

    Args:
        dim: width of the map.
        d_state, dt_rank: of the SSM; dt_rank "auto" is ceil(dim / 16).
        expand: d_inner = int(expand * dim).
        paths: scan paths; VMamba's cross-scan by default.
        d_conv: kernel of the depthwise convolution, below 2 for none (the activation stays).
        conv_bias: bias of that convolution.
        act: activation after the convolution, by timm name.
        gate: "silu", "linear" (ungated activation) or False for none; None says the same.
        out_norm: between scan and gate.
        out_act: GELU after `out_norm`.
        path_gate: weigh each path's output by LocalMamba's gate before the sum.
        drop: dropout after the projection.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        expand: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        paths: Sequence[ScanPath] | None = None,
        d_conv: int = 3,
        conv_bias: bool = True,
        act: str = "silu",
        gate: Literal["silu", "linear", False] | None = "silu",
        out_norm: OutNorm = "layer",
        out_act: bool = False,
        path_gate: bool = False,
        bias: bool = False,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if gate not in (None, False, "silu", "linear"):
            raise ValueError(f"`gate` is {gate!r}: expected 'silu', 'linear' or False")
        dd = {"device": device, "dtype": dtype}
        paths = cross() if paths is None else tuple(paths)
        channels = int(expand * dim)
        self.gate = gate or ""
        self.in_proj = nn.Linear(dim, channels * (2 if gate else 1), bias=bias, **dd)
        self.conv2d = (
            nn.Conv2d(channels, channels, d_conv, padding=(d_conv - 1) // 2, groups=channels, bias=conv_bias, **dd)
            if d_conv > 1
            else None
        )
        self.act = get_act_layer(act)()
        self.scan_paths = path_text(paths)
        self.ssm = SelectiveSSM(channels, d_state, auto_rank(dim, dt_rank), len(paths), **dd)
        self.path_gate = PathGate(channels, **dd) if path_gate else None
        self.out_norm = _OutNorm(out_norm, channels, **dd)
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self.out_proj = nn.Linear(channels, dim, bias=bias, **dd)
        self.drop = nn.Dropout(drop)

    def scan(self, x: torch.Tensor) -> torch.Tensor:
        """The scans of (batch, height, width, channels) and their sum."""
        batch, height, width, channels = x.shape
        u = x.reshape(batch, 1, height * width, channels)
        tables = scan_tables(self.scan_paths, [height, width], x)
        if self.path_gate is not None:
            y = self.path_gate(self.ssm(u, tables, merge=False))
        else:
            y = self.ssm(u, tables)
        return y.view(batch, height, width, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.in_proj(x)
        z = x
        if self.gate:
            x, z = x.chunk(2, dim=-1)
        if self.conv2d is not None:
            x = self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.act(x)
        x = self.out_act(self.out_norm(self.scan(x)))
        if self.gate:
            x = x * (F.silu(z) if self.gate == "silu" else z)
        return self.drop(self.out_proj(x))


class CascadeSS2D(SS2D):
    """Rows first, then columns (VMamba's ablation v052dc).

    Each line is scanned alone in both directions; the backward output is added at the step, not at the token, that it
    belongs to, as the reference does. The map is normalised (without parameters) before each of the two rounds.
    """

    def _lines(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Scan each row of (batch, height, width, channels) with the parameters of paths `first` and `first + 1`."""
        batch, height, width, channels = x.shape
        u = F.layer_norm(x, [channels]).reshape(batch * height, 1, width, channels)
        tables = scan_tables(self.scan_paths, [width], x)
        tables = torch.stack([tables[0, :2], tables[0, :1].expand(2, -1)])  # written in step order
        y = self.ssm(u, tables, paths=[first, first + 2])
        return y.view(batch, height, width, channels)

    def __init__(self, dim: int, **kwargs):
        super().__init__(dim, paths=(row(), row().reversed()) * 2, **kwargs)

    def scan(self, x: torch.Tensor) -> torch.Tensor:
        """Rows, then columns."""
        x = self._lines(x, 0)
        return self._lines(x.transpose(1, 2), 2).transpose(1, 2)
