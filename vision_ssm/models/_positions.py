"""Position tables and the grids that they are for, in models and in checkpoints.

A table of n tokens may be for any grid of n tokens. The state dicts of models whose grid has sides of different lengths
say it, as `pos_grid`; where there is none, the sides are equal, as in all published files.
"""

import math
from collections.abc import MutableMapping
from typing import Tuple  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn as nn
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ..checkpoints import CheckpointError

__all__ = ["fit_positions", "note_grid", "refit", "resized_grid", "stated_grid"]

_GRID, _TABLE = "pos_grid", "pos_embed"


def resized_grid(patches: torch.Tensor, old: Tuple[int, int], new: Tuple[int, int]) -> torch.Tensor:
    """A table (1, tokens, dim) of patches for another grid, bicubic."""
    return resample_abs_pos_embed(patches, [new[0], new[1]], [old[0], old[1]], num_prefix_tokens=0, antialias=False)


def _text(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))


def note_grid(state_dict: MutableMapping[str, Tensor], prefix: str, grid: tuple[int, ...] | None) -> None:
    """Write the grid of a model's tables to its state dict, unless its sides are equal."""
    if grid is not None and len(set(grid)) > 1:
        state_dict[prefix + _GRID] = torch.tensor(grid, device="cpu")


def stated_grid(state_dict: MutableMapping[str, Tensor], prefix: str, sides: int) -> tuple[int, ...] | None:
    """Take the grid out of a state dict; None if it has none.

    Raises:
        CheckpointError: it is no list of so many sizes.
    """
    stated = state_dict.pop(prefix + _GRID, None)
    if stated is None:
        return None
    if not isinstance(stated, Tensor) or stated.shape != (sides,) or stated.is_floating_point() or stated.min() < 1:
        raise CheckpointError(f"{prefix}{_GRID} of the checkpoint is not {sides} positive integers")
    return tuple(stated.tolist())


def refit(model: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str = "") -> None:
    """Resize the position table of a state dict, in place, to the model's grid, and take its `pos_grid` out.

    Args:
        model: with `table_grid`, `num_prefix_tokens`, `pos_embed` and `resized_positions`.
        state_dict, prefix: in the model's names.

    Raises:
        CheckpointError: the table's grid cannot be known, or is not what the state dict says.
    """
    grid = model.table_grid()
    if grid is None:
        return
    old, table = stated_grid(state_dict, prefix, len(grid)), state_dict.get(prefix + _TABLE)
    if table is None or table.dim() != 3 or table.shape[2] != model.pos_embed.shape[2]:
        return
    tokens = table.shape[1] - model.num_prefix_tokens
    if old is not None and math.prod(old) != tokens:
        raise CheckpointError(f"{prefix}{_TABLE} of the checkpoint has {tokens} tokens, its {_GRID} is {_text(old)}")
    if old is None:
        side = round(max(tokens, 0) ** (1 / len(grid)))
        even = (side,) * len(grid)
        if math.prod(even) != tokens:
            return
        if math.prod(grid) == tokens and grid != even:
            raise CheckpointError(
                f"{prefix}{_TABLE} of the checkpoint has {tokens} tokens, which may be a grid of {_text(even)} or the "
                f"model's {_text(grid)}, and it has no {prefix}{_GRID} that says which: add it to the state dict, "
                f"torch.tensor({list(even)}) or torch.tensor({list(grid)})"
            )
        old = even
    if old != grid:
        state_dict[prefix + _TABLE] = model.resized_positions(table, old, grid)


def fit_positions(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A copy with position tables of the model's grid, and the grid noted as the model does.

    Raises:
        CheckpointError: the tables' grid is another one and they cannot be resized, or it cannot be known.
    """
    out = dict(state_dict)
    model.fit_tables(out)
    note_grid(out, "", model.table_grid())
    return out
