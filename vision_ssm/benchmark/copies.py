"""The core of a layer as the reference repositories compose it: a copy of the map for each path, a projection of each
copy, one scan of all of them, and the sum of what is put back.

The copies and the sum are written as in VMamba's PyTorch form (`CrossScan`, `CrossMerge`): axis permutations and flips
of (batch, channels, *grid) maps, each written once into the tensor that the scan reads.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from ..layers import SS2D, Mamba, SelectiveSSM
from ..scan import Axes, Reversed, ScanPath, parse

__all__ = ["copy_scan_merge", "over_copies"]


def _axes(path: ScanPath, dims: int) -> tuple[tuple[int, ...], bool]:
    """(axes from the slowest to the fastest, whether they run backwards)."""
    backwards = isinstance(path, Reversed)
    inner = path.path if backwards else path
    if not isinstance(inner, Axes):
        raise ValueError(f"path {path} is no order of the axes: the copies are written for these only")
    return tuple(range(dims)) if inner.axes is None else inner.axes, backwards


def _take(x: Tensor, paths: Sequence[ScanPath]) -> Tensor:
    """(batch, 1 or K, channels, *grid) to (batch, K, channels, steps), each in the order of its path."""
    batch, inputs, channels, *grid = x.shape
    sequences = x.new_empty(batch, len(paths), channels, math.prod(grid))
    for k, path in enumerate(paths):
        axes, backwards = _axes(path, len(grid))
        ordered = x[:, k if inputs > 1 else 0].permute(0, 1, *(2 + a for a in axes))
        ordered = ordered.flip(*range(2, ordered.dim())) if backwards else ordered
        sequences[:, k].view(batch, channels, *ordered.shape[2:]).copy_(ordered)
    return sequences


def _put(y: Tensor, path: ScanPath, grid: Sequence[int]) -> Tensor:
    """(batch, channels, steps) of one path to (batch, channels, *grid)."""
    axes, backwards = _axes(path, len(grid))
    y = (y.flip(-1) if backwards else y).unflatten(2, [grid[a] for a in axes])
    return y.permute(0, 1, *(2 + axes.index(a) for a in range(len(grid))))


def _merge(y: Tensor, paths: Sequence[ScanPath], grid: Sequence[int]) -> Tensor:
    """(batch, K, channels, steps) to the sum over the paths, (batch, channels, *grid)."""
    total = y.new_empty(y.shape[0], y.shape[2], *grid)
    first = _put(y[:, 0], paths[0], grid)
    if len(paths) == 1:
        return total.copy_(first)
    torch.add(first, _put(y[:, 1], paths[1], grid), out=total)
    for k in range(2, len(paths)):
        total += _put(y[:, k], paths[k], grid)
    return total


class _Copies(torch.autograd.Function):
    """`_take`, whose gradient is the sum of what is put back."""

    @staticmethod
    def forward(ctx, x, paths):
        ctx.paths, ctx.shared, ctx.grid = paths, x.shape[1] == 1, x.shape[3:]
        return _take(x, paths)

    @staticmethod
    def backward(ctx, d):
        if ctx.shared:
            return _merge(d, ctx.paths, ctx.grid).unsqueeze(1), None
        return torch.stack([_put(d[:, k], path, ctx.grid) for k, path in enumerate(ctx.paths)], 1), None


class _Sum(torch.autograd.Function):
    """`_merge`, whose gradient is a copy for each path."""

    @staticmethod
    def forward(ctx, y, paths, grid):
        ctx.paths = paths
        return _merge(y, paths, grid)

    @staticmethod
    def backward(ctx, d):
        return _take(d.unsqueeze(1), ctx.paths), None, None


def copy_scan_merge(
    scan: Callable[..., Tensor],
    ssm: SelectiveSSM,
    x: Tensor,
    paths: Sequence[ScanPath],
    z: Tensor | None = None,
    parameters: dict[str, Tensor] | None = None,
) -> Tensor:
    """What `ssm` computes of x (batch, 1 or K, channels, *grid), over copies and `scan`, which has the signature of
    mamba_ssm's `selective_scan_fn`: (batch, channels, *grid). `parameters` stand in for the module's.
    """
    p = parameters or dict(ssm.named_parameters())
    K, R, N = ssm.paths, ssm.dt_rank, ssm.d_state
    grid = x.shape[3:]
    with torch.autocast(x.device.type, enabled=False):
        sequences = _Copies.apply(x, paths)
        # Products in the order of the maps: einsum would copy them into another.
        dt, B, C = torch.matmul(p["x_proj"].to(x.dtype).expand(K, -1, -1), sequences).split([R, N, N], dim=2)
        dt = torch.matmul(p["dt_proj"].to(x.dtype).expand(K, -1, -1), dt)
        y = scan(
            sequences.flatten(1, 2),
            dt.flatten(1, 2),
            -torch.exp(p["A_log"].float()).flatten(0, 1),
            B.contiguous(),
            (C if ssm.scale == 1.0 else C * ssm.scale).contiguous(),
            (p["D"].float() * ssm.scale).expand(K, -1).flatten(),
            None if z is None else _Copies.apply(z.to(x.dtype), paths).flatten(1, 2),
            p["dt_bias"].float().expand(K, -1).flatten(),
            True,
        )
        return _Sum.apply(y.unflatten(1, (K, -1)), paths, grid)


def over_copies(model: nn.Module, scan: Callable[..., Tensor]) -> nn.Module:
    """The same model with the scans of its SS2D and Mamba mixers composed by `copy_scan_merge`; changes it in place."""
    for mixer in model.modules():
        if isinstance(mixer, SS2D):
            mixer.scan = _map_scan(scan, mixer)
        elif isinstance(mixer, Mamba):
            mixer.ssm.forward = _sequence_scan(scan, mixer)
    return model


def _map_scan(scan: Callable[..., Tensor], mixer: SS2D) -> Callable[[Tensor], Tensor]:
    paths = [parse(text) for text in mixer.scan_paths.split(";")]

    def run(x: Tensor) -> Tensor:
        y = copy_scan_merge(scan, mixer.ssm, x.permute(0, 3, 1, 2).unsqueeze(1), paths)
        return y.permute(0, 2, 3, 1).contiguous()

    return run


def _sequence_scan(scan: Callable[..., Tensor], mixer: Mamba) -> Callable[..., Tensor]:
    paths = [parse(text) for text in mixer.scan_paths.split(";")][: mixer.ssm.paths]

    def run(u: Tensor, tables: Tensor | None, z: Tensor) -> Tensor:
        y = copy_scan_merge(scan, mixer.ssm, u.transpose(2, 3), paths, z.transpose(2, 3))
        return y.transpose(1, 2).unsqueeze(1)

    return run
