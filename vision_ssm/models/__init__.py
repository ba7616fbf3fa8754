"""Backbones, registered in timm on import."""

from . import _registry

_FAMILIES = ("vim", "vmamba", "local_mamba")
_registry.register(__name__, _FAMILIES)

from ._sequence import SequenceBackbone  # noqa: E402 - after the families, which import it
from ._staged import StagedBackbone  # noqa: E402

__all__ = ["SequenceBackbone", "StagedBackbone", "model_names"]


def model_names(pattern: str = "") -> list[str]:
    """Names of the registered backbones, those matching a shell pattern if one is given."""
    return _registry.names(_FAMILIES, pattern)
