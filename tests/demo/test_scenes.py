import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from PIL import Image

from vision_ssm.demo import scenes as module
from vision_ssm.demo.digits import load_digits
from vision_ssm.demo.scenes import CLASSES, Scenes, compose, scans, write

FEW = Scenes(train=5, val=3, size=96, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("scenes"), FEW)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _coco(folder: Path, split: str) -> dict:
    return json.loads((folder / "coco" / f"instances_{split}.json").read_text(encoding="utf-8"))


def test_same_seed_same_bytes(folder, tmp_path):
    assert _contents(write(tmp_path / "again", FEW)) == _contents(folder)


def test_a_scene_depends_on_seed_split_and_index_alone():
    scene = compose(Scenes(), "train", 2)
    assert np.array_equal(compose(Scenes(train=3, val=7), "train", 2).image, scene.image)
    for other in (
        compose(Scenes(), "train", 3),
        compose(Scenes(), "val", 2),
        compose(Scenes(seed=1), "train", 2),
    ):
        assert not np.array_equal(other.image, scene.image)


def test_scans_are_the_split_of_the_digits():
    data = load_digits()
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("val", data.test_images, data.test_labels),
    ):
        ink, digits = scans(split)
        assert np.allclose(ink * 2 - 1, images[:, 0].numpy())
        assert np.array_equal(digits, labels.numpy())
        assert (ink.min(), ink.max()) == (0, 1)


def test_every_drawn_scan_is_of_the_scene_s_split(monkeypatch):
    """Whatever is drawn, it is not one of the other split's scans: seen where the scans become pixels."""
    drawn = {"train": set(), "val": set()}
    draw = module._draw
    for split, seen in drawn.items():
        monkeypatch.setattr(
            module, "_draw", lambda rng, scan, height, s=seen: s.add(scan.tobytes()) or draw(rng, scan, height)
        )
        for index in range(40):
            compose(Scenes(), split, index)
    rows = {split: {image.tobytes() for image in scans(split)[0]} for split in drawn}
    assert not rows["train"] & rows["val"]
    for split in drawn:
        assert len(drawn[split]) > 100
        assert drawn[split] <= rows[split]


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_agree_with_instances(split):
    for index in range(10):
        scene = compose(Scenes(), split, index)
        assert scene.image.shape == (128, 128, 3)
        assert scene.image.dtype == scene.labels.dtype == np.uint8
        assert 1 <= len(scene.instances) == len(scene.scans) <= 6
        expected = np.zeros((128, 128), np.uint8)
        covered = np.zeros((128, 128), int)
        for (label, mask), row in zip(scene.instances, scene.scans, strict=True):
            assert label == scans(split)[1][row]
            assert mask.dtype == bool
            expected[mask] = 1 + label
            covered += mask
        assert np.array_equal(scene.labels, expected)
        assert covered.max() == 1  # a pixel shows one digit


def test_digits_stand_out_and_stay_visible():
    sides, darker = [], 0
    for index in range(40):
        scene = compose(Scenes(), "train", index)
        light = scene.image.mean(2)
        ground = np.median(light[scene.labels == 0])
        for _, mask in scene.instances:
            assert mask.sum() >= 40
            assert abs(np.median(light[mask]) - ground) > 30
            sides.append(np.ptp(np.flatnonzero(mask.any(1))) + 1)
        darker += np.median(light[scene.labels > 0]) < ground
    assert min(sides) >= 12
    assert max(sides) <= 70
    assert 8 < darker < 32  # both dark on light and light on dark


def test_the_scan_is_recognisable():
    """Shrunk back to 8 x 8, a drawn scan resembles its own scan more than those of other digits."""
    ink, digits = scans("train")
    rng = np.random.default_rng(0)
    right = 0
    for row in range(40):
        cover, _ = module._draw(rng, ink[row], 40)
        small = np.asarray(Image.fromarray((cover * 255).astype(np.uint8)).resize((8, 8), Image.Resampling.BOX))

        def fit(image, small=small):
            rows, columns = (np.flatnonzero((image > 0.4).any(axis)) for axis in (1, 0))
            crop = Image.fromarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
            return np.corrcoef(np.asarray(crop.resize((8, 8), Image.Resampling.BICUBIC)).ravel(), small.ravel())[0, 1]

        others = [i for i in range(60) if digits[i] != digits[row]]
        right += fit(ink[row]) > max(fit(ink[i]) for i in others)
    assert right >= 36


def test_ade20k_layout(folder):
    for split, name, count in (("train", "training", 5), ("val", "validation", 3)):
        images = sorted((folder / "images" / name).iterdir())
        masks = sorted((folder / "annotations" / name).iterdir())
        assert [p.name for p in images] == [f"ADE_{split}_{i + 1:08d}.jpg" for i in range(count)]
        assert [p.stem for p in masks] == [p.stem for p in images]
        for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
            scene = compose(FEW, split, index)
            with Image.open(mask) as file:
                assert (file.format, file.mode) == ("PNG", "L")
                assert np.array_equal(np.asarray(file), scene.labels)
            with Image.open(image) as file:
                assert (file.format, file.mode) == ("JPEG", "RGB")
                assert np.abs(np.asarray(file).astype(int) - scene.image).mean() < 4


