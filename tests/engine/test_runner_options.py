"""What a config asks of the runner: learning rates, seeds by rank, epochs of another length, which checkpoint."""

import logging
import os
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
from engine.tiny import config, last
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from vision_ssm.engine import ConfigError, Runner, train
from vision_ssm.engine import test as run_test
from vision_ssm.engine.checkpoint_hook import CheckpointHook
from vision_ssm.engine.loops import IterLoop
from vision_ssm.engine.saved import saved_checkpoints


def test_learning_rate_is_scaled(tmp_path):
    cfg = config(steps=1, **{"optim_wrapper.optimizer.lr": 0.02})
    cfg.param_scheduler = None
    cfg.auto_scale_lr = dict(enable=True, base_batch_size=16)
    train(cfg, tmp_path)
    assert last(tmp_path)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.02 * 4 / 16)


@pytest.mark.parametrize("different", [False, True])
def test_processes_share_one_permutation(different, monkeypatch, tmp_path):
    """Each process sees its part of the same order, whether or not its random numbers are its own."""
    import mmengine.dataset.sampler as sampler

    from vision_ssm.engine import runner as module

    seen = []
    for rank in range(2):
        monkeypatch.setattr(module, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(sampler, "get_dist_info", lambda rank=rank: (rank, 2))
        cfg = config(by_epoch=True)
        cfg.work_dir = str(tmp_path)
        cfg.experiment_name = f"permutation_{different}_{rank}"
        run = Runner.from_cfg(cfg)
        run._randomness_cfg["diff_rank_seed"] = different
        run._seed = 3 + rank * different
        seen += [int(i) for batch in run._train_loader().batch_sampler for i in batch]
    assert sorted(set(seen)) == list(range(22))


@pytest.mark.parametrize(("saved", "size"), [(12, 8), (10, 8), (10, 2)], ids=["at an end", "longer", "shorter"])
def test_epochs_of_another_length(saved, size, tmp_path, caplog):
    """With other batches every epoch that is left is trained, the one that was cut off from its start."""
    cfg = config(by_epoch=True, steps=12 if saved == 12 else 24)
    if saved == 10:
        cfg.custom_hooks = []
        cfg.default_hooks.checkpoint.interval = 10
        cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    train(cfg, tmp_path)
    epochs_before = saved // 6
    for path in tmp_path.glob("*.pth"):
        if path.name != f"iter_{saved}.pth":
            path.unlink()
    cfg = config(by_epoch=True, steps=24)
    cfg.train_dataloader.batch_size = size
    cfg.log_level = "WARNING"
    with caplog.at_level(logging.WARNING):
        train(cfg, tmp_path, resume=True)
    steps = -(-22 // size)
    assert last(tmp_path)["meta"]["iter"] == saved + (4 - epochs_before) * steps


def _touch(folder, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (1000 + i, 1000 + i))


@pytest.mark.parametrize(
    ("files", "note", "expected"),
    [
        ((), None, None),
        (("iter_2000.pth", "iter_4000.pth"), None, "iter_4000.pth"),
        (("iter_4000.pth", "iter_2000.pth"), "iter_4000.pth", "iter_4000.pth"),  # copied in another order
        (("iter_2000.pth", "iter_4000.pth"), "iter_2000.pth", "iter_4000.pth"),  # killed before the note
        (("iter_160000.pth", "iter_2000.pth"), "iter_2000.pth", "iter_2000.pth"),  # started anew in an old folder
        (("iter_2000.pth", "iter_4000.pth"), "", "iter_4000.pth"),
        (("iter_2000.pth", "best_mIoU_iter_9000.pth", ".77-iter_3000.pth"), None, "iter_2000.pth"),
    ],
)
def test_latest_checkpoint(files, note, expected, tmp_path):
    _touch(tmp_path, *files)
    if note is not None:
        (tmp_path / "last_checkpoint").write_text(f"/elsewhere/{note}" if note else "")
    found = next(iter(saved_checkpoints(tmp_path)), None)
    assert (found and found.name) == expected


def test_slurm_without_gpus_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="needs GPUs"):
        train(config(), tmp_path, launcher="slurm")


def test_wrong_value_of_a_component_is_named(tmp_path):
    cfg = config()
    cfg.model.width = -1
    with pytest.raises((ConfigError, RuntimeError), match=r"TinyModel|negative"):
        train(cfg, tmp_path)


@pytest.mark.parametrize("form", ["{}", "mmengine.{}", "mmengine.{module}.{}"])
def test_stock_parts_are_replaced_however_they_are_named(form, tmp_path):
    hook, loop = form.format("CheckpointHook", module="hooks"), form.format("IterBasedTrainLoop", module="runner")
    cfg = config(steps=12, **{"default_hooks.checkpoint.type": hook, "train_cfg.type": loop})
    cfg.work_dir = str(tmp_path)
    run = Runner.from_cfg(cfg)
    assert isinstance(run.checkpoint_hook, CheckpointHook)
    assert isinstance(run.build_train_loop(run._train_loop), IterLoop)


def test_hooks_that_are_none_are_off(tmp_path):
    names = ("visualization", "finite", "classes", "timer", "logger", "checkpoint")
    train(config(steps=12, **{f"default_hooks.{name}": None for name in names}), tmp_path)
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_cfg": dict(_delete_=True, max_iters=12)}, "`train_cfg` has no `type`"),
        ({"train_dataloader.collate_fn": "nope"}, "`train_dataloader.collate_fn` is 'nope'"),
        ({"train_dataloader.collate_fn": dict(type="nope")}, "has the `type` 'nope'"),
        ({"optim_wrapper.optimizer": "SGD"}, "`optim_wrapper.optimizer` is 'SGD'"),  # as in a file
        ({"default_hooks.checkpoint.interval": "x"}, "expected a whole number from -1"),
        ({"custom_hooks": "EMAHook"}, "expected a list"),
        ({"model": None}, "has no `model`"),
    ],
)
def test_parts_that_are_missing_or_of_another_kind(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(config(steps=12, **changes), tmp_path)


def test_weights_to_start_from_are_not_written_over(tmp_path):
    train(config(steps=12), tmp_path)
    path = tmp_path / "iter_12.pth"
    before = path.read_bytes()
    (tmp_path / "link.pth").symlink_to(path)
    for name in ("iter_12.pth", "link.pth"):
        with pytest.raises(ConfigError, match=r"`load_from` is .* may write over"):
            train(config(steps=12, load_from=str(tmp_path / name)), tmp_path)
    assert path.read_bytes() == before
    path.rename(tmp_path / "start.pth")
    train(config(steps=12, load_from=str(tmp_path / "start.pth")), tmp_path)


@METRICS.register_module(force=True)
class ResultFiles(BaseMetric):
    """Takes what MMDetection's metrics write to, through the arguments of its subclass."""

    def __init__(self, outfile_prefix=None, **kwargs):
        super().__init__(**kwargs)
        self.outfile_prefix = outfile_prefix

    def process(self, data_batch, data_samples):
        self.results.append(self.outfile_prefix)

    def compute_metrics(self, results):
        return dict(files=float(Path(results[0]).name == "coco"))


@METRICS.register_module(force=True)
class MoreResultFiles(ResultFiles):
    """As MMDetection's for LVIS or panoptic maps."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize("kind", [MoreResultFiles, "MoreResultFiles", "mmengine.MoreResultFiles"])
def test_predictions_go_where_each_metric_takes_them(kind, tmp_path):
    train(config(steps=12), tmp_path / "run")
    cfg = config()
    cfg.test_dataloader, cfg.test_cfg = cfg.val_dataloader, dict(type="TestLoop")
    with pytest.raises(ConfigError, match="has no `test_evaluator`"):
        run_test(cfg, tmp_path / "run/iter_12.pth", tmp_path)
    cfg.test_evaluator = [dict(type=kind), dict(type="TinyMetric")]  # the second one writes nothing
    metrics = run_test(cfg, tmp_path / "run/iter_12.pth", tmp_path, tmp_path / "out")
    assert metrics["files"] == 1 and "val/loss" in metrics and (tmp_path / "out/metrics.json").is_file()
