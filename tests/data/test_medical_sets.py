import gzip
import json
import shutil
import sys
from itertools import combinations
from pathlib import Path

import pytest
from data import trees
from PIL import Image

pytest.importorskip("nibabel")

from vision_ssm.data import LayoutError, Wrong, acdc, amos, isic, synapse
from vision_ssm.data.btcv import Btcv
from vision_ssm.data.medical_command import SETS, main
from vision_ssm.data.volume_sets import CaseFiles

TOOL = Path(__file__).parents[2] / "tools" / "prepare_medical.py"
PATIENTS = {"training": (3,), "validation": (2,), "test": (1,)}
AMOS = {"training": 40, "validation": 20}
ISIC = isic.Isic({("images", "masks"): 6, ("more", "more_masks"): 2}, validation=3)
OWN = {("train/images", "train/masks"): 5, ("val/images", "val/masks"): 3}
ED = "training/patient002/patient002_frame01"


def _wrong(report) -> Wrong:
    assert not report.ok
    assert not report.missing
    (wrong,) = report.wrong
    return wrong


def _missing(report) -> list[tuple]:
    assert not report.ok
    return [(lack.where, lack.count, lack.names) for lack in report.missing]


# Splits


def test_acdc_split():
    """70, 10 and 20 patients, none twice."""
    assert [len(acdc.SPLITS[split]) for split in ("training", "validation", "test")] == [70, 10, 20]
    assert not any({*one} & {*other} for one, other in combinations(acdc.SPLITS.values(), 2))
    assert sorted(n for numbers in acdc.SPLITS.values() for n in numbers) == list(range(1, 101))


def test_synapse_split():
    training, test = {*synapse.EXPECTED.training}, {*synapse.EXPECTED.validation}
    assert (len(training), len(test)) == (18, 12)
    assert training | test == {*range(1, 11), *range(21, 41)}


def test_isic_numbers():
    assert [sum(year.folders.values()) - year.validation for year in (isic.ISIC17, isic.ISIC18)] == [1500, 1886]


# ACDC


@pytest.fixture
def hearts(tmp_path) -> Path:
    return trees.acdc(tmp_path / "acdc", range(1, 4))


def _acdc(root, **kwargs):
    return acdc.check_acdc(root, expected=PATIENTS, **kwargs)


@pytest.mark.parametrize("top", ["training", "database/training"])
def test_acdc(tmp_path, top):
    seen = []
    report, splits = _acdc(trees.acdc(tmp_path, range(1, 4), top), progress=lambda *at: seen.append(at))
    assert report.ok, report.lines()
    assert seen[-1] == (6, 6)
    name = f"{top}/patient003/patient003"
    assert splits["training"] == [
        CaseFiles(f"{name}_frame{frame}.nii.gz", f"{name}_frame{frame}_gt.nii.gz") for frame in ("01", "13")
    ]
    assert [len(cases) for cases in splits.values()] == [2, 2, 2]


def test_acdc_lacks_files(hearts):
    shutil.rmtree(hearts / "training/patient001")
    (hearts / f"{ED}_gt.nii.gz").unlink()
    (hearts / "training/patient003/Info.cfg").unlink()
    report = _acdc(hearts)[0]
    names = ("patient001", "patient002/patient002_frame01_gt.nii.gz", "patient003/Info.cfg")
    assert _missing(report) == [("training", 3, names)]
    assert not report.wrong


@pytest.mark.parametrize("text", ["ED: 1\nGroup: DCM\n", "ED: 1\nES: twelve\n"])
def test_acdc_info_names_no_frame(hearts, text):
    (hearts / "training/patient002/Info.cfg").write_text(text)
    assert _wrong(_acdc(hearts)[0]) == Wrong("training/patient002/Info.cfg", "names no frame ES", "a line ES: 1")


def test_acdc_label_with_a_strange_id(hearts):
    trees.save_volume(hearts / f"{ED}_gt.nii.gz", trees.label(4))
    expected = Wrong(f"{ED}_gt.nii.gz", "has ids outside the classes: 4", "ids of 4 classes")
    assert _wrong(_acdc(hearts)[0]) == expected


def test_acdc_label_on_another_grid(hearts):
    trees.save_volume(hearts / f"{ED}_gt.nii.gz", trees.label(3)[:, :, :3])
    assert _wrong(_acdc(hearts)[0]) == Wrong(f"{ED}_gt.nii.gz", "has 6x5x3 voxels", "6x5x4, as its image")


def test_acdc_sform_of_1_mm(hearts):
    """ACDC's files are reported to have one beside a qform with the true spacing."""
    trees.unit_sform(hearts / f"{ED}.nii.gz")
    trees.unit_sform(hearts / f"{ED}_gt.nii.gz")
    report = _acdc(hearts)[0]
    assert report.ok, report.lines()


