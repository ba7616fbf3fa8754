"""MMSegmentation's and MMDetection's data sets: the real path resumes, bad data are one error that names the file."""

import json
import signal

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
pytest.importorskip("sklearn")
from engine.tiny import assert_same_end, files, finish, last
from mmengine import Config
from PIL import Image

import vision_ssm.openmmlab  # noqa: F401 - before mmseg and mmdet
from vision_ssm.demo.scenes import CLASSES, Scenes, write
from vision_ssm.engine import DataError, load_config, train
from vision_ssm.engine import test as evaluate

pytestmark = pytest.mark.filterwarnings("ignore")
SIDE = 64


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A few scenes."""
    return write(tmp_path_factory.mktemp("scenes"), Scenes(train=6, val=2, size=SIDE))


@pytest.fixture
def spoilt(scenes, tmp_path):
    """The same, to be spoilt."""
    import shutil

    return shutil.copytree(scenes, tmp_path / "scenes")


def demo(folder, workers=0, steps=4):
    """The demo's config, shortened."""
    cfg = load_config(
        "demo/digits_segmentation.py",
        {
            "model.data_preprocessor.size": (SIDE, SIDE),
            "train_cfg": dict(type="IterBasedTrainLoop", max_iters=steps, val_interval=2),
            "param_scheduler": [dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=steps)],
            "default_hooks.checkpoint.interval": 1,
            "default_hooks.data_check": None,  # it finds the same before the first step
            "log_level": "ERROR",
        },
    )
    cfg = Config(cfg.to_dict(), format_python_code=False)  # formatting takes longer than training
    for part, split in (("train", "training"), ("val", "validation"), ("test", "validation")):
        loader = cfg[f"{part}_dataloader"]
        loader.update(batch_size=2, num_workers=workers, persistent_workers=workers > 0)
        loader.dataset = dict(
            type="BaseSegDataset",
            data_root=str(folder),
            data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
            metainfo=dict(classes=CLASSES, palette=[[i, i, i] for i in range(len(CLASSES))]),
            seg_map_suffix=".png",
            reduce_zero_label=False,
            pipeline=loader.dataset.pipeline,
        )
    return cfg


@pytest.mark.parametrize("workers", [0, 2])
def test_the_demo_ends_as_unbroken(workers, scenes, tmp_path):
    assert finish(demo(scenes, workers), tmp_path / "unbroken") == 0
    for step in (1, 2):
        kill = dict(type="Kill", step=step, _scope_="mmengine")
        assert finish(demo(scenes, workers), tmp_path / "killed", kill) == -signal.SIGKILL
        assert all(torch.load(path, weights_only=True) for path in files(tmp_path / "killed"))
    assert finish(demo(scenes, workers), tmp_path / "killed") == 0
    assert_same_end(tmp_path / "killed", tmp_path / "unbroken")
    best = next(path for path in files(tmp_path / "killed") if "best" in path.name)
    score = last(tmp_path / "killed")["message_hub"]["runtime_info"]["best_score"]
    assert evaluate(demo(scenes, workers), best, tmp_path / "test")["mIoU"] == score


def fails(cfg, folder, *texts, kind=DataError):
    """Training ends with one error that holds the texts; returns it."""
    with pytest.raises(kind) as caught:
        train(cfg, folder)
    for text in texts:
        assert text in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return caught.value


def some_file(folder, part, which):
    path = sorted((folder / part / which).iterdir())[0]
    return path, path.name


def test_missing_data_root(tmp_path):
    fails(demo(tmp_path / "nowhere"), tmp_path, "nowhere")


@pytest.mark.parametrize("content, workers", [(b"", 0), (b"no image", 2)], ids=["empty", "text"])
def test_image_that_does_not_decode(content, workers, spoilt, tmp_path):
    for which in ("training", "validation"):
        path, name = some_file(spoilt, "images", which)
        whole = path.read_bytes()
        path.write_bytes(content)
        fails(demo(spoilt, workers), tmp_path / "run", name)
        path.write_bytes(whole)


def test_label_map_that_is_missing_or_does_not_decode(spoilt, tmp_path):
    path, name = some_file(spoilt, "annotations", "training")
    path.write_bytes(b"no image")
    fails(demo(spoilt), tmp_path, name)
    path.unlink()
    fails(demo(spoilt), tmp_path, name)


@pytest.mark.parametrize("which, workers", [("training", 2), ("validation", 0)])
def test_label_beyond_the_classes(which, workers, spoilt, tmp_path):
    for path in (spoilt / "annotations" / which).iterdir():
        labels = np.array(Image.open(path))
        labels[SIDE // 4 : -SIDE // 4, :] = 37
        labels[0] = 255  # ignored
        Image.fromarray(labels).save(path)
    error = fails(demo(spoilt, workers), tmp_path, "its label map has 37, beyond the 11 classes")
    assert f"annotations/{which}/ADE_" in str(error) and "255" not in str(error)


def test_image_and_label_map_of_different_sizes(spoilt, tmp_path):
    for path in (spoilt / "annotations" / "training").iterdir():
        Image.open(path).resize((SIDE // 2, SIDE // 4), Image.Resampling.NEAREST).save(path)
    cfg = demo(spoilt)
    cfg.train_dataloader.dataset.pipeline = [
        step for step in cfg.train_dataloader.dataset.pipeline if "Random" not in step.type
    ]
    error = fails(cfg, tmp_path, f"the image has {SIDE}x{SIDE} pixels, its label map {SIDE // 2}x{SIDE // 4}")
    assert "images/training/ADE_" in str(error) and "annotations/training/ADE_" in str(error)


def test_what_was_trained_before_is_kept(spoilt, tmp_path):
    train(demo(spoilt, steps=2), tmp_path)
    for path in (spoilt / "images" / "training").iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match="images/training/ADE_"):
        train(demo(spoilt), tmp_path, resume=True)
    assert last(tmp_path)["meta"]["iter"] == 2


def coco(folder, spoil=lambda content: None):
    """A loader's config of MMDetection's data set over the scenes."""
    source = folder / "coco" / "instances_train.json"
    content = json.loads(source.read_text())
    spoil(content)
    changed = folder / "coco" / "changed.json"
    changed.write_text(json.dumps(content))
    cfg = demo(folder)
    cfg.default_scope = "mmdet"
    cfg.train_dataloader.dataset = dict(
        type="CocoDataset",
        data_root=str(folder),
        ann_file="coco/changed.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=CLASSES[1:]),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="PackDetInputs"),
        ],
    )
    for part in ("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"):
        cfg[part] = None
    cfg.default_hooks.checkpoint.save_best = None
    cfg.default_hooks.pop("visualization")
    cfg.visualizer = None
    cfg.model._scope_ = "mmseg"
    return cfg


def test_coco_image_that_is_missing_or_does_not_decode(spoilt, tmp_path):
    for path in (spoilt / "images" / "training").iterdir():
        path.write_bytes(b"no image")
    fails(coco(spoilt), tmp_path, "images/training/ADE_train_")
    for path in (spoilt / "images" / "training").iterdir():
        path.unlink()
    fails(coco(spoilt), tmp_path, "images/training/ADE_train_", "FileNotFoundError")


def test_coco_annotation_file_that_is_missing(spoilt, tmp_path):
    cfg = coco(spoilt)
    cfg.train_dataloader.dataset.ann_file = "coco/absent.json"
    fails(cfg, tmp_path, "absent.json")
