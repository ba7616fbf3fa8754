"""What the runner loads, resumes from and refuses; stock checkpoints made by MMEngine's own runner."""

import copy
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from engine.tiny import TinyData, TinyModel, config, files, finish, last, same
from mmengine import Config
from mmengine.hooks import CheckpointHook as StockHook
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner import Runner as StockRunner

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import DataError, Runner, train
from vision_ssm.engine import test as evaluate
from vision_ssm.engine.checkpoint_hook import CheckpointHook
from vision_ssm.engine.loops import EpochLoop, IterLoop

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = {"steps": 12}
SCORED = dict(test_dataloader=None, test_cfg=dict(type="TestLoop"), test_evaluator=dict(type="TinyMetric"))


def with_test(cfg):
    """A config with a test set, its validation set."""
    cfg.merge_from_dict(SCORED | dict(test_dataloader=cfg.val_dataloader))
    return cfg


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run's folder."""
    folder = tmp_path_factory.mktemp("trained")
    assert finish(config(**STEPS), folder) == 0
    return folder


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A checkpoint of MMEngine's own runner after 10 of 12 steps, and that runner's state."""
    folder = tmp_path_factory.mktemp("stock")
    cfg = config(**STEPS)
    cfg.custom_hooks = cfg.custom_hooks[:1]
    cfg.param_scheduler = [
        dict(type="OneCycleLR", eta_max=0.1, total_steps=12, end=12, by_epoch=False)
    ]  # keeps a function
    cfg.work_dir, cfg.experiment_name, cfg.train_cfg.max_iters = str(folder), "stock", 10
    cfg.default_hooks.pop("data_check")
    runner = StockRunner.from_cfg(cfg)
    runner.train()
    path = folder / "iter_10.pth"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    return path, cfg, runner


def lossless(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_stock_checkpoint_loads(stock, tmp_path):
    path, _, theirs = stock
    cfg = with_test(config(**STEPS))
    assert evaluate(cfg, path, tmp_path)["val/loss"] > 0
    cfg.work_dir, cfg.custom_hooks = str(tmp_path), []
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(str(path))
    average = next(hook.ema_model for hook in theirs._hooks if hasattr(hook, "ema_model"))
    assert same(lossless(runner.model), lossless(average.module)), "a checkpoint's weights are the average"


def test_stock_checkpoint_is_resumed(stock, tmp_path):
    path, cfg, stocks = stock
    cfg = cfg.copy()
    cfg.default_hooks.data_check, cfg.experiment_name = None, "resumed"
    cfg.work_dir, cfg.load_from, cfg.resume, cfg.train_cfg.max_iters = str(tmp_path), str(path), True, 12
    runner = Runner.from_cfg(cfg)
    seen = {}

    class Look(Hook):
        priority = "LOWEST"

        def before_train(self, runner):
            seen.update(
                iter=runner.iter,
                weights=lossless(runner.model),
                optimizer=copy.deepcopy(runner.optim_wrapper.optimizer.state_dict()),
                schedule=dict(runner.param_schedulers[0].__dict__),
                best=runner.message_hub.get_info("best_score"),
            )

    runner.register_hook(Look())
    runner.train()
    assert seen["iter"] == 10 and same(seen["weights"], lossless(stocks.model))
    assert same(seen["optimizer"], stocks.optim_wrapper.optimizer.state_dict())
    theirs = stocks.param_schedulers[0].__dict__
    for key in ("last_step", "_global_step", "_last_value", "_schedule_phases"):
        assert seen["schedule"][key] == theirs[key], key
    assert callable(seen["schedule"]["anneal_func"])
    assert seen["best"] == stocks.message_hub.get_info("best_score")
    assert last(tmp_path)["meta"]["iter"] == 12 and torch.isfinite(last(tmp_path)["state_dict"]["head.weight"]).all()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["meta", "message_hub", "optimizer", "param_schedulers", "config"])
def test_code_in_a_checkpoint_is_not_run(where, trained, tmp_path):
    checkpoint = dict(last(trained))
    trap = tmp_path / "sprung"
    if where == "config":  # MMEngine runs it
        checkpoint["meta"] = dict(checkpoint["meta"], config=f"made = __import__('os').mkdir({str(trap)!r})")
    elif where == "param_schedulers":
        checkpoint[where] = [dict(checkpoint[where][0], extra=Trap(trap)), *checkpoint[where][1:]]
    elif where == "message_hub":
        checkpoint[where] = dict(checkpoint[where], runtime_info=dict(trap=Trap(trap)))
    else:
        checkpoint[where] = dict(checkpoint[where], extra=Trap(trap))
    path = tmp_path / "iter_12.pth"
    torch.save(checkpoint, path)
    run = config(**STEPS)
    run.train_cfg.max_iters = 13
    train(run, tmp_path / "run", resume=path)
    assert not trap.exists() and last(tmp_path / "run")["meta"]["iter"] == 13
    evaluate(with_test(config(**STEPS)), path, tmp_path / "run")
    assert not trap.exists()
    if where == "config":
        Config.fromstring(checkpoint["meta"]["config"], ".py")
    else:
        torch.load(path, weights_only=False)
    assert trap.exists(), "the trap does not work"


def test_weights_are_not_enough_to_resume(trained, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(dict(state_dict=last(trained)["state_dict"]), path)
    with pytest.raises(CheckpointError, match=r"weights\.pth cannot be resumed from: it holds no meta.*load_from"):
        train(config(**STEPS), tmp_path / "run", resume=path)
    best = next(path for path in files(trained) if "best" in path.name)
    with pytest.raises(CheckpointError, match="holds no optimizer"):
        train(config(**STEPS), tmp_path / "run", resume=best)


@HOOKS.register_module(force=True)
class Never(Hook):
    """Fails the test when a step is trained."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise AssertionError("a step was trained")


