"""Pictures and label maps whose content nobody would learn from are told before the first step."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
pytest.importorskip("vision_ssm.openmmlab")  # puts the bridge in place, before what needs it
from mmdet.datasets import XMLDataset
from mmengine.registry import init_default_scope
from mmengine.runner import BaseLoop
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from torch.utils.data import DataLoader

from vision_ssm.engine import DataError, Runner
from vision_ssm.engine.data_check import DataCheckHook, check_dataset

SIDE = 16
SKIN = ("skin", "lesion")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def half(value: int, other: int = 0) -> np.ndarray:
    mask = np.full((SIDE, SIDE), other, np.uint8)
    mask[:, SIDE // 2 :] = value
    return mask


def folder(root, mask=None, image_suffix=".jpg", label_suffix=".png", count=2, **options):
    """Pictures, and one label map for all of them."""
    for i in range(count):
        for kind, name in (("img", f"{i}{image_suffix}"), ("ann", f"{i}{label_suffix}")):
            (root / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.full((SIDE, SIDE, 3), 90, np.uint8) if kind == "img" else half(1) if mask is None else mask
            Image.fromarray(pixels).save(root / kind / name, **(options if kind == "ann" else {}))
    return root


def arguments(root, classes=SKIN, **changes) -> dict:
    prefix = dict(img_path="img", seg_map_path="ann")
    return dict(data_root=str(root), data_prefix=prefix, metainfo=dict(classes=classes)) | changes


def noted(root, kind=BaseSegDataset, **changes) -> list[str]:
    told = []
    check_dataset(kind(**arguments(root, **changes)), warn=told.append)
    return told


def refused(root, match, kind=BaseSegDataset, **changes) -> None:
    with pytest.raises(DataError, match=match):
        check_dataset(kind(**arguments(root, **changes)))


def test_good_maps_have_nothing(tmp_path):
    assert noted(folder(tmp_path)) == []


def test_masks_of_0_and_255(tmp_path):
    (line,) = noted(folder(tmp_path, half(255)))
    assert "no pixel of its label maps has the class 'lesion' (1); 255 is ignored, 50.0% of the pixels" in line
    assert "Save them as 0 and 1" in line and str(tmp_path / "ann") in line
    refused(folder(tmp_path, half(128)), r"ids outside the 2 classes: \[128\]")
    refused(folder(tmp_path, half(2, 1)), r"ids outside the 2 classes: \[2\]")


def test_classes_that_never_occur(tmp_path):
    (line,) = noted(folder(tmp_path), classes=("a", "b", "c", "d"))
    assert "has the class 'c' (2), 'd' (3)" in line and "ignored" not in line
    # Ids from 0, read as if 0 were none: the last class is nowhere, and the first is lost.
    (line,) = noted(tmp_path, reduce_zero_label=True)
    assert "'lesion' (1); 0 is ignored, 50.0%" in line
    assert noted(folder(tmp_path, half(2, 1)), reduce_zero_label=True) == []


def test_nothing_but_ignored_pixels(tmp_path):
    refused(folder(tmp_path, half(255, 255)), "no pixel of its label maps has a class: all are 255")
    refused(folder(tmp_path, half(0)), "all are 0, which is ignored", reduce_zero_label=True)


def test_subsets_of_the_classes(tmp_path):
    """With a label map the ids are those of all classes, of which some are renumbered and the others ignored."""
    subset = dict(kind=ADE20KDataset, classes=("sky", "wall"), reduce_zero_label=True)
    assert noted(folder(tmp_path, half(1, 3)), **subset) == []  # wall and sky of 150
    (line,) = noted(folder(tmp_path, half(1, 150)), **subset)
    assert "'sky' (0); 150 is ignored" in line
    refused(folder(tmp_path, half(1, 151)), r"ids outside .*\[151\]", **subset)
    refused(folder(tmp_path, half(20, 30)), "all are 20, 30", **subset)
    path = folder(tmp_path, half(1, 3)) / "ann" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    refused(tmp_path, r"1\.png cannot be read", **subset)


def test_more_classes_than_8_bits_have(tmp_path):
    refused(folder(tmp_path), "300 classes: label maps are read with 8 bits", classes=tuple(map(str, range(300))))


def test_label_maps_in_a_lossy_format(tmp_path):
    (line,) = noted(folder(tmp_path, label_suffix=".jpeg"), seg_map_suffix=".jpeg")
    assert "2 label maps are JPEG files, which change ids" in line


def test_label_maps_that_lie_on_their_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    refused(folder(tmp_path, exif=exif.tobytes()), r"0\.png has an EXIF orientation")


def test_pictures_without_a_known_range(tmp_path):
    folder(tmp_path, image_suffix=".tif")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(tmp_path / "img" / "0.tif")
    assert noted(tmp_path, img_suffix=".tif") == []
    Image.fromarray(np.zeros((SIDE, SIDE), np.float32)).save(tmp_path / "img" / "1.tif")
    refused(tmp_path, r"1\.tif cannot be read: it has float pixels", img_suffix=".tif")


def test_suffixes(tmp_path):
    folder(tmp_path)
    told = r"no file in .*img ends in '\.tiff' \(`img_suffix`\): it has 2 others, such as 0\.jpg"
    wrong = dict(arguments(tmp_path, img_suffix=".tiff"), type="mmseg.BaseSegDataset")
    for config in (wrong, dict(type="RepeatDataset", times=2, dataset=wrong)):
        with pytest.raises(DataError, match=told):
            Runner.build_dataloader(dict(dataset=config, sampler=dict(type="DefaultSampler")))
    missing = r"0\.tif is missing, as are all 2 label maps: .*ann has 2 others, such as 0\.png \(see `seg_map_suffix`\)"
    refused(tmp_path, missing, seg_map_suffix=".tif")
    (tmp_path / "img" / "sub").mkdir()
    for name in ("9.JPG", "sub/8.png", "._0.jpg", "notes.txt"):
        (tmp_path / "img" / name).write_bytes((tmp_path / "img" / "0.jpg").read_bytes())
    (line,) = noted(tmp_path)
    assert "2 pictures do not end in '.jpg' (`img_suffix`) and are left out, such as 9.JPG" in line
    for path in (tmp_path / "ann").iterdir():
        path.rename(tmp_path / "img" / path.name)  # beside the pictures
    (line,) = noted(tmp_path, data_prefix=dict(img_path="img", seg_map_path="img"))
    assert "1 pictures do not end" in line


def pascal(root, name: str) -> XMLDataset:
    """A picture with one box, in Pascal VOC's layout."""
    for part in ("JPEGImages", "Annotations"):
        (root / part).mkdir(exist_ok=True)
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(root / "JPEGImages" / "0.jpg")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in dict(xmin=2, ymin=2, xmax=9, ymax=9).items())
    size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
    one = f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    (root / "Annotations" / "0.xml").write_text(f"<annotation>{size}{one}</annotation>")
    (root / "list.txt").write_text("0\n")
    classes = dict(classes=("cat", "dog"))
    return XMLDataset(data_root=str(root), ann_file="list.txt", data_prefix=dict(sub_data_root=""), metainfo=classes)


def test_boxes_of_other_formats(tmp_path):
    told = []
    check_dataset(pascal(tmp_path, "cat"), warn=told.append)
    assert len(told) == 1 and "no box has the class 'dog'" in told[0]
    with pytest.raises(DataError, match=r"no box is left to learn from: .*'cat', 'dog'"):
        check_dataset(pascal(tmp_path, "Cat"))


class Loop(BaseLoop):
    """A loop that is built and never run."""

    def run(self) -> None:
        raise NotImplementedError


def test_tests_look_too(tmp_path):
    init_default_scope("mmseg")
    dataset = BaseSegDataset(**arguments(folder(tmp_path, half(255, 255)), test_mode=True))
    runner = SimpleNamespace(cfg={}, logger=logging.getLogger(), _train_loop=None, _val_loop={})
    runner._test_loop = Loop(runner, DataLoader(dataset))
    with pytest.raises(DataError, match="all are 255"):
        DataCheckHook().before_run(runner)
    dataset.check = lambda log: pytest.fail("a test of such a data set meets each file when its turn comes")
    DataCheckHook().before_run(runner)
