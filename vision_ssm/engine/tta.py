"""Tests that average over views: several scales, and the flips that training showed."""

from collections.abc import Iterator, Mapping

from mmengine import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS

from .config import ConfigError

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
    kind = MODELS.get(cfg.model.type) if isinstance(cfg.model.get("type"), str) else cfg.model.get("type")
    if "tta_options" in cfg:
        cfg.merge_from_dict(cfg.tta_options.to_dict())
    elif hasattr(kind, "tta_options"):
        cfg.merge_from_dict(kind.tta_options(cfg))
    elif "tta_model" in cfg and "tta_pipeline" in cfg:
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
        if step["type"] in _UNKNOWN:
            return None
        if step["type"] == _TURN:
            found |= {"horizontal", "vertical", "diagonal"}
        elif step["type"] == "RandomFlip":
            found |= _directions(step)
    return found


def _only(trained: set[str] | None, step: Mapping) -> Mapping:
    """A step of a pipeline; of `TestTimeAug` without flips that were not trained."""
    if trained is None or step["type"] != "TestTimeAug":
        return step
    kept = []
    for views in step["transforms"]:
        left_out = [v for v in views if v["type"] == "RandomFlip" and not _directions(v) <= trained]
        if left_out:
            names = ", ".join(sorted(set().union(*map(_directions, left_out))))
            print_log(f"--tta: no {names} flips, training has none", logger="current")
        kept.append([v for v in views if v not in left_out] or [dict(type="RandomFlip", prob=0.0)])
    return ConfigDict(dict(step) | {"transforms": kept})
