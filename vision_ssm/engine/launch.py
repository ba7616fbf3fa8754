"""`train` and `test`: from a config to a runner, in one process or one of several."""

import copy
import itertools
import os
from pathlib import Path
from typing import Literal

import torch
from mmengine import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope
from torch import nn

from ..checkpoints import CheckpointError
from ..files import write_json
from .config import ConfigError, load_config
from .order import DataError
from .runner import Runner
from .types import checked_types

__all__ = ["test", "train"]

_RUNS = itertools.count()
Launcher = Literal["none", "pytorch", "slurm"]


def _prepare(config: str | Path | Config, work_dir: str | Path | None, options: dict | None, launcher: Launcher):
    cfg = copy.deepcopy(config) if isinstance(config, Config) else load_config(config, options)
    if isinstance(config, Config) and options:
        cfg.merge_from_dict(options)
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("runs") / Path(cfg.filename or "run").stem)
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
    return cfg


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
    init_default_scope(cfg.get("default_scope", "mmengine"))
    try:
        return Runner.from_cfg(cfg)
    except (CheckpointError, DataError, UnicodeEncodeError):  # of a path, which the logged config cannot hold
        raise
    except (KeyError, TypeError, ValueError) as error:  # MMEngine's registries: an unknown type, argument or value
        raise ConfigError(f"{_name(cfg)}: {error}") from error


@checked_types()
def train(
    config: str | Path | Config,
    work_dir: str | Path | None = None,
    resume: bool | str | Path = False,
    amp: Literal["bf16", "fp16"] | None = None,
    launcher: Launcher = "none",
    options: dict | None = None,
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

    Returns:
        The trained model.

    Raises:
        FileNotFoundError, ConfigError, DataError, CheckpointError: bad input; the message names the file or key.
    """
    cfg = _prepare(config, work_dir, options, launcher)
    for part in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if cfg.get(part) is None:
            raise ConfigError(f"{_name(cfg)} has no `{part}`: it cannot be trained")
    if resume is True:
        cfg.resume = "auto"
    elif resume:
        cfg.resume, cfg.load_from = True, str(resume)
    if amp:
        kind = {"bf16": dict(type="BFloat16OptimWrapper"), "fp16": dict(type="AmpOptimWrapper", loss_scale="dynamic")}
        if cfg.optim_wrapper.get("type", "OptimWrapper") != "OptimWrapper":
            raise ConfigError(f"{_name(cfg)}: `optim_wrapper` is a {cfg.optim_wrapper.type} already: leave out --amp")
        cfg.optim_wrapper.update(kind[amp])
    return _run(_runner(cfg), "train", cfg)


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
            are merged into it.

    Returns:
        The metrics by name.
    """
    cfg = _prepare(config, work_dir, options, launcher)
    cfg.load_from, cfg.resume = str(checkpoint), False
    if out is not None:
        _write_predictions(cfg, Path(out))
    if show_dir is not None:
        hook = cfg.get("default_hooks", {}).get("visualization")
        if hook is None:
            raise ConfigError(f"{_name(cfg)} has no `default_hooks.visualization`: it cannot draw")
        hook.update(draw=True, interval=1)
        if hook.type == "DetVisualizationHook":
            hook.pop("interval")
            hook.test_out_dir = str(Path(show_dir).resolve())
        cfg.visualizer.update(save_dir=str(show_dir))
    if tta and "tta_options" in cfg:
        cfg.merge_from_dict(cfg.tta_options.to_dict())
    elif tta:
        if "tta_model" not in cfg or "tta_pipeline" not in cfg:
            raise ConfigError(f"{_name(cfg)} has no `tta_model` and `tta_pipeline`, nor `tta_options`")
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    metrics = {name: float(value) for name, value in _run(_runner(cfg), "test", cfg).items()}
    if out is not None and is_main_process():
        write_json(Path(out) / "metrics.json", metrics)
    return metrics


def _write_predictions(cfg: Config, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    for evaluator in evaluators:
        if evaluator.type == "CocoMetric":
            evaluator.outfile_prefix = str(folder / "coco")
        else:
            evaluator.output_dir = str(folder)


def _run(runner: Runner, job: str, cfg: Config):
    try:
        return getattr(runner, job)()
    except DataError as error:
        # The traceback keeps the loaders, whose processes would then take seconds to end.
        raise error.with_traceback(None) from error.__cause__
    except (KeyError, TypeError) as error:
        # Loaders, hooks and optimisers are built late; MMEngine names the class and what it did not expect.
        if "unexpected keyword" in str(error) or "registry" in str(error):
            raise ConfigError(f"{_name(cfg)}: {error}") from error
        raise
