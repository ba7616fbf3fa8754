"""A run that is resumed with another config goes on as that config says, or is refused before anything is used."""

import logging
from typing import ClassVar

import pytest
import torch

pytest.importorskip("mmengine")
from engine.tiny import config, files, last, same
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import ConfigError, train

pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS = ("lr", "betas", "momentum", "weight_decay", "eps")


@HOOKS.register_module(force=True)
class Trace(Hook):
    """Notes the options of every step."""

    seen: ClassVar[dict] = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        groups = runner.optim_wrapper.optimizer.param_groups
        self.seen[runner.iter] = [{key: group.get(key) for key in OPTIONS} for group in groups]


def traced(cfg, folder, **options):
    """The options of every step that a run takes."""
    Trace.seen.clear()
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), dict(type="Trace")]
    train(cfg, folder, **options)
    return dict(Trace.seen)


def cosine(steps, lr=0.02, **changes):
    """A short run whose schedule ends where it does."""
    schedules = [
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=3),
        dict(type="CosineAnnealingLR", by_epoch=False, begin=3, end=steps),
    ]
    return config(steps=steps, **{"param_scheduler": schedules, "optim_wrapper.optimizer.lr": lr} | changes)


MOMENTUM = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=20),
    dict(type="CosineAnnealingMomentum", by_epoch=False, T_max=20, eta_min=0.5),
]
GROUPS = {
    "optim_wrapper.optimizer.weight_decay": 0.05,
    "optim_wrapper.paramwise_cfg": dict(custom_keys={"head": dict(lr_mult=0.1, decay_mult=0.0)}),
}
CHANGES = {
    "longer": dict(),
    "rate": dict(lr=0.005),
    "schedule": dict(param_scheduler=[dict(type="MultiStepLR", by_epoch=False, milestones=[2, 8, 14], gamma=0.5)]),
    "one schedule": dict(param_scheduler=[dict(type="PolyLR", by_epoch=False, power=0.9, end=30)]),
    "no schedule": dict(param_scheduler=None),
    "momentum": dict(param_scheduler=MOMENTUM),
    "decay": {"optim_wrapper.optimizer.weight_decay": 0.3, "optim_wrapper.optimizer.eps": 1e-6},
    "betas": {"optim_wrapper.optimizer.betas": (0.8, 0.99)},
    "OneCycle": dict(param_scheduler=[dict(type="OneCycleLR", eta_max=0.1, total_steps=18, by_epoch=False)]),
}


@pytest.mark.parametrize(
    ("change", "written_before"),
    [*((change, False) for change in CHANGES), ("longer", True), ("schedule", True), ("decay", True)],
)
def test_options_are_those_of_the_new_config_at_that_step(change, written_before, tmp_path):
    train(cosine(6), tmp_path / "a")
    path = next(path for path in files(tmp_path / "a") if "best" not in path.name)
    if written_before:
        content = torch.load(path, weights_only=True)
        del content["setting"]
        torch.save(content, path)
    whole = traced(cosine(18, **CHANGES[change]), tmp_path / "whole")
    rest = traced(cosine(18, **CHANGES[change]), tmp_path / "rest", resume=path)
    assert rest == {step: options for step, options in whole.items() if step >= 6}
    assert any(rest[step][0]["lr"] for step in rest)


def test_unchanged_schedules_go_on_from_the_file(tmp_path):
    """Also those that a replay would not give, as of a hook that has changed a rate."""
    for schedules in (MOMENTUM, CHANGES["OneCycle"]["param_scheduler"], None):
        changes = {"param_scheduler": schedules, **GROUPS}
        whole = traced(cosine(18, **changes), tmp_path / f"whole{schedules}"[:20])
        cfg = cosine(18, **changes)
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type="StopAt", step=6)]
        train(cfg, tmp_path / "a")
        path = tmp_path / "a" / "iter_6.pth"
        rest = traced(cosine(18, **changes), tmp_path / "rest", resume=path)
        assert rest == {step: options for step, options in whole.items() if step >= 6}


@HOOKS.register_module(force=True)
class StopAt(Hook):
    """Ends a training early."""

    def __init__(self, step):
        self.step = step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.train_loop.stop_training = runner.iter + 1 >= self.step


def test_epochs_are_replayed_in_their_order(tmp_path):
    train(config(by_epoch=True, steps=12), tmp_path / "a")
    path = next(path for path in files(tmp_path / "a") if "best" not in path.name)
    cfg = config(by_epoch=True, steps=24, **{"optim_wrapper.optimizer.lr": 0.01})
    whole, rest = traced(cfg.copy(), tmp_path / "whole"), traced(cfg.copy(), tmp_path / "rest", resume=path)
    assert rest == {step: options for step, options in whole.items() if step >= 12}


