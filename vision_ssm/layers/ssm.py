"""The selective state-space core that all mixers share: input-dependent (delta, B, C), then a scan along paths."""

import math
from typing import List, Optional  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..ops import scan_tokens

__all__ = ["SelectiveSSM"]


class SelectiveSSM(nn.Module):
    """Selective SSM over K paths (Mamba, arXiv 2312.00752; one parameter set a path as in VMamba, arXiv 2401.10166).

    `x_proj` maps each token to the low-rank step size and to B and C; `dt_proj` raises the rank. Both act on single
    tokens, so they are computed in grid order for all paths at once, and only the scan follows the paths.

    Args:
        channels: width of the scanned sequence (d_inner).
        d_state: states of each channel.
        dt_rank: rank of the step-size projection.
        paths: number of scan paths.
        shared: one projection and skip for all paths, only A of their own (Vim v1).
        dt_min, dt_max, dt_floor: range of the initial step sizes, log-uniform (Mamba's initialisation).
        scale: of the output.
    """

    def __init__(
        self,
        channels: int,
        d_state: int = 16,
        dt_rank: int = 1,
        paths: int = 1,
        shared: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        scale: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.channels, self.d_state, self.dt_rank, self.paths = channels, d_state, dt_rank, paths
        self.dt_range = dt_min, dt_max, dt_floor
        self.scale = scale
        sets = 1 if shared else paths
        self.x_proj = nn.Parameter(torch.empty(sets, dt_rank + 2 * d_state, channels, **dd))
        self.dt_proj = nn.Parameter(torch.empty(sets, channels, dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(sets, channels, **dd))
        self.A_log = nn.Parameter(torch.empty(paths, channels, d_state, **dd))
        self.D = nn.Parameter(torch.empty(sets, channels, **dd))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A = -(1 .. d_state), D = 1, step sizes log-uniform in the range after softplus."""
        low, high, floor = self.dt_range
        nn.init.uniform_(self.x_proj, -(self.channels**-0.5), self.channels**-0.5)
        nn.init.uniform_(self.dt_proj, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        uniform = torch.rand_like(self.dt_bias, dtype=torch.float32)
        dt = torch.exp(uniform * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        steps = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(steps.log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def _of(self, parameter: torch.Tensor, paths: Optional[List[int]]) -> torch.Tensor:
        return parameter if paths is None or parameter.shape[0] == 1 else parameter[paths[0] : paths[1]]

    def A(self) -> torch.Tensor:
        """The state matrix, (paths, channels, d_state), negative, in float32 at least."""
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def forward(
        self,
        u: torch.Tensor,
        tables: Optional[torch.Tensor] = None,
        z: Optional[torch.Tensor] = None,
        out_tokens: Optional[int] = None,
        merge: bool = True,
        paths: Optional[List[int]] = None,
    ) -> torch.Tensor:
        """Scan `u` (batch, K or 1, tokens, channels); the other arguments and the result are `scan_tokens`'s.

        `paths` [first, end] takes the parameters of these paths alone.
        """
        R, N, K = self.dt_rank, self.d_state, self.paths if paths is None else paths[1] - paths[0]
        x_proj, D = self._of(self.x_proj, paths), self._of(self.D, paths)
        if self.scale != 1.0:  # the output is linear in C and D; dt, B and C stay parts of one product
            x_proj = torch.cat([x_proj[:, : R + N], x_proj[:, R + N :] * self.scale], 1)
            D = D * self.scale
        if u.shape[1] == 1:  # one sequence: one matrix product serves all paths
            x = F.linear(u[:, 0], x_proj.flatten(0, 1)).unflatten(2, [x_proj.shape[0], R + 2 * N]).transpose(1, 2)
        else:
            x = torch.bmm(u.transpose(0, 1).flatten(1, 2), x_proj.transpose(1, 2))
            x = x.view(K, u.shape[0], u.shape[2], R + 2 * N).transpose(0, 1)
        dt, B, C = x.expand(-1, K, -1, -1).split([R, N, N], dim=-1)
        return scan_tokens(
            u,
            dt,
            self._of(self.A(), paths),
            B.unsqueeze(3),
            C.unsqueeze(3),
            D.expand(K, -1),
            z,
            self._of(self.dt_bias, paths).expand(K, -1),
            self._of(self.dt_proj, paths).expand(K, -1, -1),
            tables,
            out_tokens,
            True,
            merge,
        )

    def extra_repr(self) -> str:
        return f"{self.channels}, d_state={self.d_state}, dt_rank={self.dt_rank}, paths={self.paths}"
