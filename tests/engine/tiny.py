"""A small training run in pure MMEngine that draws random numbers wherever a real one does."""

import os
import random
import signal
import time
import warnings
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine import Config
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn

from vision_ssm.engine import train

SAMPLES, BATCH = 22, 4  # the last batch of an epoch is smaller


@DATASETS.register_module(force=True)
class TinyData(torch.utils.data.Dataset):
    """Points of two classes; each is distorted with numbers from all three generators."""

    def __init__(self, samples=SAMPLES, distort=True, bad=None, delay=0.0, pipeline=()):
        self.metainfo = dict(classes=("a", "b"), palette=np.array([[0, 0, 0], [9, 9, 9]]))
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(samples, 3, generator=generator)
        self.y = (self.x.sum(1) > 0).long()
        self.distort, self.bad, self.delay = distort, bad, delay

    def __len__(self):
        return len(self.x)

    def get_data_info(self, index):
        return dict(img_path=f"images/{index:03d}.jpg")

    def __getitem__(self, index):
        time.sleep(self.delay)
        if index == self.bad:
            raise OSError("cannot identify image file")
        x = self.x[index].clone()
        if self.distort:
            x += 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * torch.randn(3)
        return dict(inputs=x, label=self.y[index])


@MODELS.register_module(force=True)
class TinyModel(BaseModel):
    """BatchNorm and dropout; validation draws random numbers too."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(0.3))
        self.head = nn.Linear(width, 2)

    def forward(self, inputs, label=None, mode="tensor"):
        inputs, label = (torch.stack(list(x)) if isinstance(x, (list, tuple)) else x for x in (inputs, label))
        scores = self.head(self.body(inputs))
        if mode == "loss":
            return dict(loss=F.cross_entropy(scores, label))
        torch.rand(1), np.random.rand(), random.random()
        return [dict(loss=loss) for loss in F.cross_entropy(scores, label, reduction="none")]


@METRICS.register_module(force=True)
class TinyMetric(BaseMetric):
    """Mean loss, or rising or falling numbers instead of it."""

    default_prefix = "val"

    def process(self, data_batch, data_samples):
        self.results += [float(sample["loss"]) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(loss=float(np.mean(results)), score=np.float64(-np.mean(results)))


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)
class Kill(Hook):
    """Kills its process after a step, or in the middle of a validation."""

    priority = "LOWEST"

    def __init__(self, step: int, where: str = "train"):
        self.step, self.where = step, where

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.where == "train" and runner.iter + 1 >= self.step:
            _die()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.where == "val" and runner.iter >= self.step:
            _die()


@HOOKS.register_module(force=True)
class Draw(Hook):
    """Draws from the model's generators before epochs and steps, as some hooks do."""

    def before_train_epoch(self, runner):
        torch.rand(3)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        random.random(), np.random.rand()


@HOOKS.register_module(force=True)
class Compare(Hook):
    """Fails unless every process ends with the same parameters, after other random numbers."""

    def after_train(self, runner):
        weights = all_gather_object([p.detach().clone() for p in runner.model.parameters()])
        drawn = all_gather_object(torch.rand(3))
        assert same(weights[0], weights[1]) and not same(drawn[0], drawn[1])


