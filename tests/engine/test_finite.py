"""A training that leaves the finite numbers ends with the step, and leaves finite checkpoints alone behind."""

import math

import pytest
import torch

pytest.importorskip("mmengine")
from engine.test_distributed import launch
from engine.tiny import TinyMetric, TinyModel, config, files, last
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS, MODELS

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import FiniteHook, NonFiniteError, train
from vision_ssm.engine.finite import non_finite

pytestmark = pytest.mark.filterwarnings("ignore")


@HOOKS.register_module(force=True)
class Spoil(Hook):
    """Makes something NaN after a step: the losses from there on, a gradient, a weight, a buffer."""

    priority = "VERY_HIGH"

    def __init__(self, step, what, value=math.nan):
        self.step, self.what, self.value = step, what, value

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 < self.step:
            return
        model = runner._bare_model()
        if self.what == "loss":
            data_batch["inputs"][0][:] = self.value
        elif self.what == "gradient" and runner.iter + 1 == self.step:
            handle = model.head.bias.register_hook(lambda gradient: handle.remove() or gradient * self.value)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        name = dict(weight="head.weight", buffer="body.1.running_var").get(self.what)
        if name and runner.iter + 1 == self.step:
            runner._bare_model().state_dict()[name][0] = self.value


def spoiled(step, what, value=math.nan, **changes):
    cfg = config(**changes)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type="Spoil", step=step, what=what, value=value)]
    return cfg


def assert_finite(folder):
    for path in files(folder):
        assert not non_finite(torch.load(path, weights_only=True)), path.name


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_not_finite_end_the_training(value, by_epoch, tmp_path):
    cfg = spoiled(13, "loss", value, by_epoch=by_epoch)
    cfg.model.type = "Normless"
    cfg.default_hooks.checkpoint.interval = 12  # none between the first of these losses and the last
    with pytest.raises(
        NonFiniteError, match=r"step 17: the loss .* last 5 steps; .*checkpoint is .*iter_12\.pth.*rate"
    ):
        train(cfg, tmp_path)
    assert last(tmp_path)["meta"]["iter"] == 12
    assert_finite(tmp_path)


@MODELS.register_module(force=True)
class Normless(TinyModel):
    """Without statistics, which would be NaN at once."""

    def __init__(self):
        super().__init__()
        self.body[1] = torch.nn.Identity()


@pytest.mark.parametrize("what", ["loss", "gradient", "weight", "buffer"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_no_checkpoint_of_what_is_not_finite(what, value, tmp_path):
    cfg = spoiled(13, what, value)
    with pytest.raises(NonFiniteError, match=r"step 1\d: .*the last finite checkpoint is .*iter_12\.pth"):
        train(cfg, tmp_path)
    assert [path.name for path in files(tmp_path)] == ["best_val_score_iter_12.pth", "iter_12.pth"]
    assert_finite(tmp_path)


def test_a_few_losses_are_let_go(tmp_path):
    class Run:
        iter = 0

        class logger:
            warning = staticmethod(lambda text: None)

        checkpoint_hook = resumed_from = None

    hook, run = FiniteHook(patience=3), Run()
    for run.iter, loss in enumerate([math.nan, math.inf, 1.0, math.nan, -math.inf, 1.0]):
        hook.after_train_iter(run, 0, outputs=dict(loss=torch.tensor(loss)))
    with pytest.raises(NonFiniteError, match=r"step 9: .* last 3 steps; no checkpoint was saved before"):
        for run.iter in range(6, 9):
            hook.after_train_iter(run, 0, outputs=dict(loss=torch.tensor(math.nan)))


@MODELS.register_module(force=True)
class Masked(TinyModel):
    """With a mask, which is infinite from the start."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))


def test_masks_are_saved_and_resumed(tmp_path):
    train(config(steps=12, **{"model.type": "Masked"}), tmp_path)
    train(config(steps=18, **{"model.type": "Masked"}), tmp_path, resume=True)
    assert last(tmp_path)["state_dict"]["mask"][1] == -math.inf


@METRICS.register_module(force=True)
class NanMetric(TinyMetric):
    """No number at the second validation."""

    def compute_metrics(self, results):
        self.count = getattr(self, "count", 0) + 1
        return dict(score={1: 1.0, 2: self.value}.get(self.count, 0.5))

    value = math.nan


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_not_the_best(value, monkeypatch, tmp_path):
    monkeypatch.setattr(NanMetric, "value", value)
    train(config(steps=18, **{"val_evaluator.type": "NanMetric"}), tmp_path)
    assert [path.name for path in files(tmp_path)] == ["best_val_score_iter_6.pth", "iter_18.pth"]


def test_processes_end_together(tmp_path):
    codes = launch(spoiled(13, "loss", **{"custom_imports.imports": ["engine.test_finite"]}), tmp_path)
    assert codes == [1, 1]
    assert_finite(tmp_path)


def test_a_checkpoint_that_is_not_finite_gives_way_to_an_older_one(tmp_path):
    cfg = config(steps=12, **{"default_hooks.checkpoint.max_keep_ckpts": 3})
    train(cfg, tmp_path)
    content = last(tmp_path)
    content["state_dict"]["head.bias"][0] = math.nan
    torch.save(content, tmp_path / "iter_12.pth")
    with pytest.raises(CheckpointError, match=r"iter_12\.pth .*head\.bias is not finite"):
        train(cfg, tmp_path / "b", resume=tmp_path / "iter_12.pth")
    train(cfg, tmp_path, resume=True)
    assert_finite(tmp_path)
    assert last(tmp_path)["meta"]["iter"] == 12
