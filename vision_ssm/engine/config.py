"""Configs by path or by packaged name, checked before anything is built."""

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine import Config

from ..errors import InputError
from .data_config import reading_data

__all__ = ["ConfigError", "config_folder", "load_config", "packaged_configs"]

_PACKAGE = Path(__file__).parents[1]
# Keys of MMEngine's runner, of the two libraries' configs and of this package. Others are allowed, as they are for
# intermediate variables; one that is almost one of these is a slip that MMEngine would ignore without a word.
_KEYS = (
    "model",
    "work_dir",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "train_cfg",
    "val_cfg",
    "test_cfg",
    "auto_scale_lr",
    "optim_wrapper",
    "param_scheduler",
    "val_evaluator",
    "test_evaluator",
    "default_hooks",
    "custom_hooks",
    "data_preprocessor",
    "load_from",
    "keep_head",
    "resume",
    "resume_optimizer",
    "launcher",
    "env_cfg",
    "log_processor",
    "log_level",
    "visualizer",
    "default_scope",
    "randomness",
    "experiment_name",
    "custom_imports",
    "vis_backends",
    "tta_model",
    "tta_pipeline",
    "tta_options",
    "activation_checkpointing",
    "efficient_conv_bn_eval",
    "compile",
    "sync_bn",
    "find_unused_parameters",
    "model_wrapper_cfg",
)
# What is no variable of a config's own has a kind.
_MAPPINGS = (
    "model",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "train_cfg",
    "val_cfg",
    "test_cfg",
    "auto_scale_lr",
    "optim_wrapper",
    "optim_wrapper.optimizer",
    *(
        f"{part}_dataloader.{key}"
        for part in ("train", "val", "test")
        for key in ("dataset", "sampler", "batch_sampler")
    ),
    "default_hooks",
    "data_preprocessor",
    "env_cfg",
    "log_processor",
    "visualizer",
    "randomness",
    "tta_model",
    "tta_options",
)
_LISTS_OR_MAPPINGS = ("param_scheduler", "val_evaluator", "test_evaluator")
# Whole numbers, and the least that each may be.
_NUMBERS = {
    **{f"train_cfg.{key}": 1 for key in ("max_iters", "max_epochs", "val_interval")},
    **{f"{part}_dataloader.batch_size": 1 for part in ("train", "val", "test")},
    **{f"{part}_dataloader.num_workers": 0 for part in ("train", "val", "test")},
    **{f"default_hooks.checkpoint.{key}": -1 for key in ("interval", "max_keep_ckpts")},
}
_DEEPEST = 50
_TEXTS = ("work_dir", "default_scope", "load_from", "experiment_name")


class ConfigError(InputError):
    """A config cannot be used; the message names the file and the key."""


def config_folder() -> Path:
    """The folder of the package's configs: beside the package in a source tree, inside it where it is installed."""
    for folder in (_PACKAGE / "_data" / "configs", _PACKAGE.parent / "configs"):
        if (folder / "_base_").is_dir():
            return folder
    raise FileNotFoundError("the configs are missing from this installation")


def packaged_configs() -> list[str]:
    """Names of the package's configs, as `load_config` takes them: "segmentation/vmamba_tiny_upernet_ade20k.py"."""
    folder = config_folder()
    names = (path.relative_to(folder) for path in folder.glob("[!_]*/*.py"))
    return sorted(name.as_posix() for name in names if not name.name.startswith("_"))