def config(by_epoch: bool = False, workers: int = 0, steps: int = 24, **changes) -> Config:
    """Warm-up, cosine decay, accumulated gradients, a moving average, validation, one checkpoint kept.

    Args:
        by_epoch: train by epochs (of 6 steps), with checkpoints within them.
        workers: that load data.
        steps: in all.
        **changes: of keys, as `--cfg-options` changes them.
    """
    loader = dict(num_workers=workers, persistent_workers=workers > 0)
    shuffled = dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True)
    val = dict(sampler=dict(type="DefaultSampler", shuffle=False), dataset=dict(type="TinyData", distort=False))
    cfg = dict(
        model=dict(type="TinyModel"),
        train_dataloader=dict(batch_size=BATCH, sampler=shuffled, dataset=dict(type="TinyData"), **loader),
        val_dataloader=dict(batch_size=8, num_workers=0, **val),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=steps // 6)
        if by_epoch
        else dict(type="IterBasedTrainLoop", max_iters=steps, val_interval=6),
        val_cfg=dict(type="ValLoop"),
        val_evaluator=dict(type="TinyMetric"),
        optim_wrapper=dict(
            type="OptimWrapper",
            optimizer=dict(type="AdamW", lr=0.02),
            accumulative_counts=3,
            clip_grad=dict(max_norm=1),
        ),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=8),
            dict(type="CosineAnnealingLR", by_epoch=by_epoch, begin=0 if by_epoch else 8, T_max=steps),
        ],
        default_hooks=dict(
            checkpoint=dict(
                type="CheckpointHook",
                by_epoch=False,
                interval=5,
                max_keep_ckpts=1,
                save_best="val/score",
                rule="greater",
            ),
            logger=dict(type="LoggerHook", interval=10),
            data_check=None,  # there are no files
        ),
        custom_hooks=[dict(type="EMAHook", momentum=0.1), dict(type="Draw")],
        env_cfg=dict(mp_cfg=dict(mp_start_method="fork")),
        randomness=dict(seed=3),
        visualizer=None,
        log_level="ERROR",
    )
    cfg = Config(cfg, format_python_code=False)  # formatting takes longer than training
    cfg.merge_from_dict(changes)
    return cfg


def _trained(cfg, folder, interfere, hooks, env, options):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(env)
    cfg = Config(cfg, format_python_code=False)
    for name in cfg.get("custom_imports", {}).get("imports", []):
        import_module(name)
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), *hooks]
    if interfere is not None:
        interfere()
    train(cfg, folder, **options)


@cache
def _server():
    """A process that has imported everything and has no threads, to fork from."""
    context = get_context("forkserver")
    libraries = ["matplotlib.pyplot", "vision_ssm.openmmlab", "mmseg.models", "mmseg.datasets", "mmseg.evaluation"]
    libraries += ["vision_ssm.volumes", "volumes.tiny_volumes"]
    context.set_forkserver_preload(["engine.tiny", *libraries])
    before = os.environ.get("PYTHONPATH", "")
    tests = Path(__file__).parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent), before])
    try:
        ensure_running()
    finally:
        os.environ["PYTHONPATH"] = before
    return context


def start(cfg: Config, folder: Path, *hooks: dict, interfere=None, env: dict | None = None, **options):
    """Train in a process of its own, forked from one that has imported everything; returns the process.

    Args:
        cfg: of `config`.
        folder: for checkpoints.
        *hooks: more of them.
        interfere: called first in the process.
        env: its environment.
        **options: of `train`.
    """
    args = (cfg.to_dict(), str(folder), interfere, list(hooks), env or {}, dict(dict(resume=True), **options))
    process = _server().Process(target=_trained, args=args)
    process.start()
    return process


def finish(cfg: Config, folder: Path, *hooks: dict, **options) -> int:
    """`start`, wait, and return the exit code: -9 if it was killed."""
    process = start(cfg, folder, *hooks, **options)
    process.join(60)
    assert process.exitcode is not None, "the training hangs"
    return process.exitcode


def files(folder: Path) -> list[Path]:
    """Checkpoints in a folder."""
    return sorted(path for path in folder.glob("*.pth") if not path.name.startswith("."))


def last(folder: Path) -> dict:
    """The newest numbered checkpoint, read as anyone may read it."""
    newest = max((path for path in files(folder) if "best" not in path.name), key=lambda path: path.stat().st_mtime_ns)
    return torch.load(newest, weights_only=True)


def same(a, b) -> bool:
    """Equality to the last bit, of tensors and plain values."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_end(folder: Path, unbroken: Path) -> None:
    """Two runs ended alike: weights, moving average, optimiser, schedules, random numbers, best score."""
    one, other = last(folder), last(unbroken)
    for key in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers", "process_states"):
        assert same(one.get(key), other.get(key)), key
    assert one["meta"]["iter"] == other["meta"]["iter"] and one["meta"]["epoch"] == other["meta"]["epoch"]
    infos = [checkpoint["message_hub"]["runtime_info"] for checkpoint in (one, other)]
    assert infos[0].get("best_score") == infos[1].get("best_score")
    ours, theirs = files(folder), files(unbroken)
    assert [path.name for path in ours] == [path.name for path in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert same(*(torch.load(path, weights_only=True)["state_dict"] for path in (a, b))), a.name
