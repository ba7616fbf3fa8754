"""A checkpoint to resume from whose parts are missing or of another kind is refused in words, or goes on."""

import copy

import pytest
import torch

pytest.importorskip("mmengine")
from engine.tiny import config, last, same, train

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import Runner
from vision_ssm.engine.parts import Parts, check_content

pytestmark = pytest.mark.filterwarnings("ignore")
MISSING = object()
STEPS = {"steps": 14, "param_scheduler.1.end": 14}  # the schedules stay as they are
ODD = {
    "missing": MISSING,
    "none": None,
    "text": "x",
    "negative": -1,
    "huge": 10**30,
    "nan": float("nan"),
    "list": [],
    "mapping": {1: 2},
    "tensor": torch.zeros(5),
    "nan tensor": torch.full((3,), float("nan")),
}
# What a run cannot go on without, and values that it would be wrong to go on with.
NEEDED = [
    ("meta",), ("meta", "iter"), ("meta", "epoch"), ("state_dict",), ("state_dict", "head.weight"), ("message_hub",),
    ("message_hub", "log_scalars"), ("message_hub", "runtime_info"), ("message_hub", "resumed_keys"), ("optimizer",),
    ("optimizer", "state"), ("optimizer", "param_groups"), ("optimizer", "param_groups", 0, "params"),
    ("optimizer", "state", 0, "exp_avg"), ("optimizer", "state", 0, "step"),
    ("process_states", 0, "random"), ("process_states", 0, "random", "torch"), ("process_states", 0, "gradients"),
    ("process_states", 0, "buffers"), ("setting", "optimizers"), ("ema_state_dict", "module.head.weight"),
]  # fmt: skip
KINDS = [
    ("meta", "seed"), ("message_hub", "runtime_info", "best_score"), ("message_hub", "runtime_info", "keep_ckpt_ids"),
    ("message_hub", "runtime_info", "outdated_ckpts"), ("message_hub", "resumed_keys", "best_score"),
    ("message_hub", "log_scalars", "train/loss", "history"), ("optimizer", "param_groups", 0, "lr"),
    ("optimizer", "param_groups", 0, "betas"), ("param_schedulers",), ("param_schedulers", 0),
    ("param_schedulers", 0, "last_step"), ("param_schedulers", 0, "_last_value"), ("process_states",),
    ("validated",), ("setting",), ("ema_state_dict",),
]  # fmt: skip
# Of these, what a run goes on with.
FINE = {
    "missing": {*KINDS},
    "none": {("meta", "seed")},
    "negative": {path for path in KINDS if path[-1] == "last_step"} | {KINDS[1]},
    "nan": {("param_schedulers", 0, "last_step"), KINDS[1]},
    "list": {path for path in KINDS if path[-1] in ("keep_ckpt_ids", "outdated_ckpts", "process_states")}
    | {("param_schedulers",)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 10 steps, of which 4 are missing."""
    where = tmp_path_factory.mktemp("trained")
    train(config(**STEPS | {"train_cfg.max_iters": 10}), where)
    return where


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """A run before its first step."""
    cfg = config(**STEPS)
    cfg.work_dir, cfg.experiment_name = str(tmp_path_factory.mktemp("run")), "odd_parts"
    made = Runner.from_cfg(cfg)
    made._train_loop = made.build_train_loop(made._train_loop)
    made.call_hook("before_run")  # where the moving average is made
    return made


def changed(content, path, value):
    """A copy of a checkpoint with another value, or nothing, at a path."""
    content = copy.deepcopy(content)
    node = content
    for key in path[:-1]:
        node = node[key]
    if value is MISSING:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


@pytest.mark.parametrize("kind", ODD)
def test_odd_parts_are_named_and_nothing_of_the_file_is_used(kind, folder, runner, tmp_path):
    content, path = last(folder), tmp_path / "other.pth"
    before = copy.deepcopy(runner.model.state_dict())
    for part in (*NEEDED, *KINDS):
        if part in FINE.get(kind, ()) or (kind == "list" and part == ("ema_state_dict",)):
            continue
        torch.save(changed(content, part, ODD[kind]), path)
        with pytest.raises(CheckpointError, match=r"other\.pth") as caught:
            runner.resume(path)
            pytest.fail(f"{part} is accepted")
        assert "\n" not in str(caught.value), part
        assert same(runner.model.state_dict(), before) and runner.iter == 0 and runner.resumed_from is None, part


def test_averages_of_whole_numbers_are_none(folder, runner, tmp_path):
    path = tmp_path / "other.pth"
    average = last(folder)["optimizer"]["state"][0]["exp_avg"].to(torch.int8)
    torch.save(changed(last(folder), ("optimizer", "state", 0, "exp_avg"), average), path)
    with pytest.raises(CheckpointError, match=r"exp_avg` is .*, expected a tensor .*float32"):
        runner.resume(path)


def test_what_may_be_missing(folder, tmp_path):
    content, path = last(folder), tmp_path / "other.pth"
    for kind, parts in FINE.items():
        for part in sorted(parts, key=str)[:: 4 if kind == "missing" else 2]:
            torch.save(changed(content, part, ODD[kind]), path)
            train(config(**STEPS), tmp_path / "run", resume=path)
            assert last(tmp_path / "run")["meta"]["iter"] == 14, (kind, part)


def test_names_of_a_file_are_escaped():
    with pytest.raises(CheckpointError) as caught:
        Parts("a.pth").mapping("meta", {"\x1b[31m\n": None}, Parts("a.pth").number)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_masks_may_be_infinite(folder):
    content = changed(last(folder), ("state_dict", "mask"), torch.tensor([0.0, -torch.inf]))
    check_content(content, "a.pth", frozenset({"mask"}))
    with pytest.raises(CheckpointError, match=r"a\.pth .*mask is not finite"):
        check_content(content, "a.pth")


def test_a_best_score_of_a_metrics_tensor(folder, tmp_path):
    """And one that is no number is forgotten: no score would be better."""
    path = tmp_path / "other.pth"
    for value in (torch.tensor(0.5), torch.nan):
        torch.save(changed(last(folder), KINDS[1], value), path)
        train(config(**STEPS), tmp_path / "run", resume=path)
    assert last(tmp_path / "run")["message_hub"]["runtime_info"]["best_score"] < 0
