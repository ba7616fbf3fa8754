"""`vision-ssm train` and `test`, on scenes of handwriting."""

import json

import pytest

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")

from vision_ssm.cli import main
from vision_ssm.cli.by_config import _value

_SCENES = dict(train=8, val=4, size=64, digits=(1, 2))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _options(tmp_path, iters: int = 2) -> list[str]:
    data = [
        f"{part}_dataloader.{key}"
        for part in ("train", "val", "test")
        for key in (
            f"dataset.data_root={tmp_path / 'scenes'}",
            f"dataset.scenes={_SCENES}",
            "num_workers=0",
            "persistent_workers=False",
            "batch_size=2",
        )
    ]
    annotations = tmp_path / "scenes" / "coco" / "instances_val.json"
    evaluators = [f"{part}_evaluator.ann_file={annotations}" for part in ("val", "test")]
    return [
        "--cfg-options",
        *data,
        *(evaluators if tmp_path.name == "detection" else []),
        f"train_cfg.max_iters={iters}",
        f"train_cfg.val_interval={iters}",
        "default_hooks.checkpoint.interval=1",
        "default_hooks.logger.interval=1",
    ]


@pytest.mark.parametrize(("task", "metric"), [("segmentation", "mIoU"), ("detection", "coco/bbox_mAP")])
def test_train_resume_test(tmp_path, task, metric):
    folder = tmp_path / task
    folder.mkdir()
    work = folder / "run"
    config = f"demo/digits_{task}"
    train = ["train", config, "--work-dir", str(work), "--resume"]
    assert main([*train, *_options(folder)]) == 0
    assert metric in json.loads((work / "metrics.json").read_text())
    assert (work / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert main([*train, "--amp", *_options(folder, iters=3)]) == 0
    last = work / "iter_3.pth"
    out, shown = folder / "out", folder / "shown"
    test = ["test", config, str(last), "--work-dir", str(work), "--out", str(out), "--show-dir", str(shown)]
    assert main([*test, *_options(folder)]) == 0
    assert metric in json.loads((out / "metrics.json").read_text())
    assert len([path for path in out.iterdir() if path.name != "metrics.json"]) >= (4 if task == "segmentation" else 2)
    assert main(["test", config, str(last), "--work-dir", str(work), "--tta", *_options(folder)]) == 0
    assert [path for path in shown.rglob("*") if path.suffix in (".png", ".jpg")]


def _error(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("1e-4", 1e-4),
        ("True", True),
        ("false", False),
        ("None", None),
        ("none", "none"),
        ("bbox,segm", ["bbox", "segm"]),
        ("[bbox,segm]", ["bbox", "segm"]),
        ("1,2", [1, 2]),
        ("(512,512)", (512, 512)),
        ("[(1,2),(3,4)]", [(1, 2), (3, 4)]),
        ("data/ade", "data/ade"),
        ("{'train': 8}", {"train": 8}),
    ],
)
def test_values_are_those_of_mmengine(text, value):
    assert _value(text) == value and type(_value(text)) is type(value)
    if not text.startswith("{") and text not in ("1e-4",):
        from mmengine.config import DictAction

        assert DictAction._parse_iterable(text) == value


def test_list(capsys):
    assert main(["train", "--list"]) == 0
    assert "segmentation/vmamba_tiny_upernet_ade20k.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "expected a CONFIG"),
        (["train", "segmentation/vmamba_tinny_upernet_ade20k"], "did you mean segmentation/vmamba_tiny_upernet"),
        (
            ["train", "demo/digits_segmentation", "--cfg-options", "train_cfgs.max_iters=1"],
            "'train_cfgs.max_iters'",
        ),
        (["train", "demo/digits_segmentation", "--cfg-options", "max_iters"], "expected key=value"),
        (["train", "demo/digits_segmentation", "--cfg-options", "train_cfg.max_iter=1"], "did you mean 'max_iters'"),
        (["train", "demo/digits_segmentation", "--cfg-options", "model.backbone.model_name=vmamba_tny"], "vmamba_tny"),
        (["test", "demo/digits_segmentation", "missing.pth"], "no checkpoint at missing.pth"),
    ],
)
def test_bad_arguments(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = _options(tmp_path) if "missing.pth" in arguments else []
    assert main([*arguments, *options]) == 2
    message = _error(capsys)
    assert message.startswith("vision-ssm: error: ") and expected in message


def test_unknown_argument_of_a_component(capsys, tmp_path):
    options = [*_options(tmp_path), "model.backbone.drop_pth_rate=0.1"]
    assert main(["train", "demo/digits_segmentation", "--work-dir", str(tmp_path / "run"), *options]) == 2
    assert "drop_pth_rate" in _error(capsys)


def test_missing_data_root(capsys, tmp_path):
    options = [
        f"{part}_dataloader.{key}"
        for part in ("train", "val")
        for key in (f"dataset.data_root={tmp_path / 'nowhere'}", "num_workers=0", "persistent_workers=False")
    ]
    command = ["train", "segmentation/vmamba_tiny_upernet_ade20k", "--work-dir", str(tmp_path / "run")]
    assert main([*command, "--cfg-options", "model.backbone.model_name=vmamba_test", *options]) == 2
    assert "nowhere" in _error(capsys)
