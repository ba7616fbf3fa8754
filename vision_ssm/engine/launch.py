"""`train` and `test`: from a config to a runner, in one process or one of several."""

import inspect
import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from mmengine import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import METRICS, init_default_scope
from torch import nn

from ..errors import InputError
from ..files import write_json
from .config import ConfigError, load_config
from .data_check import metric_configs
from .order import DataError
from .runner import Runner
from .tta import average_views
from .types import checked_types, named_by

__all__ = ["test", "train"]

_RUNS = itertools.count()
Launcher = Literal["none", "pytorch", "slurm"]


def _prepare(config: str | Path | Config, work_dir: str | Path | None, options: dict | None, launcher: Launcher):
    cfg = load_config(config, options)
    _check_launcher(launcher)
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("runs") / Path(cfg.filename or "run").stem)
    _make_folder(cfg.work_dir)
    cfg.launcher = launcher
    # MMEngine keeps loggers, message hubs and visualisers by name for as long as the process lives.
    cfg.experiment_name = f"{Path(cfg.work_dir).name}_{os.getpid()}_{next(_RUNS)}"
    if cfg.get("visualizer"):
        cfg.visualizer.pop("name", None)
    os.environ.setdefault("LOCAL_RANK", "0")
    env = cfg.setdefault("env_cfg", ConfigDict())
    if not torch.cuda.is_available():
        env.setdefault("dist_cfg", ConfigDict())["backend"] = "gloo"
        _without_sync_bn(cfg)
    init_default_scope(cfg.get("default_scope") or "mmengine")
    return cfg


# What a launcher sets for each of its processes.
_SET = {
    "none": (),
    "pytorch": ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST"),
}


def _check_launcher(launcher: str) -> None:
    if launcher not in _SET:
        raise ConfigError(f"launcher={launcher!r}: expected {', '.join(_SET)}")
    if launcher == "slurm" and not torch.cuda.is_available():
        raise ConfigError("launcher='slurm' needs GPUs; without them start torchrun in the job, launcher='pytorch'")
    if missing := [name for name in _SET[launcher] if name not in os.environ]:
        starter = dict(pytorch="torchrun", slurm="srun")[launcher]
        raise ConfigError(
            f"launcher={launcher!r}, but {', '.join(missing)} is not set: start the command with {starter}"
        )


def _make_folder(path: str | Path, key: str = "work_dir") -> None:
    """The folder of a run, or of what `key` says.

    Raises:
        ConfigError: there cannot be one, or nothing can be written to it.
    """
    try:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except FileExistsError as error:
        raise ConfigError(f"{key} {path} is a file: expected a folder, or the name of a new one") from error
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{key} {str(path)!r} cannot be made: {getattr(error, 'strerror', None) or error}") from error
    if not writable:
        raise ConfigError(f"{key} {path} cannot be written to: expected a folder with that permission")


def _check_precision(cfg: Config) -> None:
    """Refuse float16 with loss scaling where there is no GPU, before anything is read."""
    wrapper = cfg.optim_wrapper
    kinds = [one.get("type") for one in (wrapper, *wrapper.values()) if isinstance(one, dict)]
    scaled = {"AmpOptimWrapper", "ApexOptimWrapper"} & {kind for kind in kinds if isinstance(kind, str)}
    if scaled and not torch.cuda.is_available():
        raise ConfigError(
            f"{_name(cfg)}: float16 (fp16, {scaled.pop()}) needs a GPU: on CPUs use bfloat16 (--amp bf16), or no --amp"
        )


def _name(cfg: Config) -> str:
    return cfg.filename or "the config"


def _without_sync_bn(node) -> None:
    """SyncBN exists for GPUs only; on CPUs every process normalises its own batch."""
    if isinstance(node, dict):
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            _without_sync_bn(item)


def _runner(cfg: Config) -> Runner:
    try:
        with _writing(cfg):
            return Runner.from_cfg(cfg)
    except (InputError, UnicodeEncodeError):  # the last of a path
        raise
    # MMEngine's registries and arguments: an unknown type, argument or value
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{_name(cfg)}: {error}") from error


