"""LocalMamba's gate over the outputs of several scan paths (arXiv 2403.09338, section 3.3; `BiAttn` in its code)."""

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["PathGate"]


class _NormedMean(nn.Module):
    """Mean over tokens of a layer norm: (batch, paths, tokens, channels) to (batch, paths, channels).

    The normed tokens are never written: for large maps they would be the largest tensor of the network.
    """

    def __init__(self, channels: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """As a layer norm starts."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=[-1], correction=0, keepdim=True)
        scale = torch.rsqrt(variance + self.eps)
        total = torch.matmul(scale.transpose(2, 3), wide) - (scale * mean).sum(dim=2, keepdim=True)
        return (total.squeeze(2) / y.shape[2]).to(y.dtype) * self.weight + self.bias


class PathGate(nn.Module):
    """Weighs the channels of each path by a squeeze-and-excite gate of its own statistics, then sums the paths.

    Args:
        channels: width of the paths' outputs.
        ratio: width of the bottleneck, relative.
    """

    def __init__(self, channels: int, ratio: float = 0.125, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = _NormedMean(channels, **dd)
        self.reduce = nn.Linear(channels, int(channels * ratio), **dd)
        self.expand = nn.Linear(int(channels * ratio), channels, **dd)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """(batch, paths, tokens, channels) to (batch, 1, tokens, channels)."""
        gate = F.gelu(self.reduce(self.norm(y)))
        gate = torch.sigmoid(self.expand(gate)).unsqueeze(2).to(y.dtype)
        out = y[:, 0] * gate[:, 0]
        for k in range(1, y.shape[1]):
            out = torch.addcmul(out, y[:, k], gate[:, k])
        return out.unsqueeze(1)
