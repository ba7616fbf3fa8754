import zipfile
from pathlib import Path

import pytest
from data import trees

from vision_ssm.data import LayoutError, Wrong, check_coco
from vision_ssm.data.coco import ARCHIVES, Coco, Split
from vision_ssm.data.command import main

EXPECTED = Coco(train=Split(3, 6), val=Split(2, 4), categories=2)
TOOL = Path(__file__).parents[2] / "tools" / "prepare_coco.py"
VAL = "annotations/instances_val2017.json"


@pytest.fixture
def root(tmp_path) -> Path:
    return trees.coco(tmp_path / "coco")


def _check(root: Path, **kwargs):
    return check_coco(root, expected=EXPECTED, **kwargs)


def _wrong(report) -> Wrong:
    assert not report.ok
    assert not report.missing
    (wrong,) = report.wrong
    return wrong


@pytest.mark.parametrize("decode", [False, True])
def test_a_complete_set(root, decode):
    report = _check(root, decode=decode)
    assert report.ok
    assert report.found["images in train2017"] == 3
    assert report.found["annotations in annotations/instances_val2017.json"] == 4
    assert ("images of val2017 decoded" in report.found) == decode


def test_the_published_numbers(root):
    report = check_coco(root)
    expected = {(w.file, w.expected) for w in report.wrong}
    assert (VAL, "5,000") in expected
    assert (VAL, "36,781") in expected
    assert (VAL, "80") in expected
    assert ("annotations/instances_train2017.json", "118,287") in expected
    assert ("annotations/instances_train2017.json", "860,001") in expected


def test_missing_images_are_named(root):
    (root / "train2017/000000000002.jpg").unlink()
    report = _check(root, decode=True)
    assert [(m.where, m.count, m.names) for m in report.missing] == [("train2017", 1, ("000000000002.jpg",))]
    assert not report.wrong


def test_a_missing_annotation_file(root):
    (root / VAL).unlink()
    (root / "val2017/000000000002.jpg").unlink()
    report = _check(root)
    assert [(m.where, m.count, m.names) for m in report.missing] == [
        ("annotations", 1, ("instances_val2017.json",)),
        ("val2017", 1, ()),
    ]


def test_one_split_is_enough_for_an_evaluation(root):
    for file in (root / "train2017").iterdir():
        file.unlink()
    (root / "train2017").rmdir()
    assert not _check(root).ok
    assert _check(root, splits=["val"], decode=True).ok
    with pytest.raises(ValueError, match="got test"):
        _check(root, splits=["val", "test"])


@pytest.mark.parametrize("text", ["", '{"images": [', "\xff", "[" * 100_000], ids=range(4))
def test_a_file_that_is_no_json(root, text):
    (root / VAL).write_text(text, encoding="latin-1")
    wrong = _wrong(_check(root))
    assert wrong.file == VAL
    assert wrong.what.startswith("is no JSON")


@pytest.mark.parametrize(
    "content", [[], {}, dict(images=[], annotations={}, categories=[]), dict(images=[dict(id="1")], annotations=[])]
)
def test_json_of_another_form(root, content):
    trees.write_records(root, "val", content)
    wrong = _wrong(_check(root))
    assert wrong.file == VAL
    assert "has no list of" in wrong.what


@pytest.mark.parametrize(
    ("key", "what", "expected"),
    [("images", "1 images", "2"), ("annotations", "3 annotations", "4"), ("categories", "1 categories", "2")],
)
def test_records_that_are_missing(root, key, what, expected):
    content = trees.records(root, "val")
    content[key].pop()
    trees.write_records(root, "val", content)
    assert Wrong(VAL, what, expected) in _check(root).wrong


@pytest.mark.parametrize("key", ["image_id", "category_id"])
@pytest.mark.parametrize("value", [99, None, [1]])
def test_annotations_of_nothing(root, key, value):
    content = trees.records(root, "val")
    content["annotations"][2][key] = value
    trees.write_records(root, "val", content)
    assert _wrong(_check(root)).what == f"1 annotations of an unknown {key} (annotation 21)"


def test_ids_given_twice(root):
    content = trees.records(root, "val")
    content["annotations"][1]["id"] = content["annotations"][0]["id"]
    trees.write_records(root, "val", content)
    assert _wrong(_check(root)).what == "1 ids of annotations that others have"


def test_images_without_a_name(root):
    content = trees.records(root, "val")
    del content["images"][0]["file_name"]
    trees.write_records(root, "val", content)
    assert _wrong(_check(root, decode=True)).what == "1 images without file_name"


def test_an_empty_image(root):
    (root / "val2017/000000000001.jpg").write_bytes(b"")
    assert _wrong(_check(root, decode=True)) == Wrong("val2017/000000000001.jpg", "is empty", "an image")


def test_a_truncated_image_is_found_by_decoding(root):
    file = root / "train2017/000000000003.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    assert _check(root).ok
    wrong = _wrong(_check(root, decode=True))
    assert wrong.file == "train2017/000000000003.jpg"
    assert wrong.what.startswith("cannot be decoded: ")


def test_an_image_of_another_size(root):
    trees.save_image(root / "val2017/000000000001.jpg", width=20)
    assert _wrong(_check(root, decode=True)) == Wrong(
        "val2017/000000000001.jpg", "20 x 8 pixels", "12 x 8, as in its record"
    )


def test_images_without_a_record_do_no_harm(root):
    trees.save_image(root / "val2017/000000000009.jpg")
    report = _check(root)
    assert report.ok
    assert report.notes == [f"1 images in val2017 have no record in {VAL}: nothing reads them"]


@pytest.mark.parametrize("wrong", ["..", "annotations", "val2017"])
def test_the_wrong_level(root, wrong):
    with pytest.raises(LayoutError, match=r"did you mean .*coco"):
        check_coco((root / wrong).resolve())


def _main(root: Path, *options: str) -> int:
    return main(_check, ARCHIVES, "title", "data/coco", [str(root), *options], splits=("train", "val"))


def test_the_command_names_the_archives_that_are_needed(root, capsys):
    assert _main(root, "--splits", "val") == 0
    (root / "val2017/000000000001.jpg").unlink()
    assert _main(root) == 1
    out = capsys.readouterr().out
    assert "val2017.zip" in out
    assert "train2017.zip" not in out
    (root / "val2017.zip").touch()
    assert _main(root) == 1
    assert "val2017.zip is not, or not wholly, extracted" in capsys.readouterr().out


def test_a_wrong_archive_is_not_extracted(root, capsys):
    with zipfile.ZipFile(root / "val2017.zip", "w") as zipped:
        zipped.writestr("val2017/000000000001.jpg", "not the published one")
    before = (root / "val2017/000000000001.jpg").read_bytes()
    assert _main(root, "--extract") == 2
    assert "instead of 442b8da7639aecaf257c1dceb8ba8c80: download it again" in capsys.readouterr().err
    assert (root / "val2017/000000000001.jpg").read_bytes() == before


def test_nothing_there_yet(tmp_path, capsys):
    assert _main(tmp_path / "coco") == 2
    captured = capsys.readouterr()
    assert "no folder" in captured.err
    assert all(archive.url in captured.out for archive in ARCHIVES)
    (tmp_path / "coco").mkdir()
    assert _main(tmp_path / "coco") == 1
    out = capsys.readouterr().out
    assert all(archive.url in out for archive in ARCHIVES)


def test_the_script(root, monkeypatch, capsys):
    """Against the published numbers."""
    assert trees.run_script(monkeypatch, TOOL, str(root), "--splits", "val") == 1
    assert f"wrong: {VAL}: 2 images (expected 5,000)" in capsys.readouterr().out