def test_acdc_elsewhere(hearts, tmp_path):
    with pytest.raises(LayoutError, match="no folder"):
        _acdc(tmp_path / "nowhere")
    with pytest.raises(LayoutError, match=r"did you mean .*acdc\?"):
        _acdc(hearts / "training")


# AMOS


@pytest.fixture
def abdomens(tmp_path) -> Path:
    return trees.amos(tmp_path / "amos22")


def test_amos(abdomens):
    """CT volumes, which are none here, are not looked at."""
    report, splits = amos.check_amos_mr(abdomens)
    assert report.ok, report.lines()
    assert {split: len(cases) for split, cases in splits.items()} == AMOS
    assert splits["validation"][0] == CaseFiles("imagesVa/amos_0550.nii.gz", "labelsVa/amos_0550.nii.gz")


@pytest.mark.parametrize(("number", "modality"), [(499, "CT"), (500, "CT"), (501, "MR"), (599, "MR"), (600, "MR")])
def test_amos_tells_mr_by_its_number(abdomens, number, modality):
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(abdomens / folder / "amos_0507.nii.gz", abdomens / folder / f"amos_{number:04d}.nii.gz")
    training = amos.check_amos_mr(abdomens)[1]["training"]
    assert len(training) == 40 + (modality == "MR")


def test_amos_lacks_cases(abdomens):
    shutil.rmtree(abdomens / "imagesVa")
    shutil.rmtree(abdomens / "labelsVa")
    for folder in ("imagesTr", "labelsTr"):
        (abdomens / folder / "amos_0510.nii.gz").unlink()
    assert _missing(amos.check_amos_mr(abdomens)[0]) == [
        ("imagesTr and labelsTr", 1, ()), ("imagesVa and labelsVa", 20, ()),
    ]  # fmt: skip


def test_amos_lacks_a_label(abdomens):
    (abdomens / "labelsVa/amos_0551.nii.gz").unlink()
    expected = Wrong("imagesVa/amos_0551.nii.gz", "has no label of its case", "one in labelsVa")
    assert _wrong(amos.check_amos_mr(abdomens)[0]) == expected


def test_amos_bad_files(abdomens):
    image, label = abdomens / "imagesTr/amos_0507.nii.gz", abdomens / "labelsTr/amos_0508.nii.gz"
    image.write_bytes(image.read_bytes()[:-20])
    trees.save_volume(label, trees.label(16))
    truncated, strange = amos.check_amos_mr(abdomens)[0].wrong
    assert truncated.file == "imagesTr/amos_0507.nii.gz" and truncated.what.startswith("cannot be read: ")
    assert strange == Wrong("labelsTr/amos_0508.nii.gz", "has ids outside the classes: 16", "ids of 16 classes")


def test_amos_unpacked_one_folder_deeper(abdomens):
    with pytest.raises(LayoutError, match=r"did you mean .*amos22\?"):
        amos.check_amos_mr(abdomens.parent)


# Synapse


def test_synapse(tmp_path):
    expected = Btcv(training=(21,), validation=(1, 2), test=(61,))
    root = trees.btcv(tmp_path)
    report, splits = synapse.check_synapse(root, expected=expected)
    assert report.ok, report.lines()
    assert [case.image for case in splits["validation"]] == ["imagesTr/img0001.nii.gz", "imagesTr/img0002.nii.gz"]
    labelled = Btcv(training=(21,), validation=(1, 2), test=())  # BTCV's test images are left alone
    report = synapse.check_synapse(root, expected=labelled)[0]
    assert report.ok and report.found["cases read"] == 3 and "imagesTs" not in "".join(report.notes)
    (root / "labelsTr/label0021.nii.gz").unlink()
    report, splits = synapse.check_synapse(root, expected=expected)
    assert _wrong(report).file == "imagesTr/img0021.nii.gz"
    assert not splits


# ISIC


@pytest.fixture
def skin(tmp_path) -> Path:
    return trees.isic(tmp_path / "isic", ISIC.folders)


def _isic(root):
    return isic.check_isic(root, expected=ISIC)


@pytest.mark.parametrize("value", [1, 255])
def test_isic(tmp_path, value):
    root = trees.isic(tmp_path, ISIC.folders, value)
    (root / "images/ISIC_0000000_superpixels.png").write_bytes(b"")
    (root / "images/ATTRIBUTION.txt").touch()
    report, splits = _isic(root)
    assert report.ok, report.lines()
    training, validation = splits["training"], splits["validation"]
    assert (len(training), len(validation), len({*training, *validation})) == (5, 3, 8)
    assert CaseFiles("more/ISIC_1000001.jpg", "more_masks/ISIC_1000001_segmentation.png") in (*training, *validation)
    assert _isic(root)[1] == splits


