"""Bad data is found and named before the first step."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
pytest.importorskip("vision_ssm.openmmlab")  # puts the bridge in place, before what needs it
from mmdet.datasets import CocoDataset
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmseg.datasets import BaseSegDataset

from vision_ssm.demo.scenes import CLASSES, Scenes, write
from vision_ssm.engine import DataError, Runner
from vision_ssm.engine.data_check import check_dataset

SCENES = Scenes(train=6, val=2, size=32, digits=(1, 2))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write(tmp_path / "scenes", SCENES)


def _maps(root, classes=CLASSES, **kwargs) -> BaseSegDataset:
    return BaseSegDataset(
        data_root=str(root),
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        metainfo=dict(classes=classes),
        **kwargs,
    )


def _instances(root) -> CocoDataset:
    return CocoDataset(
        data_root=str(root),
        ann_file="coco/instances_train.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=CLASSES[1:]),
    )


def _third(root, kind: str, suffix: str):
    return sorted((root / kind / "training").glob(f"*{suffix}"))[2]


def test_good_data_is_read_once(root):
    lines = []
    for dataset in (_maps(root), _instances(root)):
        check_dataset(dataset, lines.append)
        check_dataset(dataset, lines.append)
    assert len(lines) == 2 and all("6 images" in line for line in lines)
    image = _third(root, "images", ".jpg")
    image.write_bytes(image.read_bytes())  # another time of change
    check_dataset(_maps(root), lines.append)
    assert len(lines) == 3


@pytest.mark.parametrize("make", [_maps, _instances])
def test_truncated_image(root, make):
    image = _third(root, "images", ".jpg")
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{image.name} cannot be read"):
        check_dataset(make(root))


def test_file_that_is_no_image(root):
    image = _third(root, "images", ".jpg")
    image.write_text("not found")
    with pytest.raises(DataError, match=image.name):
        check_dataset(_maps(root))


@pytest.mark.parametrize("make", [_maps, _instances])
def test_missing_image(root, make):
    dataset = make(root)
    dataset.full_init()
    image = _third(root, "images", ".jpg")
    image.unlink()
    with pytest.raises(DataError, match=f"{image.name} is missing"):
        check_dataset(dataset)


def test_missing_label_map(root):
    labels = _third(root, "annotations", ".png")
    labels.unlink()
    with pytest.raises(DataError, match=f"{labels.name} is missing"):
        check_dataset(_maps(root))


def test_ids_outside_the_classes(root):
    path = _third(root, "annotations", ".png")
    ids = np.array(Image.open(path))
    ids[0, 0] = 11
    Image.fromarray(ids).save(path)
    with pytest.raises(DataError, match=rf"{path.name} has ids outside the 11 classes: \[11\]"):
        check_dataset(_maps(root))
    check_dataset(_maps(root, reduce_zero_label=True))  # 0 is ignored there, and 1 to 11 are the classes
    ids[0, 0] = 255
    Image.fromarray(ids).save(path)
    check_dataset(_maps(root))  # ignored


def test_sizes_that_differ(root):
    path = _third(root, "annotations", ".png")
    Image.fromarray(np.zeros((32, 30), np.uint8)).save(path)
    with pytest.raises(DataError, match=f"{path.name} is 30x32 pixels, its image .* 32x32"):
        check_dataset(_maps(root))


def test_size_that_differs_from_the_annotation(root):
    image = _third(root, "images", ".jpg")
    Image.fromarray(np.zeros((40, 32, 3), np.uint8)).save(image)
    with pytest.raises(DataError, match=f"{image.name} is 32x40 pixels, its annotation says 32x32"):
        check_dataset(_instances(root))


def test_colour_label_map(root):
    path = _third(root, "annotations", ".png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match=f"{path.name} .*3 channels"):
        check_dataset(_maps(root))


def test_many_problems_are_counted(root):
    for path in (root / "images" / "training").glob("*.jpg"):
        path.write_text("")
    with pytest.raises(DataError, match="and 1 more"):
        check_dataset(_maps(root))


def test_empty_split(root):
    for path in (root / "images" / "training").glob("*.jpg"):
        path.unlink()
    prefix = dict(img_path="images/training", seg_map_path="annotations/training")
    dataset = dict(type="mmseg.BaseSegDataset", data_root=str(root), data_prefix=prefix)
    with pytest.raises(DataError, match=r"no file in .*images/training ends in '\.jpg'.*no file"):
        Runner.build_dataloader(dict(dataset=dataset, sampler=dict(type="DefaultSampler")))


def test_other_datasets_are_left_alone():
    check_dataset(torch.utils.data.TensorDataset(torch.zeros(3)))


def test_wrapped_datasets_are_looked_into(root):
    for wrapped in (RepeatDataset(_maps(root), 3), ConcatDataset([_maps(root), _maps(root)])):
        check_dataset(wrapped)
    image = _third(root, "images", ".jpg")
    image.write_text("")
    with pytest.raises(DataError, match=f"{image.name} cannot be read"):
        check_dataset(RepeatDataset(_maps(root), 3))


def test_wrapped_zero_label(root):
    path = _third(root, "annotations", ".png")
    ids = np.array(Image.open(path))
    ids[0, 0] = 11
    Image.fromarray(ids).save(path)
    check_dataset(ConcatDataset([_maps(root, reduce_zero_label=True)]))


def test_a_missing_file_is_not_taken_for_checked(root):
    image, labels = _third(root, "images", ".jpg"), _third(root, "annotations", ".png")
    kept = image.read_bytes(), labels.read_bytes()
    image.unlink()
    labels.unlink()
    check_dataset(_maps(root))  # a data set of what is left
    image.write_bytes(kept[0])
    labels.write_bytes(kept[1])
    dataset = _maps(root)
    dataset.full_init()
    image.unlink()
    with pytest.raises(DataError, match=image.name):
        check_dataset(dataset)


def test_photo_that_lies_on_its_side(root):
    """Orientation as the camera wrote it: the picture is what is read, not what is stored."""
    path = root / "coco" / "instances_train.json"
    content = json.loads(path.read_text())
    entry = content["images"][2]
    image = Image.fromarray(np.zeros((32, 48, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(root / "images" / entry["file_name"], exif=exif)
    with pytest.raises(DataError, match="32x48 pixels, its annotation says 32x32"):
        check_dataset(_instances(root))
    entry.update(width=32, height=48)
    path.write_text(json.dumps(content))
    check_dataset(_instances(root))


@pytest.mark.parametrize("key", ["category_id", "image_id"])
def test_annotation_of_nothing(root, key):
    path = root / "coco" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][1][key] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"instances_train.json: 1 annotations have a {key} .*\['99'\].*annotation 2"):
        check_dataset(_instances(root))


def test_one_bit_label_map(root):
    path = _third(root, "annotations", ".png")
    Image.fromarray(np.zeros((32, 32), bool)).save(path)
    check_dataset(_maps(root))


def test_formats_that_cannot_be_looked_at_are_left_out(root, tmp_path):
    dataset = _maps(root)
    dataset.full_init()
    info = dict(img_path="s3://bucket/a.jpg", seg_map_path=str(tmp_path / "a.npy"))
    dataset.get_data_info = lambda index: dict(info)
    check_dataset(dataset)
