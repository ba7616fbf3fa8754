"""Which registered model a checkpoint is for, by the number of its entries."""

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

__all__ = ["count_entries", "fitting_models", "recorded_sizes"]

# Tables that depend on the size of images and not on the model, or that are computed.
_TABLES = ("pos_embed", "rope.", "attn_mask")
_MOST_CANDIDATES = 6


def count_entries(state_dict: Mapping[str, Tensor]) -> int:
    """Numbers that are learned, in any names: published layouts differ in names and shapes, and not in this."""
    return sum(
        value.numel()
        for name, value in state_dict.items()
        if value.is_floating_point() and not any(table in name for table in _TABLES) and ".running_" not in name
    )


@functools.cache
def recorded_sizes() -> dict[str, tuple[int, int, int]]:
    """Of every registered model a, b and c of its a + b n + c n^2 entries with n classes (`tools/model_sizes.py`)."""
    content = json.loads(Path(__file__).with_name("model_sizes.json").read_text(encoding="utf-8"))
    return {name: tuple(size) for name, size in content.items()}


def fitting_models(
    state_dict: Mapping[str, Tensor], convert: Callable[[Mapping, nn.Module], dict[str, Tensor]]
) -> list[str]:
    """Registered models that a checkpoint fits exactly, whatever its number of classes.

    Only models of as many entries, with the classes that some tensor has, are built to compare names and shapes.

    Args:
        state_dict: in any published layout.
        convert: gives it the names of a model.
    """
    import timm

    from ..registry import model_names

    total, known, fits = count_entries(state_dict), set(model_names()), []
    sides = {side for value in state_dict.values() for side in value.shape} | {0}
    candidates = [name for name, size in recorded_sizes().items() if _classes(total, *size) in sides]
    for name in [one for one in candidates if one in known][:_MOST_CANDIDATES]:
        model = timm.create_model(name, device="meta")
        try:
            converted = convert(state_dict, model)
        except Exception:  # whatever a conversion makes of another model's names
            continue
        if _shapes(converted, model.heads) == _shapes(model.state_dict(), model.heads):
            fits.append(name)
    return fits


def _classes(total: int, fixed: int, each: int, squared: int) -> int | None:
    """The number of classes with which a model has `total` entries; None if there is none."""
    rest = total - fixed
    if not (each or squared):
        return None if rest else 0
    root = each**2 + 4 * squared * rest
    if root < 0:
        return None
    classes = (math.isqrt(root) - each) // (2 * squared) if squared else rest // each
    return classes if classes >= 0 and classes * (each + classes * squared) == rest else None


def _shapes(state_dict: Mapping[str, Tensor], heads: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state_dict.items() if not name.startswith(heads)}
