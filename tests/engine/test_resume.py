"""Training that is killed at any moment and resumed ends with the bits of an unbroken run."""

import os
import random
import signal
import time
from functools import partial

import pytest
import torch

pytest.importorskip("mmengine")
from engine.tiny import assert_same_end, config, files, finish, last, same, start

KINDS = {
    "iterations": dict(),
    "iterations, 2 workers": dict(workers=2),
    "epochs": dict(by_epoch=True),
    "epochs, 2 workers": dict(by_epoch=True, workers=2),
    # checkpoints at the ends of epochs, before the validation that schedules and best checkpoints follow
    "ends of epochs": {
        "by_epoch": True,
        "default_hooks.checkpoint.by_epoch": True,
        "default_hooks.checkpoint.interval": 1,
        "param_scheduler": [dict(type="ReduceOnPlateauLR", monitor="val/loss", patience=0, factor=0.5)],
    },
    "one epoch after the other": {"train_dataloader.sampler.type": "DefaultSampler"},
    "no seed": {"randomness.seed": None},
}
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder of an unbroken run of one kind; each is trained once."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("unbroken")
            assert finish(config(**KINDS[kind]), folders[kind]) == 0
        return folders[kind]

    return folder


def assert_all_whole(folder, at_least=0):
    """Every checkpoint loads weights-only, at any time."""
    found = files(folder)
    assert len(found) >= at_least
    for path in found:
        assert torch.load(path, weights_only=True)["state_dict"]


def some_steps(kind):
    """Steps to kill a kind of run after; at 6 and 12 a validation is next, 24 is the last."""
    generator = random.Random(kind)
    return sorted({generator.randint(1, 24), 6, generator.randint(7, 23), 24})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "no seed"])
def test_killed_run_ends_as_the_unbroken_one(kind, unbroken, tmp_path):
    for step in some_steps(kind):
        kill = dict(type="Kill", step=step)
        assert finish(config(**KINDS[kind]), tmp_path, kill) == KILLED
        assert_all_whole(tmp_path, at_least=step > 6)
    assert finish(config(**KINDS[kind]), tmp_path) == 0
    assert_same_end(tmp_path, unbroken(kind))


@pytest.mark.parametrize("kind", ["iterations", "epochs", "ends of epochs"])
def test_killed_validation_is_repeated(kind, unbroken, tmp_path):
    for step in (6, 12, 24):
        assert finish(config(**KINDS[kind]), tmp_path, dict(type="Kill", step=step, where="val")) == KILLED
    assert finish(config(**KINDS[kind]), tmp_path) == 0
    assert_same_end(tmp_path, unbroken(kind))


def test_drawn_seed_is_resumed(tmp_path):
    cfg = config(**KINDS["no seed"])
    assert finish(cfg, tmp_path / "a", dict(type="Kill", step=5)) == KILLED
    for name in ("b", "c"):  # both go on from the same checkpoint
        (tmp_path / name).mkdir()
        (path,) = files(tmp_path / "a")
        (tmp_path / name / path.name).write_bytes(path.read_bytes())
        assert finish(cfg, tmp_path / name, *[dict(type="Kill", step=13)] * (name == "c")) == (0, KILLED)[name == "c"]
    assert finish(cfg, tmp_path / "c") == 0
    assert_same_end(tmp_path / "b", tmp_path / "c")
    assert last(tmp_path / "b")["meta"]["seed"] == last(tmp_path / "a")["meta"]["seed"] is not None


def _kill_in(name, count):
    """Kill this process in the count-th call of a function of `os`."""
    original, calls = getattr(os, name), []

    def function(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, name, function)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_kill_while_saving(name, unbroken, tmp_path):
    saved = False
    for count in (1, 2, 3, 4):  # the first checkpoint, the second, the best one, the second again
        assert finish(config(), tmp_path, interfere=partial(_kill_in, name, count)) == KILLED
        saved |= count > 1
        assert_all_whole(tmp_path, at_least=saved)
        left = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        assert len(left) == 1, "the writer was not killed in the middle, or what an earlier one left is still there"
    assert finish(config(), tmp_path) == 0
    assert not list(tmp_path.glob(".*"))
    assert_same_end(tmp_path, unbroken("iterations"))


