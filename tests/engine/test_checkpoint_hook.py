"""What a resumed checkpoint says of other files is a list of names: nothing else is removed, written or read."""

import os
import pickle

import pytest
import torch

pytest.importorskip("mmengine")
from engine.tiny import config, files, last

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import ConfigError, train
from vision_ssm.engine.checkpoint_hook import CheckpointHook

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = (
    "..", ".", "", "/", "../run", "results", "../results/precious.txt", "results/precious.txt", "precious.txt",
    "notes_iter_3.txt", "iter_3.pth.bak", "iter_.pth", "best_.pth", "iter_3.pth/../precious.txt", "iter_\u0663.pth",
    "..\\precious.txt", "linked_iter_3.pth", "iter_77.pth", "iter_88.pth", "best_x_iter_88.pth",
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run's folder, with a hostile checkpoint in it, and things that are not the run's."""
    folder = tmp_path / "run"
    train(config(steps=12), folder)
    for path in (tmp_path / "results", folder / "results", folder / "iter_77.pth", folder / "best_x_iter_88.pth"):
        path.mkdir()
        (path / "precious.txt").write_text("years of work")
    for path in (tmp_path / "precious.txt", folder / "precious.txt", folder / "notes_iter_3.txt"):
        path.write_text("years of work")
    (folder / "iter_88.pth").symlink_to(tmp_path / "precious.txt")
    return folder


def saying(folder, **info):
    """The checkpoint of step 12, with something else in its messages."""
    path = folder / "iter_12.pth"
    content = torch.load(path, weights_only=True)
    hub = content["message_hub"]
    hub["runtime_info"].update(info)
    hub["resumed_keys"].update(dict.fromkeys(info, True))
    torch.save(content, path)
    return path


@pytest.mark.parametrize("key", ["outdated_ckpts", "best_ckpt", "last_ckpt", "several best"])
def test_names_in_a_checkpoint_remove_nothing_that_is_not_the_runs(key, run, tmp_path):
    before = {path for path in tmp_path.rglob("*") if "precious" in path.name or path.suffix == ".txt"}
    links = {path for path in run.iterdir() if path.is_symlink() or path.is_dir()}
    names = [*NAMES, *(str(tmp_path / name) for name in NAMES)]
    if key == "several best":
        cfg = config(steps=14, **{"default_hooks.checkpoint.save_best": ["val/score", "val/loss"]})
        cfg.default_hooks.checkpoint.rule = ["greater", "less"]
        told = [{f"best_ckpt_{metric}": name for metric in ("val/score", "val/loss")} for name in names[::9]]
    else:
        cfg = config(steps=14)
        told = [{key: names}] if key == "outdated_ckpts" else [{key: name} for name in names[::9]]
    cfg.default_hooks.checkpoint.interval = 1
    whole = (run / "iter_12.pth").read_bytes()
    for info in told:
        (run / "iter_12.pth").write_bytes(whole)
        train(cfg, run, resume=saying(run, **info))
        assert (run / "iter_14.pth").is_file()
        assert before <= {*tmp_path.rglob("*")} and links <= {*run.iterdir()}


def test_steps_to_keep_are_numbers_of_plain_files(run):
    with pytest.raises(CheckpointError, match=r"keep_ckpt_ids\[0\]` is '\.\./x'"):
        train(config(steps=14), run, resume=saying(run, keep_ckpt_ids=["../x"]))
    train(config(steps=14), run, resume=saying(run, keep_ckpt_ids=[77, 88, 12]))
    assert (run / "iter_77.pth" / "precious.txt").exists() and (run / "iter_88.pth").is_symlink()


def test_a_run_in_another_folder_leaves_both(tmp_path):
    """Neither the old run's files nor those that the new folder has by the same names are removed."""
    one, other = tmp_path / "one", tmp_path / "other"
    keep = {"default_hooks.checkpoint.max_keep_ckpts": 2, "default_hooks.checkpoint.interval": 2}
    for folder in (one, other):
        train(config(steps=12, **keep), folder)
    before = [path.name for path in files(one)]
    train(config(steps=13, **keep), other, resume=one / "iter_12.pth")
    assert [path.name for path in files(one)] == before and {*before} < {path.name for path in files(other)}


def test_published_copies_run_no_code(tmp_path):
    """MMEngine unpickles the file that `last_ckpt` names."""
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    run = tmp_path / "run"
    publish = {"default_hooks.checkpoint.published_keys": ["meta", "state_dict"]}
    train(config(steps=12, **publish), run)
    published = [path for path in files(run) if "-" in path.name]
    assert len(published) == 2
    assert all(torch.load(path, weights_only=True).keys() == {"meta", "state_dict"} for path in published)
    torch.save(dict(state_dict={}, trap=Trap()), tmp_path / "evil.pth")
    path = saying(run, last_ckpt=str(tmp_path / "evil.pth"))
    train(config(steps=12, **publish), run, resume=path)
    assert not trap.exists()
    with open(tmp_path / "t.pkl", "wb") as file:
        pickle.dump(Trap(), file)
    pickle.loads((tmp_path / "t.pkl").read_bytes())
    assert trap.exists(), "the trap does not work"


def test_what_a_run_says_of_itself_stays_its_own(tmp_path):
    train(config(steps=12), tmp_path)
    path = saying(tmp_path, cfg="x", experiment_name="../../x", seed=9, max_iters=10**9)
    train(config(steps=13), tmp_path, resume=path)
    info = last(tmp_path)["message_hub"]["runtime_info"]
    assert info["experiment_name"] != "../../x" and info["cfg"] != "x" and info["max_iters"] == 13


def test_a_full_disk_leaves_the_last_checkpoint(monkeypatch, tmp_path):
    train(config(steps=12), tmp_path)
    before = {path.name: path.read_bytes() for path in files(tmp_path)}

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"iter_15\.pth cannot be written: No space left on device"):
        train(config(steps=18), tmp_path, resume=True)
    assert before == {path.name: path.read_bytes() for path in files(tmp_path)}
    assert not list(tmp_path.glob(".*"))


def test_a_metric_that_is_not_measured_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"save_best` is 'mIoU': the validation measures val/loss, val/score"):
        cfg = config(steps=12)
        cfg.default_hooks.checkpoint.save_best = "mIoU"
        train(cfg, tmp_path)


@pytest.mark.parametrize("template", ["../iter_{}.pth", "a/{}.pth", "{}_{}.pth", "{"])
def test_templates_are_names_of_files(template):
    with pytest.raises(ConfigError, match="filename_tmpl"):
        CheckpointHook(filename_tmpl=template)


@pytest.mark.parametrize("template", ["step{:06d}.pth", "iter_{}.pth", "last.pth"])
def test_other_templates_are_found_again(template, tmp_path):
    changes = {"default_hooks.checkpoint.filename_tmpl": template}
    train(config(steps=12, **changes), tmp_path)
    train(config(steps=18, **changes), tmp_path, resume=True)
    assert last(tmp_path)["meta"]["iter"] == 18
    assert len([path for path in files(tmp_path) if "best" not in path.name]) == 1