def test_coco_layout(folder):
    pixels = pytest.importorskip("pycocotools.mask")
    for split in ("train", "val"):
        coco = _coco(folder, split)
        assert [(c["id"], c["name"]) for c in coco["categories"]] == list(enumerate(CLASSES))[1:]
        assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])
        for index, image in enumerate(coco["images"]):
            with Image.open(folder / "images" / image["file_name"]) as file:
                assert file.size == (image["width"], image["height"])
            scene = compose(FEW, split, index)
            found = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
            for a, (label, mask) in zip(found, scene.instances, strict=True):
                assert (a["category_id"], a["iscrowd"]) == (label + 1, 0)
                packed = pixels.frPyObjects(a["segmentation"], 96, 96)
                assert np.array_equal(pixels.decode(packed).astype(bool), mask)
                assert a["area"] == pixels.area(packed) == mask.sum()
                assert a["bbox"] == pixels.toBbox(packed).tolist()


@pytest.mark.parametrize("corner", [(0, 0), (0, 3), (4, 0), (4, 3)])
def test_run_lengths_to_the_corners(corner):
    pixels = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((5, 4), bool)
    mask[corner] = mask[2, 1] = True
    rle = dict(size=[5, 4], counts=module._run_lengths(mask))
    assert np.array_equal(pixels.decode(pixels.frPyObjects(rle, 5, 4)).astype(bool), mask)


def test_a_complete_set_is_left_alone(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    write(str(folder), FEW)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_killed_generator_s_set_is_completed(folder, tmp_path, monkeypatch):
    calls = iter(range(6))

    def dies(scenes, split, index):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return compose(scenes, split, index)

    monkeypatch.setattr(module, "compose", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, FEW)
    assert not (tmp_path / "scenes.json").exists()
    kept = tmp_path / "images/training/ADE_train_00000001.jpg"
    os.utime(kept, ns=(1, 1))
    with pytest.raises(ValueError, match="choose another folder"):
        write(tmp_path, Scenes(train=5, val=3, size=96, seed=4))
    monkeypatch.setattr(module, "compose", compose)
    write(tmp_path, FEW)
    assert kept.stat().st_mtime_ns == 1
    assert _contents(tmp_path) == _contents(folder)


def test_another_recipe_is_refused(folder):
    with pytest.raises(ValueError, match="choose another folder") as error:
        write(folder, Scenes(train=5, val=4, size=96, seed=3))
    assert str(folder) in str(error.value)


def test_another_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    with pytest.raises(ValueError, match="choose another folder"):
        write(folder, FEW)


def test_other_data_is_not_mixed_with(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="holds images of something else"):
        write(tmp_path, FEW)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    "kwargs", [dict(train=0), dict(val=-1), dict(size=16), dict(digits=(0, 3)), dict(digits=(4, 3)), dict(seed=-1)]
)
def test_values_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        Scenes(**kwargs)


def test_split_and_index_are_checked():
    with pytest.raises(ValueError, match="split must be one of train, val"):
        compose(FEW, "validation", 0)
    with pytest.raises(ValueError, match="index"):
        compose(FEW, "train", -1)


def _openmmlab(name: str):
    """The data sets of an OpenMMLab package; skips where it cannot be imported, such as without mmcv's operators."""
    with contextlib.suppress(ImportError):  # makes mmcv's operators optional
        import vision_ssm.openmmlab  # noqa: F401
    try:
        return __import__(f"{name}.datasets", fromlist=["datasets"])
    except Exception as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def test_mmsegmentation_reads_it(folder):
    datasets = _openmmlab("mmseg")
    data = datasets.BaseSegDataset(  # as ADE20KDataset, which refuses classes other than its own
        data_root=str(folder),
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        metainfo=dict(classes=CLASSES, palette=[[i, i, i] for i in range(11)]),
        reduce_zero_label=False,
        pipeline=[dict(type="LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")],
    )
    assert len(data) == 3
    for index in range(3):
        scene, sample = compose(FEW, "val", index), data[index]
        assert np.array_equal(sample["gt_seg_map"], scene.labels)
        assert np.abs(sample["img"][..., ::-1].astype(int) - scene.image).mean() < 4


def test_mmdetection_reads_it(folder):
    datasets = _openmmlab("mmdet")
    data = datasets.CocoDataset(
        data_root=str(folder),
        ann_file="coco/instances_val.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=CLASSES[1:]),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True)],
    )
    assert len(data) == 3
    for index in range(3):
        scene, sample = compose(FEW, "val", index), data[index]
        assert sample["gt_bboxes_labels"].tolist() == [label for label, _ in scene.instances]
        assert np.array_equal(sample["gt_masks"].masks.astype(bool), [mask for _, mask in scene.instances])