def _kill_in_removal(count):
    remove, calls = os.remove, []

    def function(path):
        calls.append(path)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return remove(path)

    os.remove = function


def test_old_checkpoints_are_removed_after_the_new_ones(unbroken, tmp_path):
    left = [  # at 10 the one of 5 is, which the best one of 6 replaced; at 12 the best and the last one are
        ["best_val_score_iter_6.pth", "iter_5.pth", "iter_6.pth"],
        ["best_val_score_iter_6.pth", "iter_10.pth", "iter_6.pth"],
        ["best_val_score_iter_12.pth", "best_val_score_iter_6.pth", "iter_10.pth", "iter_12.pth"],
    ]
    for names in left:
        # a resumed run first removes what the killed one could not
        count = 1 + (names is not left[0])
        assert finish(config(), tmp_path, interfere=partial(_kill_in_removal, count)) == KILLED
        assert [path.name for path in files(tmp_path)] == names
        assert_all_whole(tmp_path)
    assert finish(config(), tmp_path) == 0
    assert_same_end(tmp_path, unbroken("iterations"))


def test_leftovers_are_no_checkpoints(tmp_path):
    for name in (".123-iter_90.pth", ".123-best_val_score_iter_6.pth", "iter_x.pth"):
        (tmp_path / name).write_bytes(b"half")
    assert finish(config(steps=12), tmp_path) == 0
    assert last(tmp_path)["meta"]["iter"] == 12
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "best_val_score_iter_12.pth",
        "iter_12.pth",
        "iter_x.pth",
    ]


def _slow():
    """Checkpoints that take longer, so that many kills hit them."""
    fsync = os.fsync

    def function(number):
        time.sleep(0.03)
        fsync(number)

    os.fsync = function


def test_killed_at_any_moment(unbroken, tmp_path):
    generator = random.Random(0)
    cfg = config(**{"train_dataloader.dataset.delay": 0.01})
    kills = 0
    for _ in range(12):
        process = start(cfg, tmp_path, interfere=_slow)
        process.join(0.2 + 0.6 * generator.random())
        process.kill()
        process.join()
        assert process.exitcode in (KILLED, 0)
        kills += process.exitcode == KILLED
        assert_all_whole(tmp_path)
        if not process.exitcode:
            break
    assert kills
    assert finish(cfg, tmp_path) == 0
    assert_same_end(tmp_path, unbroken("iterations"))


def test_hooks_own_folder_and_names_are_found_again(unbroken, tmp_path):
    changes = {"default_hooks.checkpoint.out_dir": str(tmp_path / "elsewhere")}
    where = tmp_path / "elsewhere" / "run"
    assert finish(config(**changes), tmp_path / "run", dict(type="Kill", step=9)) == KILLED
    assert not files(tmp_path / "run") and len(files(where)) == 2
    assert finish(config(**changes), tmp_path / "run") == 0
    assert_same_end(where, unbroken("iterations"))


def test_copy_of_a_run_leaves_the_original_alone(unbroken, tmp_path):
    one, copy = tmp_path / "one", tmp_path / "copy"
    assert finish(config(), one, dict(type="Kill", step=8)) == KILLED
    before = {path.name: path.read_bytes() for path in files(one)}
    assert any("best" in name for name in before)
    copy.mkdir()
    for name, content in before.items():
        (copy / name).write_bytes(content)
    assert finish(config(), copy) == 0
    assert before == {path.name: path.read_bytes() for path in files(one)}
    assert_same_end(copy, unbroken("iterations"))


def test_finished_run_stays_as_it_is(unbroken, tmp_path):
    folder = unbroken("iterations")
    before = {path.name: torch.load(path, weights_only=True)["state_dict"] for path in files(folder)}
    assert finish(config(), folder) == 0
    assert same(before, {path.name: torch.load(path, weights_only=True)["state_dict"] for path in files(folder)})