@contextmanager
def _writing(cfg: Config) -> Iterator[None]:
    """Files that cannot be written, logs for example, are errors of the folder that they are for."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # the package's own message: no checkpoint, say
            raise
        raise ConfigError(
            f"{error.filename or cfg.work_dir}: {error.strerror}, in the training in {cfg.work_dir}"
        ) from error


@checked_types()
def train(
    config: str | Path | Config,
    work_dir: str | Path | None = None,
    resume: bool | str | Path = False,
    amp: Literal["bf16", "fp16"] | None = None,
    launcher: Launcher = "none",
    options: dict | None = None,
    keep_head: bool = False,
) -> nn.Module:
    """Train by a config.

    Args:
        config: file, packaged name or MMEngine config.
        work_dir: folder of logs and checkpoints, `runs/<name of the config>` by default.
        resume: continue from the latest checkpoint in `work_dir`, or from the one that is named. Without a checkpoint
            the run starts anew, so that a job that is restarted by a scheduler can always say so.
        amp: mixed precision: bfloat16, or float16 with loss scaling (GPUs).
        launcher: who started the processes: nobody, torchrun or Slurm.
        options: changes to the config by dotted key.
        keep_head: start from the weights of `load_from`, or of the model's `checkpoint`, without the heads: those are
            for other classes.

    Returns:
        The trained model.

    Raises:
        FileNotFoundError, ConfigError, DataError, CheckpointError: bad input; the message names the file or key.
        NonFiniteError: the losses or weights have become NaN or infinite.
    """
    cfg = _prepare(config, work_dir, options, launcher)
    for part in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if cfg.get(part) is None:
            raise ConfigError(f"{_name(cfg)} has no `{part}`: it cannot be trained")
    if keep_head or cfg.get("keep_head"):
        _keep_head(cfg)
    if resume == "" or cfg.get("load_from") == "":
        raise ConfigError("the checkpoint to start from has an empty name: is a variable not set?")
    if resume is True:
        cfg.resume = "auto"
    elif resume:
        cfg.resume, cfg.load_from = True, str(resume)
    if amp not in (None, False, "bf16", "fp16"):
        raise ConfigError(f"amp={amp!r}: expected 'bf16' or 'fp16'")
    if amp:
        kind = {"bf16": dict(type="BFloat16OptimWrapper"), "fp16": dict(type="AmpOptimWrapper", loss_scale="dynamic")}
        if cfg.optim_wrapper.get("type", "OptimWrapper") != "OptimWrapper":
            raise ConfigError(f"{_name(cfg)}: `optim_wrapper` is a {cfg.optim_wrapper.type} already: leave out --amp")
        cfg.optim_wrapper.update(kind[amp])
    _check_precision(cfg)
    return _run(_runner(cfg), "train", cfg)


def _keep_head(cfg: Config) -> None:
    """Start from weights without their heads: the run's `load_from`, or the model's own `checkpoint`."""
    inner = cfg.model.get("type") in ("VolumeSegmentor", "NetworkSegmentor") and cfg.model.get("checkpoint")
    if not cfg.get("load_from") and not inner:
        raise ConfigError(f"{_name(cfg)}: `keep_head` needs `load_from`, the checkpoint to start from")
    cfg.keep_head = True
    if inner:
        cfg.model.keep_head = True


@checked_types()
def test(
    config: str | Path | Config,
    checkpoint: str | Path,
    work_dir: str | Path | None = None,
    out: str | Path | None = None,
    show_dir: str | Path | None = None,
    tta: bool = False,
    launcher: Launcher = "none",
    options: dict | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint on a config's test set.

    Args:
        config, work_dir, launcher, options: as in `train`.
        checkpoint: of this package, of MMEngine or as published; loaded strictly.
        out: folder for metrics.json and predictions: label maps (PNG) for segmentation, COCO results (JSON) for
            detection, label maps in their image's geometry (NIfTI) for volumes.
        show_dir: folder for rendered predictions.
        tta: multi-scale and flipped, by the config's `tta_model` and `tta_pipeline`, or by its `tta_options`, which
            are merged into it; volumes by the flips of the training's transforms. No flip is averaged over that
            training never shows, unless `tta_options` ask for it.

    Returns:
        The metrics by name.
    """
    cfg = _prepare(config, work_dir, options, launcher)
    for part in ("test_dataloader", "test_cfg", "test_evaluator"):
        if cfg.get(part) is None:
            raise ConfigError(f"{_name(cfg)} has no `{part}`: it cannot be tested")
    cfg.load_from, cfg.resume = str(checkpoint), False
    if out is not None:
        _write_predictions(cfg, Path(out))
    if show_dir is not None:
        hook = (cfg.get("default_hooks") or {}).get("visualization")
        if hook is None or not cfg.get("visualizer"):
            raise ConfigError(f"{_name(cfg)} has no `default_hooks.visualization`, or no `visualizer`: it cannot draw")
        hook.update(draw=True, interval=1)
        if hook.type == "DetVisualizationHook":
            hook.pop("interval")
            hook.test_out_dir = str(Path(show_dir).resolve())
        cfg.visualizer.update(save_dir=str(show_dir))
    if tta:
        average_views(cfg)
    metrics = {name: float(value) for name, value in _run(_runner(cfg), "test", cfg).items()}
    if out is not None and is_main_process():
        write_json(Path(out) / "metrics.json", metrics)
    return metrics


def _write_predictions(cfg: Config, folder: Path) -> None:
    _make_folder(folder, "out")
    for metric in metric_configs(cfg.test_evaluator):
        kind = named_by(METRICS, metric.get("type"))
        takes = {name for one in getattr(kind, "__mro__", ()) for name in inspect.signature(one.__init__).parameters}
        if "outfile_prefix" in takes:  # MMDetection's
            metric.outfile_prefix = str(folder / "coco")
        elif "output_dir" in takes:
            metric.output_dir = str(folder)
        else:
            print_log(f"--out: {metric.get('type')} writes no predictions", logger="current", level=logging.WARNING)


def _run(runner: Runner, job: str, cfg: Config):
    try:
        with _writing(cfg):
            return getattr(runner, job)()
    except DataError as error:
        # The traceback keeps the loaders, whose processes would then take seconds to end.
        raise error.with_traceback(None) from error.__cause__
    except InputError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        # Loops, optimisers and schedules are built when the job starts, loaders and hooks later still. MMEngine names
        # the class and what it did not expect.
        if not runner.is_built or "unexpected keyword" in str(error) or "registry" in str(error):
            raise ConfigError(f"{_name(cfg)}: {error}") from error
        raise
