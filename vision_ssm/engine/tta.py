"""Tests that average over views: several scales, and the flips that training showed."""

from collections.abc import Iterator, Mapping

from mmengine import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS

from .config import ConfigError
from .types import named_by

__all__ = ["average_views"]

_TURN = "RandomRotFlip"  # flips about both axes
_UNKNOWN = ("Albu", "TransformBroadcaster")  # may flip, too: what they do is not looked at


def average_views(cfg: Config) -> None:
    """Change a config so that its test averages over views.

    By its `tta_options`, which are merged into it; or by its model's `tta_options(cfg)`; or by its `tta_model` and
    `tta_pipeline`, without flips that no training shows: left and right of a body, or of a digit, are not the same.

    Raises:
        ConfigError: it has none of these.
    """
    kind = named_by(MODELS, cfg.model.get("type"))
    if cfg.get("tta_options"):
        cfg.merge_from_dict(cfg.tta_options.to_dict())
    elif hasattr(kind, "tta_options"):
        cfg.merge_from_dict(kind.tta_options(cfg))
    elif cfg.get("tta_model") and cfg.get("tta_pipeline") is not None:
        trained = _trained(cfg.get("train_dataloader") or {})
        cfg.test_dataloader.dataset.pipeline = [_only(trained, step) for step in cfg.tta_pipeline]
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    else:
        where = cfg.filename or "the config"
        raise ConfigError(f"{where} has no `tta_model` and `tta_pipeline`, nor `tta_options`")


def _steps(node) -> Iterator[Mapping]:
    """All parts of a config that have a `type`."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for one in node:
            yield from _steps(one)


def _kind(step: Mapping) -> str:
    """The name of a step's class, which may be the class, or have its library before it."""
    kind = step.get("type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")


def _directions(step: Mapping) -> set[str]:
    """Directions that a `RandomFlip` may flip in."""
    prob = step.get("prob")
    if prob is None or max(prob if isinstance(prob, (list, tuple)) else [prob]) <= 0:
        return set()
    direction = step.get("direction", "horizontal")
    return {direction} if isinstance(direction, str) else set(direction)


def _trained(loader: Mapping) -> set[str] | None:
    """Directions of the flips of a training; None if it has steps that cannot be told."""
    found = set()
    for step in _steps(loader):
        kind = _kind(step)
        if kind in _UNKNOWN:
            return None
        if kind == _TURN:
            found |= {"horizontal", "vertical", "diagonal"}
        elif kind == "RandomFlip":
            found |= _directions(step)
    return found


def _only(trained: set[str] | None, step: Mapping) -> Mapping:
    """A step of a pipeline; of `TestTimeAug` without flips that were not trained."""
    if trained is None or _kind(step) != "TestTimeAug":
        return step
    kept = []
    for views in step["transforms"]:
        left_out = [v for v in views if _kind(v) == "RandomFlip" and not _directions(v) <= trained]
        if left_out:
            names = ", ".join(sorted(set().union(*map(_directions, left_out))))
            print_log(f"--tta: no {names} flips, training has none", logger="current")
        kept.append([v for v in views if v not in left_out] or [dict(type="RandomFlip", prob=0.0)])
    return ConfigDict(dict(step) | {"transforms": kept})
