"""Families of models, registered in timm when their modules are imported."""

import importlib
from collections.abc import Sequence

from timm.models import is_model, list_models

__all__ = ["names", "register"]


def register(package: str, families: Sequence[str]) -> None:
    """Import the modules of a package that register models.

    Raises:
        ImportError: another package has registered models of these names; they are named.
    """
    taken = set(list_models())
    for family in families:
        importlib.import_module(f"{package}.{family}")
    if replaced := taken & set(names(families)):
        raise ImportError(f"other models of these names were registered in timm before: {', '.join(sorted(replaced))}")


def names(families: Sequence[str], pattern: str = "") -> list[str]:
    """Registered names of some families, those matching a shell pattern if one is given."""
    found = (name for family in families for name in list_models(pattern, module=family))
    return [name for name in found if is_model(name)]
