"""Training on volumes: killed at any moment and resumed it ends with the bits of an unbroken run."""

import signal

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("monai")
pytest.importorskip("nibabel")
from engine.tiny import assert_same_end, finish, last
from volumes import tiny_volumes

KILLED = -signal.SIGKILL
KINDS = {
    "no worker": dict(),
    "2 workers": dict(workers=2),
    "in memory, 2 workers": {"workers": 2, "train_dataloader.dataset.cache_rate": 1.0},
    "on disk": {"train_dataloader.dataset.cache_dir": "cache"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_volumes.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """Folder of a run that nothing interrupted, without workers and caches."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert finish(tiny_volumes.config(data), folder) == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_killed_run_ends_as_the_unbroken_one(kind, data, unbroken, tmp_path):
    changes = dict(KINDS[kind])
    if "train_dataloader.dataset.cache_dir" in changes:
        changes["train_dataloader.dataset.cache_dir"] = str(tmp_path / "cache")
    cfg = tiny_volumes.config(data, **changes)
    for step, where in ((5, "train"), (8, "val"), (11, "train")):
        assert finish(cfg, tmp_path / "run", dict(type="Kill", step=step, where=where)) == KILLED
    assert finish(cfg, tmp_path / "run") == 0
    assert_same_end(tmp_path / "run", unbroken)


def test_crops_follow_the_seed(data, unbroken, tmp_path):
    assert finish(tiny_volumes.config(data, **{"randomness.seed": 4}), tmp_path) == 0
    ours, theirs = (last(folder)["state_dict"]["network.head.weight"] for folder in (tmp_path, unbroken))
    assert (ours != theirs).any()
