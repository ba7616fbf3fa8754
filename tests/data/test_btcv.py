import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data import trees

pytest.importorskip("nibabel")

import nibabel

from vision_ssm.data import LayoutError, Wrong, btcv_command
from vision_ssm.data.btcv import LABELS, TEST, TRAINING, VALIDATION, Btcv, check_btcv
from vision_ssm.data.volume_sets import CaseFiles, data_list, split_cases

EXPECTED = Btcv(training=(1, 2, 21), validation=(35, 40), test=(61,))
TOOL = Path(__file__).parents[2] / "tools" / "prepare_btcv.py"
IMAGE, LABEL = "imagesTr/img0002.nii.gz", "labelsTr/label0002.nii.gz"


@pytest.fixture
def root(tmp_path) -> Path:
    return trees.btcv(tmp_path / "btcv")


def _check(root, **kwargs):
    return check_btcv(root, **{"expected": EXPECTED, **kwargs})[0]


def _wrong(report) -> Wrong:
    assert not report.ok
    assert not report.missing
    (wrong,) = report.wrong
    return wrong


def test_the_published_split():
    assert (len(TRAINING), len(VALIDATION), len(TEST), len(LABELS)) == (24, 6, 20, 14)
    assert {*TRAINING, *VALIDATION} == {*range(1, 11), *range(21, 41)}


def test_a_complete_set(root):
    seen = []
    report = _check(str(root), jobs=2, progress=lambda *at: seen.append(at))
    assert report.ok, report.lines()
    assert [report.found[name] for name in ("imagesTr", "labelsTr", "imagesTs")] == [5, 5, 1]
    assert seen == [(i + 1, 6) for i in range(6)]


@pytest.mark.parametrize("top", ["", "RawData/", "Abdomen/RawData/"])
def test_the_challenge_s_layout(tmp_path, top):
    layout = tuple(f"{top}{name}" for name in ("Training/img", "Training/label", "Testing/img"))
    report, found = check_btcv(trees.btcv(tmp_path, layout), expected=EXPECTED)
    assert report.ok, report.lines()
    assert found.labelled["0035"] == CaseFiles(f"{layout[0]}/img0035.nii.gz", f"{layout[1]}/label0035.nii.gz")


def test_the_whole_set_is_expected_by_default(root):
    report = _check(root, expected=Btcv())
    assert {m.where: m.count for m in report.missing} == {"imagesTr": 25, "labelsTr": 25, "imagesTs": 19}
    assert report.missing[0].names[0] == "img0003.nii.gz"


def test_a_missing_case_and_missing_tests(root):
    (root / IMAGE).unlink()
    (root / LABEL).unlink()
    shutil.rmtree(root / "imagesTs")
    report = _check(root)
    assert [(m.where, m.names) for m in report.missing] == [
        ("imagesTr", ("img0002.nii.gz",)),
        ("labelsTr", ("label0002.nii.gz",)),
    ]
    assert report.notes == ["no images in imagesTs: training and validation need none"]


@pytest.mark.parametrize(("gone", "there", "what"), [(IMAGE, LABEL, "image"), (LABEL, IMAGE, "label")])
def test_a_case_without_its_partner(root, gone, there, what):
    (root / gone).unlink()
    assert _wrong(_check(root)) == Wrong(there, f"has no {what} of its case", f"one in {gone.split('/')[0]}")


def test_an_empty_file(root):
    (root / IMAGE).write_bytes(b"")
    wrong = _check(root).wrong
    assert wrong[0] == Wrong(IMAGE, "is empty", "an image or a label")
    assert [w.file for w in wrong] == [IMAGE, LABEL]


def test_others_are_left_out(root):
    trees.save_volume(root / "imagesTr/img0099.nii.gz", trees.volume(9))
    trees.save_volume(root / "labelsTr/label0099.nii.gz", trees.label())
    report, found = check_btcv(root, expected=EXPECTED)
    assert report.ok
    assert "0099" not in found.labelled
    assert report.notes == ["imagesTr/img0099.nii.gz is not of BTCV and is left out"]


def test_two_files_of_one_case(root):
    shutil.copy(root / IMAGE, root / "imagesTr/0002.nii.gz")
    report = _check(root, expected=None)
    assert report.wrong[0].what == "is of the same case as 0002.nii.gz"


@pytest.mark.parametrize("name", [IMAGE, LABEL, "imagesTs/img0061.nii.gz"])
@pytest.mark.parametrize("cut", [4, 100])
def test_a_truncated_file(root, name, cut):
    """Even one that lacks no voxel, but half of the checksum."""
    raw = (root / name).read_bytes()
    (root / name).write_bytes(raw[:-cut])
    wrong = _wrong(_check(root))
    assert wrong.file == name
    assert wrong.what.startswith("cannot be read: ")


def test_a_damaged_file(root):
    raw = bytearray((root / IMAGE).read_bytes())
    raw[-8] ^= 1  # of the checksum
    (root / IMAGE).write_bytes(bytes(raw))
    assert "cannot be read" in _wrong(_check(root)).what