def _found(config: str | Path) -> Path:
    path = Path(config)
    if path.is_file():
        return path
    inside = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    if not inside.name:
        raise FileNotFoundError(f"no config {str(config)!r}: expected a file, or the name of a packaged config")
    packaged = config_folder() / inside.with_suffix(".py")
    if packaged.is_file():
        return packaged
    close = difflib.get_close_matches(inside.as_posix(), packaged_configs(), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise FileNotFoundError(f"no config {config}{hint}")


def load_config(config: str | Path | Config, options: dict | None = None) -> Config:
    """Read a config, or copy one that was read, and check its keys.

    A config in Python is code and runs; one in YAML or JSON is data (`data_config.py`).

    Args:
        config: a file, the name of one of the package's (`packaged_configs`), or MMEngine's object.
        options: changes by dotted key, as of `--cfg-options`.

    Raises:
        FileNotFoundError: no such config; close names are given.
        ConfigError: the config cannot be read, or has a misspelt key or a value of another kind.
    """
    cfg = copy.deepcopy(config) if isinstance(config, Config) else _read(_found(config))
    where = str(cfg.filename or "the config")
    if cfg.get("model") is None:
        raise ConfigError(f"{where} has no `model`: it is no config to train or test")
    for key in cfg:
        _check_key(key, where)
    for key in options or {}:
        _check_option(key, cfg)
    if options:
        try:
            cfg.merge_from_dict(options)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"--cfg-options {options}: {error}") from error
        except (AttributeError, RecursionError) as error:
            raise ConfigError(f"--cfg-options {', '.join(options)}: a key leads into a value without keys") from error
    _check_kinds(cfg, where)
    return cfg


def _read(path: Path) -> Config:
    try:
        with reading_data(path, config_folder()):
            return Config.fromfile(path)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} cannot be read: {_told(error, path)}") from error


def _told(error: BaseException, path: Path) -> str:
    """What is wrong with a file: where it is code, with the class of the error that it raised."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    if isinstance(error, RecursionError):
        return "it builds on itself, or is nested too deep"
    return f"{type(error).__name__}: {error}" if path.suffix == ".py" else str(error)


def _check_kinds(cfg: Config, where: str) -> None:
    """Refuse a value that is of another kind than its key's; None stands for nothing."""
    for keys, kinds, expected in (
        (_MAPPINGS, Mapping, "keys with their values"),
        (_LISTS_OR_MAPPINGS, (Mapping, list, tuple), "keys with their values, or a list of such"),
        (_TEXTS, (str, Path), "text"),
        (("custom_hooks",), (list, tuple), "a list"),
        (("compile",), (Mapping, bool), "True, False or keys with their values"),
    ):
        for key in keys:
            value = _value(cfg, key)
            if value is not None and (not isinstance(value, kinds) or value == ""):
                raise ConfigError(f"{where}: `{key}` is {str(value)[:50]!r}: expected {expected}")
    for key, least in _NUMBERS.items():
        value = _value(cfg, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"{where}: `{key}` is {str(value)[:50]!r}: expected a whole number from {least}")


def _value(cfg: Config, key: str):
    """What stands at a dotted key, None if nothing does."""
    value = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping | Config) else None
    return value


def _check_key(key: str, where: str) -> None:
    """Refuse a slip; other keys are a config's own variables."""
    if key in _KEYS or key.startswith("_"):
        return
    if close := difflib.get_close_matches(key, set(_KEYS) - {"model", "tta_pipeline", "tta_options"}, n=1, cutoff=0.88):
        raise ConfigError(f"{where}: unknown key {key!r}: did you mean {close[0]!r}?")


def _check_option(option: str, cfg: Config) -> None:
    """Refuse a key that nobody would read: an unknown first part, or a slip of a key that is there already."""
    node, where = cfg.to_dict(), "--cfg-options"
    if not all(re.fullmatch(r"[\w +*@:/<>-]+", part) for part in option.split(".")):
        raise ConfigError(f"{where}: {option!r} is no key: expected one as train_dataloader.batch_size")
    if option.count(".") > _DEEPEST:
        raise ConfigError(f"{where}: {option[:60]}... is nested too deep")
    for depth, key in enumerate(option.split(".")):
        if isinstance(node, Sequence) and not isinstance(node, str):
            node = node[int(key)] if key.isdecimal() and int(key) < len(node) else None
            continue
        if not isinstance(node, Mapping):
            return
        if key not in node:
            known = [*_KEYS, *node] if depth == 0 else list(node)
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
            if key not in known and (close or depth == 0):
                hint = f": did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"{where}: unknown key {option!r}{hint}")
            return
        node = node[key]