def test_rates_that_follow_the_validation_go_on(tmp_path):
    def plateau(steps, lr, patience=0):
        schedules = [dict(type="ReduceOnPlateauLR", monitor="val/score", rule="greater", patience=patience, factor=0.5)]
        return cosine(steps, lr, param_scheduler=schedules)

    train(plateau(12, 0.02), tmp_path / "a")
    saved = last(tmp_path / "a")
    rate = saved["optimizer"]["param_groups"][0]["lr"]
    path = tmp_path / "a" / "iter_12.pth"
    assert traced(plateau(18, 0.02), tmp_path / "b", resume=path)[12][0]["lr"] == rate
    assert traced(plateau(18, 0.01), tmp_path / "c", resume=path)[12][0]["lr"] == pytest.approx(rate / 2)
    state = last(tmp_path / "a")["param_schedulers"][0]
    assert state["best"] is not None


def test_differences_are_told(tmp_path, caplog):
    train(cosine(6), tmp_path)
    with caplog.at_level(logging.WARNING):
        cfg = cosine(12, lr=0.005, **{"train_dataloader.batch_size": 2, "log_level": "WARNING"})
        train(cfg, tmp_path, resume=True)
    text = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "the config is not the one of" in text and "batch_size 4 -> 2" in text and "max_iters 6 -> 12" in text
    assert "lr" in text and "by the config it is" in text


@pytest.mark.parametrize("written_before", [False, True])
@pytest.mark.parametrize("other", [dict(type="SGD", lr=0.01, momentum=0.9), dict(type="Adam", lr=0.01)])
def test_another_optimizer_is_an_error_or_starts_anew(other, written_before, tmp_path):
    train(cosine(6), tmp_path / "a")
    path = tmp_path / "a" / "iter_6.pth"
    if written_before:
        content = torch.load(path, weights_only=True)
        del content["setting"]
        torch.save(content, path)
    cfg = cosine(8)
    cfg.optim_wrapper.optimizer = other
    if other["type"] == "SGD" or not written_before:  # Adam's state is AdamW's
        with pytest.raises(CheckpointError, match=r"iter_6\.pth .*optimizer.*`resume_optimizer=False`"):
            train(cfg.copy(), tmp_path / "b", resume=path)
    train(cfg, tmp_path / "b", resume=path, options=dict(resume_optimizer=False))
    assert last(tmp_path / "b")["meta"]["iter"] == 8


def test_other_groups_are_an_error(tmp_path):
    train(cosine(6), tmp_path)
    with pytest.raises(CheckpointError, match=r"iter_6\.pth .* 6 parameters in 1 group, .* 6 parameters in 6 groups"):
        train(cosine(8, **GROUPS), tmp_path, resume=True)


@pytest.mark.parametrize("by_epoch", [False, True])
def test_another_loop_is_an_error(by_epoch, tmp_path):
    train(config(by_epoch=by_epoch, steps=12), tmp_path)
    with pytest.raises(CheckpointError, match=r"was trained by '(Iter|Epoch)Loop'.*`load_from`"):
        train(config(by_epoch=not by_epoch, steps=24), tmp_path, resume=True)


def test_a_run_past_its_end_is_an_error(tmp_path):
    train(cosine(6), tmp_path)
    with pytest.raises(CheckpointError, match=r"it is at step 6, and `train_cfg\.max_iters` is 4"):
        train(cosine(4), tmp_path, resume=True)


def test_gpu_options_of_a_file_do_not_hold(tmp_path):
    train(cosine(6), tmp_path)
    path = tmp_path / "iter_6.pth"
    content = torch.load(path, weights_only=True)
    content["optimizer"]["param_groups"][0].update(fused=True, capturable=True)
    torch.save(content, path)
    train(cosine(8), tmp_path, resume=path)
    assert last(tmp_path)["optimizer"]["param_groups"][0]["fused"] is None


def test_without_optimizer_state_of_some_parameters(tmp_path):
    """Layers that were frozen have none."""
    train(cosine(6), tmp_path)
    content = last(tmp_path)
    del content["optimizer"]["state"][0]
    torch.save(content, tmp_path / "other.pth")
    train(cosine(12), tmp_path / "b", resume=tmp_path / "other.pth")
    assert same(last(tmp_path / "b")["optimizer"]["state"][0]["step"], torch.tensor(2.0))


def test_schedule_that_cannot_be_built_is_named(tmp_path):
    with pytest.raises(ConfigError, match="end should be larger than begin"):
        train(config(steps=6), tmp_path)
