"""Mamba mixers that run from both ends with whole mixers of their own, or with one for all."""

import torch
import torch.nn as nn

from ..scan import bidirectional, path_text, row, scan_tables
from .mamba import DepthwiseConv1d, Mamba, auto_rank
from .ssm import SelectiveSSM

__all__ = ["SiameseMamba", "TwinMamba"]

_BACKWARD = path_text([row().reversed()])
_BOTH_WAYS = path_text(bidirectional())


class TwinMamba(nn.Module):
    """Two Mamba mixers, one from each end, each with its own input projection and gate; one output projection.

    (batch, length, dim) to the same. Source: LMa-UNet (arXiv 2403.07332).
    """

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        channels = expand * dim
        self.in_proj = nn.Linear(dim, 4 * channels, bias=False, **dd)
        self.conv1d = DepthwiseConv1d(channels, d_conv, 2, **dd)
        self.ssm = SelectiveSSM(channels, d_state, auto_rank(dim), 2, **dd)
        self.out_proj = nn.Linear(channels, dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, z = self.in_proj(x).unflatten(2, (2, 2, -1)).permute(3, 0, 2, 1, 4)  # each (batch, 2, length, channels)
        u = self.conv1d(u, None, [False, True])
        y = self.ssm(u, scan_tables(_BOTH_WAYS, [x.shape[1]], x), z, merge=False)
        return self.out_proj(y.sum(1))


class SiameseMamba(Mamba):
    """One causal Mamba over tokens and channels in both orders, (batch, length, dim) to the same.

    nnMamba's channel-spatial siamese block (arXiv 2402.03526). With M the Mamba mixer, T the reversal of the tokens and
    C that of the channels:

        y = (M(x) + T M(T x) + C M(C x) + C T M(T C x)) / 4

    Args:
        dim: width of the tokens.
        d_state: as in Mamba.
    """

    def __init__(self, dim: int, d_state: int = 16, device=None, dtype=None):
        super().__init__(dim, d_state, device=device, dtype=dtype)
        self.ssm.scale = 0.25

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        x = torch.cat([x, x.flip(2)])
        u, z = self.in_proj(x).unsqueeze(1).chunk(2, dim=-1)
        # The way back needs no reversed copy: the convolution is mirrored and the scan reads its steps from the end.
        tables = scan_tables(_BACKWARD, [x.shape[1]], x)
        y = self.ssm(self.conv1d(u, None, [False]), None, z) + self.ssm(self.conv1d(u, None, [True]), tables, z)
        y = self.out_proj(y.squeeze(1))
        return y[:batch] + y[batch:].flip(2)