@pytest.mark.parametrize("how", ["resume", "load_from"])
@pytest.mark.parametrize("averaged", [True, False])
def test_other_backbone_is_an_error_before_the_first_step(how, averaged, trained, tmp_path):
    path = files(trained)[-1]
    cfg = config(**STEPS, **{"model.width": 16})
    cfg.custom_hooks = [*cfg.custom_hooks[not averaged :], dict(type="Never")]
    changes = dict(resume=path) if how == "resume" else dict(options=dict(load_from=str(path)))
    with pytest.raises(CheckpointError, match=rf"{path.name}.*body\.0\.weight is \(8, 3\), expected \(16, 3\)"):
        train(cfg, tmp_path, **changes)
    assert not files(tmp_path)


def test_missing_and_damaged_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        train(config(), tmp_path, resume=tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read"):
        train(config(), tmp_path, options=dict(load_from=str(tmp_path / "cut.pth")))


def test_load_from_starts_a_new_run(trained, tmp_path):
    first = {}

    class Look(Hook):
        def before_train(self, runner):
            first.update(lossless(runner.model), iter=runner.iter)

    HOOKS.register_module(module=Look, force=True)
    cfg = config(**STEPS, load_from=str(files(trained)[-1]))
    cfg.custom_hooks = [dict(type="Look")]
    train(cfg, tmp_path)
    assert first.pop("iter") == 0 and same(first, dict(last(trained)["state_dict"]))
    # a scheduler restarts the same command: the run's own checkpoint comes first
    cfg.train_cfg.max_iters = 13
    train(cfg, tmp_path, resume=True)
    assert first.pop("iter") == 12


@MODELS.register_module(force=True)
class TinyTTA(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return [samples[0] for samples in data_samples_list]

    def test_step(self, data):
        return self.module.test_step(data)


def test_metrics_with_and_without_test_time_augmentation(trained, tmp_path):
    cfg = with_test(config(**STEPS, tta_model=dict(type="TinyTTA"), tta_pipeline=[]))
    metrics = evaluate(cfg, files(trained)[-1], tmp_path)
    assert metrics["val/loss"] == pytest.approx(-last(trained)["message_hub"]["runtime_info"]["best_score"], abs=1e-6)
    assert evaluate(cfg, files(trained)[-1], tmp_path, tta=True) == metrics


def test_two_runs_of_one_process_do_not_meet(tmp_path):
    for name in ("a", "b"):  # within a second: MMEngine tells runs apart by the time
        train(config(**STEPS), tmp_path / name)
        assert [path.name for path in files(tmp_path / name)] == ["best_val_score_iter_12.pth", "iter_12.pth"]
    one, two = (last(tmp_path / name) for name in ("a", "b"))
    assert same(one["state_dict"], two["state_dict"])
    assert len(one["message_hub"]["log_scalars"]["train/loss"]["history"]) == 12
    assert len(two["message_hub"]["log_scalars"]["train/loss"]["history"]) == 12


def test_stock_classes_in_a_config_are_replaced_too(tmp_path):
    cfg = config(**STEPS)
    cfg.default_hooks.checkpoint.type = StockHook
    for kind, loop in ((IterBasedTrainLoop, IterLoop), (EpochBasedTrainLoop, EpochLoop)):
        cfg.train_cfg = dict(type=kind, **({"max_iters": 2} if loop is IterLoop else {"max_epochs": 1}))
        cfg.work_dir = str(tmp_path)
        runner = Runner.from_cfg(cfg)
        assert type(runner.build_train_loop(runner._train_loop)) is loop
        assert any(type(hook) is CheckpointHook for hook in runner._hooks)


def test_too_few_samples_for_a_batch(tmp_path):
    changes = {"train_dataloader.dataset.samples": 3, "train_dataloader.drop_last": True}
    cfg = config(**changes, **{"train_dataloader.sampler.type": "DefaultSampler"})
    with pytest.raises(DataError, match="3 samples to train on do not make one batch of 4"):
        train(cfg, tmp_path)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_sample_leaves_the_last_checkpoint(part, workers, tmp_path):
    cfg = config(workers=workers, **STEPS)
    cfg[f"{part}_dataloader"].update(num_workers=workers)
    cfg.default_hooks.checkpoint.interval, cfg.param_scheduler = 1, None
    train(cfg.copy(), tmp_path, options={"train_cfg.max_iters": 1})
    cfg[f"{part}_dataloader"].dataset.update(bad=7)
    with pytest.raises(DataError, match=r"^images/007\.jpg: OSError: cannot identify image file$"):
        train(cfg, tmp_path, resume=True)
    assert 1 <= last(tmp_path)["meta"]["iter"] <= 6


def test_user_built_parts_work(tmp_path):
    """A model and a loader that were built before: in the order of their own."""
    loader = torch.utils.data.DataLoader(TinyData(), batch_size=4, shuffle=True)
    cfg = dict(train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)))
    hooks = dict(logger=None, data_check=None, checkpoint=dict(type="CheckpointHook", interval=1))
    model = TinyModel()
    Runner(model, str(tmp_path), train_dataloader=loader, default_hooks=hooks, log_level="ERROR", **cfg).train()
    assert same(OrderedDict(model.state_dict()), last(tmp_path)["state_dict"])
    assert np.isfinite(last(tmp_path)["message_hub"]["log_scalars"]["train/loss"]["history"]).all()
