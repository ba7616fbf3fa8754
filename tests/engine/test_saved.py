"""Which checkpoint a run goes on from, whatever is in its folder; and no two runs in one."""

import os
import time
from multiprocessing import Pipe, get_context

import pytest
import torch

pytest.importorskip("mmengine")
from engine.tiny import config, files, last

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import ConfigError, train
from vision_ssm.engine.lock import held
from vision_ssm.engine.saved import saved_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")
KEEP = {"default_hooks.checkpoint.max_keep_ckpts": 3, "default_hooks.checkpoint.interval": 6}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Content of checkpoints of steps 6, 12 and 18."""
    folder = tmp_path_factory.mktemp("trained")
    train(config(steps=18, **KEEP), folder)
    names = ("best_val_score_iter_18.pth", "iter_6.pth", "iter_12.pth", "iter_18.pth")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


@pytest.fixture
def run(trained, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for i, (name, content) in enumerate(trained.items()):
        (folder / name).write_bytes(content)
        os.utime(folder / name, (1000 + i, 1000 + i))
    return folder


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "weights alone": lambda path: torch.save(dict(state_dict=torch.load(path)["state_dict"]), path),
    "another thing": lambda path: torch.save([1, 2], path),
    "text": lambda path: path.write_text("see elsewhere"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_give_way_to_the_one_before(damage, run):
    DAMAGE[damage](run / "iter_18.pth")
    cfg = config(steps=20, log_level="WARNING", **KEEP)
    train(cfg, run, resume=True)
    assert last(run)["meta"]["iter"] == 20
    log = "".join(path.read_text() for path in run.rglob("*.log"))
    assert "iter_18.pth" in log and f"GOING ON FROM {run / 'iter_12.pth'}" in log
    assert torch.load(run / "iter_18.pth", weights_only=True)["meta"]["iter"] == 18


def test_no_whole_checkpoint_is_an_error(run):
    for name in ("iter_6.pth", "iter_12.pth", "iter_18.pth"):
        (run / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"iter_18\.pth cannot be read"):
        train(config(steps=20), run, resume=True)


def test_a_checkpoint_that_is_named_does_not_give_way(run):
    DAMAGE["cut"](run / "iter_18.pth")
    with pytest.raises(CheckpointError, match=r"iter_18\.pth"):
        train(config(steps=20), run, resume=run / "iter_18.pth")


@pytest.mark.parametrize(
    "note",
    [b"", b"\x00\xff\xfe", b"../../etc/passwd", b"iter_999.pth", b"/tmp/elsewhere/iter_6.txt", b"x" * 100_000, b"\n\n"],
)
def test_odd_notes_and_stray_names(note, run):
    (run / "last_checkpoint").write_bytes(note)
    for name in ("iter_abc.pth", "iter_.pth", "iter_-1.pth", "iter_99.pth.tmp", ".1-iter_99.pth", "iter_9\u00b2.pth"):
        (run / name).write_bytes(b"?")
    (run / "iter_50.pth").mkdir()
    (run / "iter_60.pth").symlink_to(run / "nowhere")
    assert [path.name for path in saved_checkpoints(run)] == ["iter_18.pth", "iter_12.pth", "iter_6.pth"]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere"), os.mkfifo])
def test_a_note_that_is_no_file(make, run):
    make(run / "last_checkpoint")
    assert [path.name for path in saved_checkpoints(run)] == ["iter_18.pth", "iter_12.pth", "iter_6.pth"]
    with pytest.raises(ConfigError, match=r"last_checkpoint is no regular file"):
        train(config(steps=20), run, resume=True)


def test_a_folder_of_another_name_and_a_link_to_it(run, tmp_path):
    (tmp_path / "läufe\u4e2d").symlink_to(run)
    train(config(steps=20, **KEEP), tmp_path / "läufe\u4e2d", resume=True)
    assert last(run)["meta"]["iter"] == 20
    assert sorted(path.name for path in files(run) if "best" not in path.name) == [
        "iter_12.pth",
        "iter_18.pth",
        "iter_20.pth",
    ]


def _hold(folder, pipe):
    with held(folder):
        pipe.send("held")
        time.sleep(60)


def test_two_runs_in_one_folder_are_noticed_and_a_killed_one_lets_go(tmp_path):
    here, there = Pipe()
    other = get_context("fork").Process(target=_hold, args=(tmp_path, there))
    other.start()
    try:
        assert here.recv() == "held"
        with pytest.raises(ConfigError, match=rf"is in use by process {other.pid} on "):
            train(config(steps=6, param_scheduler=None), tmp_path)
        assert not files(tmp_path)
    finally:
        other.kill()
        other.join()
    train(config(steps=6, param_scheduler=None), tmp_path)
    assert last(tmp_path)["meta"]["iter"] == 6


def test_two_runs_of_one_process(tmp_path):
    with held(tmp_path), pytest.raises(ConfigError, match="in use by another run of this process"):
        train(config(steps=6, param_scheduler=None), tmp_path)
    train(config(steps=6, param_scheduler=None), tmp_path)
    elsewhere = {"default_hooks.checkpoint.out_dir": str(tmp_path / "saved")}
    with held(tmp_path / "saved" / "b"), pytest.raises(ConfigError, match="in use"):
        train(config(steps=6, param_scheduler=None, **elsewhere), tmp_path / "b")
