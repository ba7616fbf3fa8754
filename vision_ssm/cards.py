"""The facts of published models: one JSON file a family, from which configs, cards and tables are made."""

import functools
import json
from pathlib import Path

__all__ = ["all_facts", "backbone_facts", "facts", "network_facts", "task"]

_PACKAGE = Path(__file__).parent
_BACKBONES = ("vim", "vmamba", "local_mamba")
_NETWORKS = (
    "umamba", "lma_unet", "segmamba", "lightm_unet", "nnmamba", "vm_unet", "mamba_unet", "medmamba", "swin_umamba",
    "vivim", "mamba_nd",
)  # fmt: skip


@functools.cache
def _family(name: str) -> dict[str, dict]:
    for folder in (_PACKAGE / "_data" / "model_cards", _PACKAGE.parent / "model_cards"):
        path = folder / f"{name}.json"
        if path.is_file():
            family = json.loads(path.read_text(encoding="utf-8"))
            shared = {k: v for k, v in family.items() if k != "models"}
            return {model: shared | entry for model, entry in family["models"].items()}
    raise FileNotFoundError(
        f"the facts of family {name!r} are missing from this installation (model_cards/{name}.json)"
    )


def facts(family: str, model: str) -> dict:
    """What is known of a model: paper, licence, published metrics, source of the weights.

    Raises:
        KeyError: the family has no such model.
    """
    return _family(family)[model]


def backbone_facts() -> dict[str, dict]:
    """Facts of every published backbone, by model name."""
    return {name: entry for family in _BACKBONES for name, entry in _family(family).items()}


def network_facts() -> dict[str, dict]:
    """Facts of every network for medical images, by model name."""
    return {name: entry for family in _NETWORKS for name, entry in _family(family).items()}


def all_facts() -> dict[str, dict]:
    """Facts of every model of the package, by model name."""
    return backbone_facts() | network_facts()


def task(model: str) -> str:
    """What a model is for: "classification 2D", "segmentation 3D", "landmarks 3D", "video segmentation".

    A small variant, of which there are no facts, is for what the published model is for that shares most of its name.
    """
    known, words = all_facts(), set(model.split("_"))
    nearest = known.get(model) or known[max(known, key=lambda name: len(words.intersection(name.split("_"))))]
    if nearest["task"] == "video":
        return "video segmentation"
    return f"{nearest['task']} {nearest.get('input', '3x224x224').count('x')}D"
