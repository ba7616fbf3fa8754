import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data import trees
from PIL import Image

from vision_ssm.data import LayoutError, Wrong, check_ade20k
from vision_ssm.data.ade20k import ARCHIVES, Ade20k
from vision_ssm.data.archives import extract
from vision_ssm.data.command import main

EXPECTED = Ade20k(training=3, validation=2)
TOOL = Path(__file__).parents[2] / "tools" / "prepare_ade20k.py"


@pytest.fixture
def root(tmp_path) -> Path:
    return trees.ade20k(tmp_path / "ADEChallengeData2016")


def _check(root: Path, **kwargs):
    return check_ade20k(root, expected=EXPECTED, **kwargs)


def _small(root, **kwargs):
    kwargs.pop("splits", None)
    return check_ade20k(root, expected=EXPECTED, **kwargs)


def _wrong(report) -> Wrong:
    assert not report.ok
    assert not report.missing
    (wrong,) = report.wrong
    return wrong


@pytest.mark.parametrize("decode", [False, True])
def test_a_complete_set(root, decode):
    seen = []
    report = _check(str(root), decode=decode, jobs=2, progress=lambda *at: seen.append(at))
    assert report.ok
    assert report.found["images/training"] == report.found["annotations/training"] == 3
    assert report.found["images/validation"] == report.found["annotations/validation"] == 2
    assert seen == ([(i + 1, 5) for i in range(5)] if decode else [])
    assert report.lines()[0] == f"{root}: complete"


def test_the_published_numbers(root):
    report = check_ade20k(root)
    assert {m.where: m.count for m in report.missing} == {
        "images/training": 20_207,
        "annotations/training": 20_207,
        "images/validation": 1_998,
        "annotations/validation": 1_998,
    }
    assert report.missing[0].names[0] == "ADE_train_00000004.jpg"
    assert report.missing[0].names[-1] == "ADE_train_00020210.jpg"
    text = "\n".join(report.lines(most=2))
    assert "20,207 of images/training: ADE_train_00000004.jpg, ADE_train_00000005.jpg, ...\n" in text


def test_missing_files_are_named(root):
    (root / "images/training/ADE_train_00000002.jpg").unlink()
    (root / "annotations/validation/ADE_val_00000001.png").unlink()
    report = _check(root, decode=True)
    assert not report.ok
    assert [(m.where, m.count, m.names) for m in report.missing] == [
        ("images/training", 1, ("ADE_train_00000002.jpg",)),
        ("annotations/validation", 1, ("ADE_val_00000001.png",)),
    ]
    assert report.found["pairs decoded"] == 3
    assert not report.wrong


def test_a_missing_folder(root):
    for file in (root / "annotations/training").iterdir():
        file.unlink()
    (root / "annotations/training").rmdir()
    assert [(m.where, m.count) for m in _check(root).missing] == [("annotations/training", 3)]


def test_an_empty_file(root):
    file = root / "images/validation/ADE_val_00000002.jpg"
    file.write_bytes(b"")
    assert _wrong(_check(root, decode=True)) == Wrong("images/validation/ADE_val_00000002.jpg", "is empty", "an image")


def test_a_stranger_is_named_and_a_hidden_file_is_not(root):
    trees.save_image(root / "images/training/ADE_train_00000004.jpg")
    trees.save_image(root / "images/training/._ADE_train_00000001.jpg")
    (root / "images/training/Thumbs.db").touch()
    assert _wrong(_check(root)).file == "images/training/ADE_train_00000004.jpg"


@pytest.mark.parametrize(("kind", "suffix"), [("images", "jpg"), ("annotations", "png")])
def test_a_truncated_file_is_found_by_decoding(root, kind, suffix):
    file = root / kind / "training" / f"ADE_train_00000003.{suffix}"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    assert _check(root).ok
    wrong = _wrong(_check(root, decode=True))
    assert wrong.file == f"{kind}/training/ADE_train_00000003.{suffix}"
    assert wrong.what.startswith("cannot be decoded: ")


def test_a_file_that_is_no_image(root):
    (root / "images/training/ADE_train_00000001.jpg").write_text("<html>not found</html>")
    wrong = _wrong(_check(root, decode=True))
    assert wrong.file == "images/training/ADE_train_00000001.jpg"
    assert str(root) not in wrong.what


def test_a_class_out_of_range(root):
    trees.save_mask(root / "annotations/training/ADE_train_00000002.png", value=151)
    assert _check(root).ok
    assert _wrong(_check(root, decode=True)) == Wrong(
        "annotations/training/ADE_train_00000002.png", "class 151", "0 to 150"
    )


def test_an_unlabelled_mask_is_allowed(root):  # some of the published masks are
    trees.save_mask(root / "annotations/training/ADE_train_00000002.png", value=0)
    assert _check(root, decode=True).ok


def test_a_mask_of_another_size(root):
    trees.save_mask(root / "annotations/validation/ADE_val_00000001.png", width=8, height=12)
    assert _wrong(_check(root, decode=True)) == Wrong(
        "annotations/validation/ADE_val_00000001.png", "8 x 12 pixels", "12 x 8, as its image"
    )


