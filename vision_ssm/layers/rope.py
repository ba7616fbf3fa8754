"""Axial rotary position embedding of a token grid (Vim and LocalVim, after EVA-02)."""

import torch
import torch.nn.functional as F

__all__ = ["rotary_tables", "rotate"]


def rotary_tables(
    dim: int,
    grid: tuple[int, int],
    trained: tuple[int, int],
    position_range: int = 14,
    theta: float = 10000.0,
    device=None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each (height * width, dim), float32.

    The first half of the channels turns with the row, the second with the column, neighbouring channels as pairs.
    Another grid than the trained one gets the trained tables resized bicubically, as LocalMamba's code does.
    """
    half = dim // 2
    frequencies = theta ** -(torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)

    def angles(size: int) -> torch.Tensor:
        positions = torch.arange(size, device=device, dtype=torch.float32) / size * position_range
        return torch.outer(positions, frequencies).repeat_interleave(2, dim=1)

    rows, columns = angles(trained[0]), angles(trained[1])
    shape = (*trained, half)
    table = torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], dim=-1)
    tables = [table.cos(), table.sin()]
    if grid != trained:
        tables = [
            F.interpolate(t.permute(2, 0, 1)[None], size=grid, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
            for t in tables
        ]
    cos, sin = (t.reshape(-1, dim) for t in tables)
    return cos, sin


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (..., tokens, dim) turned by the tables, in the dtype of x."""
    pairs = x.view(x.shape[:-1] + (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).view(x.shape)
    return (x * cos + turned * sin).to(x.dtype)
