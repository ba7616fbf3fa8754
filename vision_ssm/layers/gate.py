"""LocalMamba's gate over the outputs of several scan paths (arXiv 2403.09338, section 3.3; `BiAttn` in its code)."""

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["PathGate"]


class PathGate(nn.Module):
    """Weighs the channels of each path by a squeeze-and-excite gate of its own statistics, then sums the paths.

    Args:
        channels: width of the paths' outputs.
        ratio: width of the bottleneck, relative.
    """

    def __init__(self, channels: int, ratio: float = 0.125, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(channels, **dd)
        self.reduce = nn.Linear(channels, int(channels * ratio), **dd)
        self.expand = nn.Linear(int(channels * ratio), channels, **dd)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """(batch, paths, tokens, channels) to (batch, 1, tokens, channels)."""
        gate = F.gelu(self.reduce(self.norm(y).mean(dim=2)))
        gate = torch.sigmoid(self.expand(gate)).unsqueeze(2)
        return (y * gate.to(y.dtype)).sum(dim=1, keepdim=True)