def test_fewer_voxels_than_the_header_says(root):
    raw = gzip.decompress((root / IMAGE).read_bytes())
    (root / IMAGE).write_bytes(gzip.compress(raw[:-10]))
    assert _wrong(_check(root)).what.startswith("cannot be read: ")


@pytest.mark.parametrize("raw", [b"<html>not found</html>", gzip.compress(b"no NIfTI" * 100)], ids=["page", "gzip"])
def test_a_file_that_is_no_volume(root, raw):
    (root / LABEL).write_bytes(raw)
    wrong = _wrong(_check(root))
    assert wrong.file == LABEL
    assert str(root) not in wrong.what


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite(root, value):
    voxels = trees.volume(0).astype(np.float32)
    voxels[1, 2, :2] = value
    trees.save_volume(root / IMAGE, voxels)
    assert _wrong(_check(root)) == Wrong(IMAGE, "2 voxels are not finite", "numbers")


def test_a_label_of_another_shape(root):
    trees.save_volume(root / LABEL, trees.label()[:, :, :3])
    assert _wrong(_check(root)) == Wrong(LABEL, "has 6x5x3 voxels", "6x5x4, as its image")


@pytest.mark.parametrize(("shift", "bad"), [(0.05, False), (0.5, True)])
def test_a_label_off_its_image(root, shift, bad):
    affine = nibabel.load(root / IMAGE).affine.copy()
    affine[0, 3] += shift  # mm, of voxels of 0.8 mm
    trees.save_volume(root / LABEL, trees.label(), affine)
    report = _check(root)
    assert report.ok != bad
    if bad:
        assert _wrong(report) == Wrong(LABEL, "its affine puts voxels 0.6 voxels off", "the affine of its image")


def test_a_mirrored_label(root):
    affine = nibabel.load(root / IMAGE).affine @ np.diag([-1.0, 1, 1, 1])
    trees.save_volume(root / LABEL, trees.label(), affine)
    assert "its affine puts voxels" in _wrong(_check(root)).what


@pytest.mark.parametrize(("value", "dtype"), [(14, np.uint8), (-1, np.int16)])
def test_a_class_out_of_range(root, value, dtype):
    voxels = trees.label().astype(dtype)
    voxels[0, 0, 0] = value
    trees.save_volume(root / LABEL, voxels)
    assert _wrong(_check(root)) == Wrong(LABEL, f"has ids outside the classes: {value}", "ids of 14 classes")


@pytest.mark.parametrize("value", [1.5, np.nan])
def test_a_label_that_is_not_whole(root, value):
    voxels = trees.label().astype(np.float32)
    voxels[0, 0, 0] = value
    trees.save_volume(root / LABEL, voxels)
    wrong = _wrong(_check(root))
    assert wrong.file == LABEL
    assert "has values that are no whole numbers, expected class ids" in wrong.what


def test_whole_numbers_stored_as_floats_are_fine(root):
    trees.save_volume(root / LABEL, trees.label().astype(np.float32))
    assert _check(root).ok


@pytest.mark.parametrize("scale", [0.001, 30])
def test_voxels_of_another_unit(root, scale):
    affine = np.diag([0.8 * scale, 0.8 * scale, 3 * scale, 1])
    trees.save_volume(root / IMAGE, trees.volume(2), affine)
    wrong = _wrong(_check(root))
    assert wrong.file == IMAGE
    assert wrong.what.startswith("has voxels of ")


def test_no_orientation(root):
    file = nibabel.load(root / IMAGE)
    file.set_sform(None, code=0)
    file.set_qform(None, code=0)
    plain = nibabel.Nifti1Image(trees.volume(2), None, file.header)
    nibabel.save(plain, root / IMAGE)
    assert "right and left are unknown" in _wrong(_check(root)).expected


def test_more_than_three_dimensions(root):
    trees.save_volume(root / IMAGE, trees.volume(2)[..., None].repeat(2, -1))
    assert _wrong(_check(root)).what == "has the shape (6, 5, 4, 2)"


def test_the_wrong_folder(root, tmp_path):
    with pytest.raises(LayoutError, match=r"no folder .*elsewhere"):
        check_btcv(tmp_path / "elsewhere")
    with pytest.raises(LayoutError, match="is a file"):
        check_btcv(root / IMAGE)
    (tmp_path / "RawData.zip").touch()
    with pytest.raises(LayoutError, match=r"neither imagesTr and labelsTr or Training/img .*unzip it"):
        check_btcv(tmp_path)


def test_split_of_one_s_own():
    keys = [f"{i:03d}" for i in range(10)]
    training, validation = split_cases(keys, 0.2, seed=1)
    assert len(validation) == 2
    assert sorted([*training, *validation]) == keys
    assert split_cases(keys[::-1], 2, seed=1) == (training, validation)
    assert any(split_cases(keys, 2, seed=seed) != (training, validation) for seed in range(2, 6))


