"""Folders of images: which files count, and which folder is which class."""

import json

import numpy as np
import pytest
from PIL import Image

from vision_ssm.cli.image_folder import ImageFolder, class_names
from vision_ssm.command_line import CommandError


@pytest.fixture
def root(tmp_path):
    for name in ("class2", "class10"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "0.png")
    return tmp_path


def save(path, kind=None, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path, kind)
    return path


def names(data: ImageFolder) -> list[str]:
    return [path.name for path, _ in data.files]


def test_every_format_counts(root):
    for name in ("1.webp", "2.tif", "3.JPG", "4.bmp", "deep/er/5.png"):
        save(root / "class2" / name)
    save(root / "class2" / "6.jpg", "PNG")  # by its content
    for name in (".hidden.png", ".cache/7.png"):
        save(root / "class2" / name)
    save(root / ".trash" / "8.png")
    data = ImageFolder(root)
    assert names(data) == ["0.png", "1.webp", "2.tif", "3.JPG", "4.bmp", "6.jpg", "5.png", "0.png"]
    data.transform = np.asarray
    assert [target for _, target in data] == [0] * 7 + [1]


def test_what_is_left_out_is_said(root):
    for name in ("a.heif", "b.txt", "c.txt", "d"):
        (root / "class10" / name).write_bytes(b"")
    (root / "class9").mkdir()
    left_out, empty, order = ImageFolder(root).notes
    assert "4 files are left out" in left_out and "2 .txt" in left_out and "1 no suffix" in left_out
    assert "1 folders of" in empty and "such as class9" in empty
    assert "natural order (class2, class9, class10, ...)" in order and "--class-map" in order


def test_images_that_cannot_be_read_have_a_target_of_their_own(root):
    save(root / "class2" / "1.png").write_bytes(b"")
    (root / "class2" / "2.png").symlink_to("nowhere.png")
    data = ImageFolder(root)
    data.transform = np.asarray
    assert [target for _, target in data] == [0, -2, -3, 1]


def test_a_class_map_decides(root, tmp_path_factory):
    file = tmp_path_factory.mktemp("maps") / "order.txt"
    file.write_text("class10\nclass3\nclass2\n", encoding="utf-8-sig")
    data = ImageFolder(root, class_names(file, 3))
    assert data.classes == dict(class2=2, class10=0) and data.notes == []
    file = file.with_suffix(".json")
    file.write_text(json.dumps(dict(class2=2, class3=1, class10=0)), encoding="utf-8")
    assert class_names(file, 3) == ["class10", "class3", "class2"]
    with pytest.raises(CommandError, match="no 'class2', a folder of"):
        ImageFolder(root, ["class10"])
    with pytest.raises(CommandError, match="'class2' twice"):
        ImageFolder(root, ["class10", "class2", "class2"])


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.json", '{"a": 0, "b": 2}', "other values than the indices 0 to 1"),
        ("a.json", '{"a": "0"}', "other values"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "[1]", "holds no names"),
        ("a.json", "3", "holds no names"),
        ("a.txt", "a\nb\nc\nd", "4 labels, the model 3"),
    ],
)
def test_class_maps_that_are_none(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(CommandError, match=told):
        class_names(tmp_path / name, 3)


def test_folders_that_hold_nothing(root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(CommandError, match="no images in sub-folders"):
        ImageFolder(empty)
    save(root / "9.WEBP")
    with pytest.raises(CommandError, match="outside of sub-folders"):
        ImageFolder(root)
