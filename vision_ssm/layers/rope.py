"""Axial rotary position embedding of a token grid (Vim and LocalVim, after EVA-02)."""

from typing import Optional, Tuple  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn.functional as F

__all__ = ["rotary_tables", "rotate"]


def rotary_tables(
    dim: int,
    grid: Tuple[int, int],
    trained: Tuple[int, int],
    position_range: int = 14,
    theta: float = 10000.0,
    device: Optional[torch.device] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each (height * width, dim), float32.

    The first half of the channels turns with the row, the second with the column, neighbouring channels as pairs.
    Another grid than the trained one gets the trained tables resized bicubically, as LocalMamba's code does.
    """
    height, width = trained
    rows = _angles(height, dim // 2, position_range, theta, device)[:, None].expand(-1, width, -1)
    columns = _angles(width, dim // 2, position_range, theta, device)[None].expand(height, -1, -1)
    table = torch.cat([rows, columns], dim=-1)
    tables = torch.stack([table.cos(), table.sin()])
    if grid != trained:
        tables = F.interpolate(tables.permute(0, 3, 1, 2), size=list(grid), mode="bicubic", align_corners=False)
        tables = tables.permute(0, 2, 3, 1)
    tables = tables.reshape(2, -1, dim)
    return tables[0], tables[1]


def _angles(
    size: int, channels: int, position_range: int, theta: float, device: Optional[torch.device]
) -> torch.Tensor:
    """(size, channels): the turn of each channel at each position of one axis."""
    frequencies = theta ** -(torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)
    positions = torch.arange(size, device=device, dtype=torch.float32) / size * position_range
    return torch.outer(positions, frequencies).repeat_interleave(2, dim=1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (..., tokens, dim) turned by the tables, in the dtype of x."""
    pairs = x.unflatten(-1, [-1, 2])
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)
