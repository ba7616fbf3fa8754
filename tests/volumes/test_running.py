"""Volumes in several processes, on the command line, and without their extra."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from engine.test_distributed import launch
from engine.tiny import last
from volumes import tiny_volumes

import vision_ssm.volumes  # noqa: F401 - registers
from vision_ssm.cli import main
from vision_ssm.engine import test as evaluate


def test_two_processes_measure_what_one_does(tmp_path):
    root = tiny_volumes.write(tmp_path / "data", val=3)
    network = dict(type="volumes.tiny_volumes.Plain", dims=3, in_chans=1, num_classes=3)
    cfg = tiny_volumes.config(
        root, custom_hooks=[], **{"randomness.diff_rank_seed": True, "model.network": dict(network, _delete_=True)}
    )
    assert launch(cfg, tmp_path / "run", dict(type="Compare")) == [0, 0]
    best = next((tmp_path / "run").glob("best_mean_dice_*.pth"))
    metrics = evaluate(cfg, best, tmp_path / "test")
    assert metrics["mean_dice"] == last(tmp_path / "run")["message_hub"]["runtime_info"]["best_score"]


def test_command_line(tmp_path, capsys):
    root = tiny_volumes.write(tmp_path / "data")
    config = tmp_path / "config.py"
    cfg = tiny_volumes.config(root)
    cfg.custom_imports.imports.append("volumes.tiny_volumes")
    cfg.tta_options = dict(model=dict(inference=dict(flips=(0,))))
    config.write_text(as_text(cfg))
    work, out = tmp_path / "run", tmp_path / "out"
    assert main(["train", str(config), "--work-dir", str(work), "--amp", "--cfg-options", "param_scheduler=[]"]) == 0
    checkpoint = next(work.glob("iter_12.pth"))
    test = ["test", str(config), str(checkpoint), "--work-dir", str(work)]
    assert main([*test, "--out", str(out), "--tta"]) == 0
    assert "mean_dice" in json.loads((out / "metrics.json").read_text())
    assert len(list(out.glob("*.nii.gz"))) == 2
    (root / "dataset_0.json").write_text("{}")
    assert main(test) == 2
    assert "no list 'validation'" in capsys.readouterr().err.splitlines()[-1]


def as_text(cfg) -> str:
    """A config's text; tuples and None stay what they are."""
    return "\n".join(f"{key} = {value!r}" for key, value in cfg.to_dict().items())


def test_missing_extra_is_named():
    names = ("monai", "nibabel")
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
for missing in {names}:
    importlib.util.find_spec = lambda name, *rest: None if name == missing else find(name, *rest)
    try:
        import vision_ssm.volumes
    except ImportError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        f"medical volumes need {one}: pip install 'vision-ssm[medical]'" for one in names
    ]


def test_demo(tmp_path):
    """The phantoms are drawn where they are missing, trained on, and shown."""
    root = tmp_path / "phantoms"
    options = [
        f"{part}_dataloader.{key}"
        for part in ("train", "val", "test")
        for key in (
            f"dataset.data_root={root}",
            "dataset.phantoms={'train': 1, 'val': 1, 'test': 0, 'size': 32, 'thickness': [9.0, 10.0]}",
            "num_workers=0",
            "persistent_workers=False",
        )
    ]
    options += ["train_cfg.max_iters=1", "train_cfg.val_interval=1", "default_hooks.checkpoint.interval=1"]
    options += ["model.network.features=(4,8,8,8)"]
    work = tmp_path / "run"
    assert main(["train", "demo/phantom_umamba3d", "--work-dir", str(work), "--cfg-options", *options]) == 0
    assert 0 <= json.loads((work / "metrics.json").read_text())["mean_dice"] <= 1
    assert sorted(path.name for path in (work / "predictions").iterdir()) == ["cases.csv", "img0035.nii.gz"]
    assert (work / "predictions.png").read_bytes().startswith(b"\x89PNG")
