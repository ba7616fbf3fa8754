"""What is said of schedules before the first step."""

import re

import pytest

pytest.importorskip("mmengine")
from engine.tiny import config

from vision_ssm.engine import ConfigError, train

pytestmark = pytest.mark.filterwarnings("ignore")


def said(folder, schedules, by_epoch=False, steps=12, resume=False):
    cfg = config(by_epoch=by_epoch, steps=steps, log_level="WARNING", param_scheduler=schedules)
    train(cfg, folder, resume=resume)
    lines = "".join(path.read_text() for path in folder.rglob("*.log")).splitlines()
    return [line for line in lines if "`param_scheduler" in line]


def poly(end, **more):
    return dict(type="PolyLR", by_epoch=False, end=end, eta_min=0.0, **more)


ITERATIONS = {
    "ends early": (
        [poly(4)],
        r"the learning rate is 0 in 9 of 12 steps, from step 4 on: `param_scheduler\[0\]` \(PolyLR",
    ),
    "begins late": (
        [
            dict(type="LinearLR", by_epoch=False, end=5),
            dict(type="MultiStepLR", by_epoch=False, begin=12, end=30, milestones=[2]),
        ],
        r"\[1\]` \(MultiStepLR\) begins at step 12, and the training ends at 12: it never acts",
    ),
    "counts epochs": ([dict(type="CosineAnnealingLR", T_max=12)], "counts epochs, but the training counts iterations"),
    "counts epochs by default": ([dict(type="PolyLR", end=4)], "set by_epoch=False"),
}
FINE = {
    "to the end": [poly(12)],
    "at a rate": [poly(4, power=0.9) | dict(eta_min=1e-5)],
    "warm-up": [dict(type="LinearLR", by_epoch=False, start_factor=1e-6, end=5), poly(12, begin=5)],
    "longer": [poly(100)],
    "steps": [dict(type="MultiStepLR", by_epoch=False, milestones=[3, 5], gamma=0.1)],
    "of the validation": [dict(type="ReduceOnPlateauLR", monitor="val/loss")],
    "momentum": [dict(type="CosineAnnealingMomentum", by_epoch=False, T_max=20, eta_min=0.5)],
    "none": None,
}


@pytest.mark.parametrize("case", ITERATIONS)
def test_steps_that_would_be_lost_are_told(case, tmp_path):
    schedules, message = ITERATIONS[case]
    (line,) = said(tmp_path, schedules)
    assert re.search(message, line) and "WARNING" in line


@pytest.mark.parametrize("case", FINE)
def test_ordinary_schedules_are_not(case, tmp_path):
    assert said(tmp_path, FINE[case]) == []


def test_epochs(tmp_path):
    assert said(tmp_path / "a", [dict(type="CosineAnnealingLR", T_max=2)], by_epoch=True) == []
    (line,) = said(tmp_path / "b", [dict(type="PolyLR", eta_min=0.0, end=2)], by_epoch=True, steps=24)
    assert "0 in 18 of 24 steps, from step 7 on" in line and "ends at epoch 2" in line
    assert said(tmp_path / "c", [dict(type="PolyLR", end=3, convert_to_iter_based=True)], by_epoch=True, steps=18) == []


def test_only_what_is_left_counts(tmp_path):
    said(tmp_path, [dict(type="MultiStepLR", by_epoch=False, milestones=[3], gamma=0.1)])
    lines = said(tmp_path, [poly(15)], steps=20, resume=True)
    assert len(lines) == 1 and "0 in 6 of 20 steps, from step 15 on" in lines[0]


def test_more_steps_than_a_schedule_takes(tmp_path):
    schedules = [dict(type="OneCycleLR", eta_max=0.1, total_steps=6, by_epoch=False)]
    with pytest.raises(ConfigError, match=r"`param_scheduler`: .*6"):
        said(tmp_path, schedules)