def test_a_mask_in_colour(root):
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(root / "annotations/validation/ADE_val_00000001.png")
    assert _wrong(_check(root, decode=True)).what == "3 channels"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(LayoutError, match=r"no folder .*elsewhere"):
        check_ade20k(tmp_path / "elsewhere")


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LayoutError, match="is a file: expected the folder that holds images, annotations"):
        check_ade20k(tmp_path / "file")


@pytest.mark.parametrize("wrong", ["..", "images", "images/training"])
def test_the_wrong_level(root, wrong):
    with pytest.raises(LayoutError, match=r"did you mean .*ADEChallengeData2016") as error:
        check_ade20k((root / wrong).resolve())
    assert "\n" not in str(error.value)


def test_the_full_ade20k_is_told_apart(root):
    (root / "images/training/a/abbey").mkdir(parents=True)
    assert "ADEChallengeData2016" in _check(root).notes[0]


def test_the_report_as_json(root, tmp_path):
    (root / "images/training/ADE_train_00000002.jpg").unlink()
    trees.save_mask(root / "annotations/training/ADE_train_00000001.png", value=200)
    report = _check(root, decode=True)
    content = json.loads(json.dumps(report.as_dict()))
    assert content["ok"] is False
    assert content["missing"] == [dict(where="images/training", count=1, names=["ADE_train_00000002.jpg"])]
    assert content["wrong"][0]["file"] == "annotations/training/ADE_train_00000001.png"


def _zip(path: Path, root: Path, **others: str) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            zipped.write(file, f"{root.name}/{file.relative_to(root)}")
        for name, text in others.items():
            zipped.writestr(name, text)
    return path


def _archive(path: Path):
    return dataclasses.replace(ARCHIVES[0], md5=hashlib.md5(path.read_bytes()).hexdigest())


def test_extraction_brings_the_set(root, tmp_path):
    path = _zip(tmp_path / "ADEChallengeData2016.zip", root, **{"readme.txt": "not of the set"})
    other = tmp_path / "other"
    assert extract(_archive(path), path, other) == 10
    assert _check(other, decode=True).ok
    assert not (other / "readme.txt").exists()
    (other / "images/training/ADE_train_00000002.jpg").write_bytes(b"half")
    assert extract(_archive(path), path, other) == 1  # what was there stays
    assert _check(other, decode=True).ok


@pytest.mark.parametrize("name", ["../evil", "/evil", "ADEChallengeData2016/../../evil", "C:evil", "a\\..\\evil"])
def test_extraction_stays_in_its_folder(root, tmp_path, name):
    path = _zip(tmp_path / "ADEChallengeData2016.zip", root, **{name: "evil"})
    with pytest.raises(LayoutError, match="outside its folder"):
        extract(_archive(path), path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_not_extracted(root, tmp_path):
    path = tmp_path / "ADEChallengeData2016.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        link = zipfile.ZipInfo("ADEChallengeData2016/images")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, "/etc")
    with pytest.raises(LayoutError, match="has a link"):
        extract(_archive(path), path, tmp_path / "other")


def test_half_an_archive_is_refused(root, tmp_path):
    path = _zip(tmp_path / "ADEChallengeData2016.zip", root)
    archive = _archive(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LayoutError, match="download it again"):
        extract(archive, path, tmp_path / "other")
    with pytest.raises(LayoutError, match="no whole zip file"):
        extract(dataclasses.replace(archive, md5=""), path, tmp_path / "other")


def _main(root: Path, *options: str, archives=ARCHIVES) -> int:
    return main(_small, archives, "title", "data/ade", [str(root), *options])


def test_the_command_s_status(root, tmp_path, capsys):
    assert _main(root, "--decode", "--json", str(tmp_path / "report.json")) == 0
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True
    assert "complete" in capsys.readouterr().out
    (root / "images/training/ADE_train_00000002.jpg").unlink()
    assert _main(root) == 1
    out = capsys.readouterr().out
    assert "ADE_train_00000002.jpg" in out
    assert f"download {ARCHIVES[0].url}" in out
    assert _main(tmp_path) == 2
    assert "did you mean" in capsys.readouterr().err


def test_the_command_extracts(root, tmp_path, capsys):
    (tmp_path / "ade").mkdir()
    path = _zip(tmp_path / "ade/ADEChallengeData2016.zip", root)
    other = tmp_path / "ade/ADEChallengeData2016"
    archives = [_archive(path)]
    assert _main(other, archives=archives) == 2
    assert "is not, or not wholly, extracted: --extract" in capsys.readouterr().out
    assert _main(other, "--extract", archives=archives) == 0


@pytest.mark.parametrize("options", [["--jobs", "0"], ["--json", "nowhere/report.json"], ["--unknown"]])
def test_bad_arguments(root, options):
    with pytest.raises(SystemExit) as error:
        _main(root, *options)
    assert error.value.code == 2


def test_the_script(root, monkeypatch, capsys):
    """Against the published numbers."""
    assert trees.run_script(monkeypatch, TOOL, str(root)) == 1
    assert "missing: 20,207 of images/training" in capsys.readouterr().out
