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

    def _normed_mean(self, y: torch.Tensor) -> torch.Tensor:
        """Mean over tokens of norm(y), (batch, paths, channels), without writing norm(y): for large maps that would be
        the largest tensor of the network."""
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=[-1], correction=0, keepdim=True)
        scale = torch.rsqrt(variance + self.norm.eps)
        total = torch.matmul(scale.transpose(2, 3), wide) - (scale * mean).sum(dim=2, keepdim=True)
        return (total.squeeze(2) / y.shape[2]).to(y.dtype) * self.norm.weight + self.norm.bias

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """(batch, paths, tokens, channels) to (batch, 1, tokens, channels)."""
        gate = F.gelu(self.reduce(self._normed_mean(y)))
        gate = torch.sigmoid(self.expand(gate)).unsqueeze(2).to(y.dtype)
        out = y[:, 0] * gate[:, 0]
        for k in range(1, y.shape[1]):
            out = torch.addcmul(out, y[:, k], gate[:, k])
        return out.unsqueeze(1)
