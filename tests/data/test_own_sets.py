"""Sets of one's own: nnU-Net's names, files of four dimensions, and what is written where."""

import json
import os

import numpy as np
import pytest
from data import trees

pytest.importorskip("nibabel")

from vision_ssm.data import btcv_command, medical_command
from vision_ssm.data.btcv import check_btcv


def _main(root, *options):
    return btcv_command.main("title", "data/btcv", [str(root), *map(str, options)])


@pytest.fixture
def nnunet(tmp_path):
    """Three cases of two channels, one of them for prediction, with nnU-Net's description."""
    root = tmp_path / "Dataset001_Own"
    for i, case in enumerate(("la_01", "la_02", "x")):
        for channel in range(2):
            folder = "imagesTr" if i < 2 else "imagesTs"
            trees.save_volume(root / folder / f"{case}_{channel:04d}.nii.gz", trees.volume(10 * i + channel))
        if i < 2:
            trees.save_volume(root / f"labelsTr/{case}.nii.gz", trees.label(3))
    stated = dict(
        channel_names={"0": "T1", "1": "T2"},
        labels=dict(background=0, organ=1, tumour=2, ignore=3),
        file_ending=".nii.gz",
    )
    (root / "dataset.json").write_text(json.dumps(stated))
    return root


def test_nnunet_names_are_the_channels_of_a_case(nnunet, capsys):
    assert _main(nnunet, "--validation", 1) == 0
    assert "ignore_label=3" in capsys.readouterr().out
    content = json.loads((nnunet / "dataset_0.json").read_text())
    assert content["labels"] == {"0": "background", "1": "organ", "2": "tumour"}
    assert content["modality"] == {"0": "T1", "1": "T2"}
    cases = [*content["training"], *content["validation"]]
    for case, name in zip(sorted(cases, key=lambda case: case["label"]), ("la_01", "la_02"), strict=True):
        images = [f"imagesTr/{name}_{i:04d}.nii.gz" for i in range(2)]
        assert case == dict(image=images, label=f"labelsTr/{name}.nii.gz")
    assert content["test"] == [dict(image=["imagesTs/x_0000.nii.gz", "imagesTs/x_0001.nii.gz"])]


def test_one_channel_in_nnunet_s_names_is_one_file(nnunet):
    for path in nnunet.rglob("*_0001.nii.gz"):
        path.unlink()
    assert _main(nnunet, "--validation", 1, "--labels", nnunet / "dataset.json") == 0
    content = json.loads((nnunet / "dataset_0.json").read_text())
    assert content["test"] == ["imagesTs/x_0000.nii.gz"] and isinstance(content["training"][0]["image"], str)


def test_a_channel_that_is_missing_is_named(nnunet):
    (nnunet / "imagesTr/la_02_0001.nii.gz").unlink()
    report, _ = check_btcv(nnunet, labels=("a", "b", "c"), ignore_label=3)
    assert "has no channel 0001 of its case" in str(report.wrong) and "la_02_0000" in report.wrong[0].file


def test_channels_on_another_grid_are_named(nnunet):
    trees.save_volume(nnunet / "imagesTr/la_01_0001.nii.gz", trees.volume(1)[:, :, :3])
    report, _ = check_btcv(nnunet, labels=("a", "b", "c"), ignore_label=3)
    (wrong,) = report.wrong
    assert wrong.file == "imagesTr/la_01_0001.nii.gz" and "as other channels" in wrong.expected


def test_numbers_at_the_end_of_plain_names_are_no_channels(tmp_path):
    for i in range(2):
        trees.save_volume(tmp_path / f"imagesTr/amos_{i:04d}.nii.gz", trees.volume(i))
        trees.save_volume(tmp_path / f"labelsTr/amos_{i:04d}.nii.gz", trees.label(2))
    report, cases = check_btcv(tmp_path, labels=("a", "b", "c"))
    assert report.ok and list(cases.labelled) == ["amos_0000", "amos_0001"]


@pytest.fixture
def four(tmp_path):
    """Three cases in files of four dimensions."""
    for i in range(3):
        voxels = np.stack([trees.volume(10 * i + channel) for channel in range(4)], -1)
        trees.save_volume(tmp_path / f"set/imagesTr/c{i}.nii.gz", voxels)
        trees.save_volume(tmp_path / f"set/labelsTr/c{i}.nii.gz", trees.label(1))
    return tmp_path / "set"


def test_files_of_four_dimensions(four):
    assert _main(four, "--validation", 1, "--labels", "background", "tumour") == 0
    content = json.loads((four / "dataset_0.json").read_text())
    assert len(content["modality"]) == 4 and content["numTraining"] == 2


def test_other_channels_and_labels_of_four_dimensions(four):
    trees.save_volume(four / "imagesTr/c1.nii.gz", np.stack([trees.volume(0)] * 3, -1))
    trees.save_volume(four / "labelsTr/c2.nii.gz", np.stack([trees.label(1)] * 4, -1))
    report, _ = check_btcv(four, labels=("a", "b"))
    assert [(wrong.file, wrong.what) for wrong in report.wrong] == [
        ("imagesTr/c1.nii.gz", "has 3 channels"),
        ("labelsTr/c2.nii.gz", "has the shape (6, 5, 4, 4)"),
    ]


@pytest.mark.parametrize("option", ["--output", "--json"])
@pytest.mark.parametrize("where", ["imagesTr/c0.nii.gz", "imagesTr/notes.json", "link.json", "names.json", "sub"])
def test_nothing_that_is_read_is_written_over(where, option, four, capsys):
    (four / "names.json").write_text('["background", "tumour"]')
    (four / "imagesTr/notes.json").write_text("{}")
    os.link(four / "imagesTr/c1.nii.gz", four / "link.json")
    (four / "sub").mkdir()
    before = {path: path.read_bytes() for path in four.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        _main(four, "--validation", 1, "--labels", four / "names.json", option, four / where)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    expected = ("would be written over, which is read", "a JSON file: expected a name", "is a folder")
    assert any(words in message for words in expected)
    assert {path: path.read_bytes() for path in four.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "options", [("--labels", "dataset_0.json"), ("--output", "dataset.json"), ("--json", "dataset_0.json")]
)
def test_neither_are_files_that_no_option_names(options, four, capsys):
    """nnU-Net's own file is read, and the data list has a name by default."""
    (four / "dataset_0.json").write_text('["background", "tumour"]')
    (four / "dataset.json").write_text('{"labels": {"background": 0, "tumour": 1}}')
    before = {path: path.read_bytes() for path in four.rglob("*.json")}
    with pytest.raises(SystemExit):
        _main(four, "--validation", 1, options[0], four / options[1])
    message = capsys.readouterr().err
    assert "would be written over" in message or "expected two files" in message
    assert {path: path.read_bytes() for path in four.rglob("*.json")} == before


def test_reports_and_lists_are_two_files(four, capsys):
    for main in (_main, lambda root, *options: medical_command.main("title", ["acdc", str(root), *map(str, options)])):
        with pytest.raises(SystemExit):
            main(four, "--json", four / "a.json", "--output", four / "labelsTr/../a.json")
        assert "expected two files" in capsys.readouterr().err
    assert _main(four, "--validation", 1, "--labels", "a", "b", "--output", four / "dataset_0.json") == 0
    assert _main(four, "--validation", 1, "--labels", "a", "b", "--output", four / "dataset_0.json") == 0  # its own
