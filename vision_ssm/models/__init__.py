"""Backbones, registered in timm on import."""

from timm.models import is_model, list_models

_FAMILIES = ("vim", "vmamba", "local_mamba")


def _register() -> None:
    import importlib

    taken = set(list_models())
    for family in _FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
    if replaced := taken & set(model_names()):
        raise ImportError(f"other models of these names were registered in timm before: {', '.join(sorted(replaced))}")


def model_names(pattern: str = "") -> list[str]:
    """Names of the package's registered models, those matching a shell pattern if one is given."""
    names = (name for family in _FAMILIES for name in list_models(pattern, module=family))
    return [name for name in names if is_model(name)]


_register()

from ._sequence import SequenceBackbone  # noqa: E402 - after the families, which import it
from ._staged import StagedBackbone  # noqa: E402

__all__ = ["SequenceBackbone", "StagedBackbone", "model_names"]