@pytest.mark.parametrize("validation", [0, 0.01, 10, 11, 0.99, -1, 2.5])
def test_an_empty_split_is_refused(validation):
    with pytest.raises(ValueError, match="validation"):
        split_cases([f"{i:03d}" for i in range(10)], validation, 0)
    with pytest.raises(ValueError, match="no case for validation"):
        data_list(LABELS, {"training": [CaseFiles("a", "b")], "validation": []}, "set")


def _main(root: Path, *options: str) -> int:
    return btcv_command.main("title", "data/btcv", [str(root), *options])


def test_the_command_writes_the_list(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(btcv_command, "Btcv", lambda: EXPECTED)
    monkeypatch.setattr(btcv_command, "TRAINING", EXPECTED.training)
    monkeypatch.setattr(btcv_command, "VALIDATION", EXPECTED.validation)
    assert _main(root, "--json", str(tmp_path / "report.json")) == 0
    content = json.loads((root / "dataset_0.json").read_text(encoding="utf-8"))
    assert content["training"] == [
        dict(image=f"imagesTr/img{n:04d}.nii.gz", label=f"labelsTr/label{n:04d}.nii.gz") for n in EXPECTED.training
    ]
    assert [record["image"] for record in content["validation"]] == [
        "imagesTr/img0035.nii.gz",
        "imagesTr/img0040.nii.gz",
    ]
    assert content["test"] == ["imagesTs/img0061.nii.gz"]
    assert content["labels"]["6"] == "liver"
    assert "3 training, 2 validation, 1 test" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True


def test_the_command_writes_no_list_of_an_incomplete_set(root, capsys):
    assert _main(root) == 1
    assert not (root / "dataset_0.json").exists()
    out = capsys.readouterr().out
    assert "img0003.nii.gz" in out
    assert "no data list is written" in out


def test_files_that_are_not_compressed(root):
    """They are told, unless they lie beside the compressed ones."""
    for path in sorted(root.glob("*Tr/*.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    assert _check(root, expected=None).ok
    for path in root.glob("*Tr/*.nii.gz"):
        path.unlink()
    report = _check(root, expected=None)
    assert len(report.wrong) == 10
    assert report.wrong[0] == Wrong("imagesTr/img0001.nii", "is not compressed", "a .nii.gz file: gzip it")


def test_the_command_on_one_s_own_set(root, tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    output = tmp_path / "lists/mine.json"
    names = tmp_path / "names.json"
    names.write_text(json.dumps({str(i): f"organ {i}" for i in range(14)}))
    assert _main(root, "--validation", "2", "--seed", "3", "--labels", str(names), "--output", str(output)) == 0
    content = json.loads(output.read_text(encoding="utf-8"))
    assert (len(content["training"]), len(content["validation"])) == (3, 2)
    assert content["labels"]["13"] == "organ 13"
    for record in (*content["training"], *content["validation"]):
        assert record["image"].startswith("../btcv/imagesTr/")
        assert (output.parent / record["image"]).is_file()
        assert (output.parent / record["label"]).is_file()
    assert _main(root, "--validation", "2", "--labels", "background", "liver") == 1
    assert "(expected ids of 2 classes)" in capsys.readouterr().out
    assert _main(root, "--validation", "5") == 2
    assert "leaves a split empty" in capsys.readouterr().err


def test_monai_reads_the_list(root):
    data = pytest.importorskip("monai.data")
    assert _main(root, "--validation", "0.4") == 0
    records = data.load_decathlon_datalist(root / "dataset_0.json", True, "validation")
    assert len(records) == 2
    assert Path(records[0]["label"]).is_file()


@pytest.mark.parametrize("content", [{"0": "background", "2": "liver"}, ["background"], [1, 2], "liver"])
def test_bad_names_of_classes(root, tmp_path, content, capsys):
    (tmp_path / "names.json").write_text(json.dumps(content))
    assert _main(root, "--validation", "2", "--labels", str(tmp_path / "names.json")) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--jobs", "0"], ["--json", "nowhere/a.json"], ["--output", "nowhere/a.json"], ["--labels", "a", "b"]],
)
def test_bad_arguments(root, options):
    with pytest.raises(SystemExit) as error:
        _main(root, *options)
    assert error.value.code == 2


def test_nothing_there_yet(tmp_path, capsys):
    assert _main(tmp_path / "btcv") == 2
    err = capsys.readouterr().err
    assert "no folder" in err
    assert "syn3193805" in err


def test_nibabel_is_named_where_it_is_missing(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert _main(root) == 2
    assert "install vision-ssm[medical]" in capsys.readouterr().err


def test_the_script(root):
    """From a bare source tree, against the published numbers."""
    result = subprocess.run([sys.executable, str(TOOL), str(root)], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "missing: 25 of imagesTr: img0003.nii.gz" in result.stdout
