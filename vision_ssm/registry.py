"""All models of the package, whatever they are for."""

from . import medical, models

__all__ = ["model_names"]


def model_names(pattern: str = "") -> list[str]:
    """Names of the registered backbones and networks, those matching a shell pattern if one is given."""
    return models.model_names(pattern) + medical.model_names(pattern)