@pytest.mark.parametrize("ending", ["", "_segmentation"])
def test_isic_as_vm_unet_splits_it(tmp_path, ending):
    report, splits = _isic(trees.isic(tmp_path, OWN, ending=ending))
    assert report.ok, report.lines()
    assert not report.notes
    assert [len(splits[split]) for split in ("training", "validation")] == [5, 3]
    assert all(case.label.startswith("val/masks/") for case in splits["validation"])


def test_isic_lacks_files(skin):
    (skin / "masks/ISIC_0000003_segmentation.png").unlink()
    shutil.rmtree(skin / "more")
    shutil.rmtree(skin / "more_masks")
    report = _isic(skin)[0]
    assert _missing(report) == [("more and more_masks", 2, ())]
    assert report.wrong == [Wrong("images/ISIC_0000003.jpg", "has no label of its case", "one in masks")]


def test_isic_mask_of_another_size(skin):
    trees.save_mask(skin / "masks/ISIC_0000002_segmentation.png", 255, width=13)
    assert _wrong(_isic(skin)[0]) == Wrong(
        "masks/ISIC_0000002_segmentation.png", "has 13x8 voxels", "12x8, as its image"
    )


def test_isic_mask_with_greys(skin):
    trees.save_mask(skin / "masks/ISIC_0000002_segmentation.png", 254)
    assert _wrong(_isic(skin)[0]) == Wrong(
        "masks/ISIC_0000002_segmentation.png", "has ids outside the classes: 254", "one of 0, 1, 255"
    )


def test_isic_mask_in_colours(skin):
    trees.save_image(skin / "masks/ISIC_0000002_segmentation.png")
    assert "has 3 channels" in _wrong(_isic(skin)[0]).what


def test_isic_grey_picture(skin):
    Image.new("L", (12, 8)).save(skin / "images/ISIC_0000002.jpg")
    assert _wrong(_isic(skin)[0]) == Wrong("images/ISIC_0000002.jpg", "has the mode L", "RGB")


def test_isic_truncated_picture(skin):
    file = skin / "images/ISIC_0000002.jpg"
    file.write_bytes(file.read_bytes()[:-100])
    assert _wrong(_isic(skin)[0]).what.startswith("cannot be read: ")


def test_isic_elsewhere(tmp_path):
    with pytest.raises(LayoutError, match="holds neither images and masks nor train/images and train/masks"):
        _isic(tmp_path)
    with pytest.raises(LayoutError, match="no folder"):
        _isic(tmp_path / "nowhere")


# The command


def test_the_command_writes_the_list_elsewhere(tmp_path, capsys):
    root = trees.acdc(tmp_path / "acdc")
    (tmp_path / "lists").mkdir()
    output = tmp_path / "lists/mine.json"
    assert main("title", ["acdc", str(root), "--output", str(output), "--json", str(tmp_path / "report.json")]) == 0
    assert "140 training, 20 validation, 40 test" in capsys.readouterr().out
    content = json.loads(output.read_text(encoding="utf-8"))
    assert (content["modality"], content["tensorImageSize"], content["numTest"]) == ({"0": "MR"}, "3D", 40)
    assert content["labels"] == {"0": "background", "1": "right ventricle", "2": "myocardium", "3": "left ventricle"}
    test = content["test"][0]
    assert test["label"] == "../acdc/training/patient001/patient001_frame01_gt.nii.gz"
    assert (output.parent / test["label"]).is_file()
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True


@pytest.mark.parametrize("name", SETS)
def test_the_command_on_another_folder(name, tmp_path, capsys):
    """No list, and where to get the set."""
    assert main("title", [name, str(tmp_path)]) in (1, 2)
    said = "".join(capsys.readouterr())
    assert SETS[name].home in said
    assert not list(tmp_path.iterdir())


def test_the_command_on_a_damaged_set(abdomens, capsys):
    (abdomens / "imagesTr/amos_0510.nii.gz").write_bytes(gzip.compress(b"no NIfTI" * 100))
    assert main("title", ["amos_mr", str(abdomens)]) == 1
    out = capsys.readouterr().out
    assert "wrong: imagesTr/amos_0510.nii.gz: cannot be read" in out
    assert "no data list is written" in out
    assert not (abdomens / "amos_mr.json").exists()


@pytest.mark.parametrize("options", [["other"], ["acdc", "--jobs", "0"], ["acdc", "--output", "nowhere/a.json"]])
def test_bad_arguments(options):
    with pytest.raises(SystemExit) as error:
        main("title", options)
    assert error.value.code == 2


def test_nibabel_is_named_where_it_is_missing(abdomens, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert main("title", ["amos_mr", str(abdomens)]) == 2
    assert "install vision-ssm[medical]" in capsys.readouterr().err


def test_the_script(hearts, monkeypatch, capsys):
    """Against the published numbers."""
    assert trees.run_script(monkeypatch, TOOL, "acdc", str(hearts)) == 1
    assert "missing: 97 of training: patient004, " in capsys.readouterr().out
