import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("nibabel")
pytest.importorskip("mmengine")
pytest.importorskip("matplotlib")

import nibabel
from mmengine.registry import HOOKS
from PIL import Image

from vision_ssm.demo.volume_sheet import Volumes, VolumeSheet, _colours, draw, find_volumes, planes

CLASSES = ("background", "a", "b", "c")
SHAPE = 12, 10, 8


def _save(path: Path, voxels: np.ndarray, codes: str = "RAS") -> Path:
    """A volume given in the order of RAS, saved with its axes in another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(file.affine), nibabel.orientations.axcodes2ornt(codes)
    )
    nibabel.save(file.as_reoriented(turn), path)
    return path


def _labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[9:11, 2:4, 3:5] = 1  # right, behind, low
    labels[1:3, 6:8, 3:5] = 2  # left, in front, low
    labels[1:3, 6:8, 6] = 3  # left, in front, high
    return labels


@pytest.fixture
def work(tmp_path) -> Path:
    """Three cases with a list; the first and the last have a prediction."""
    image = np.random.default_rng(0).integers(-200, 300, SHAPE).astype(np.int16)
    records = []
    for i, codes in enumerate(("LAS", "RPI", "PSR")):
        record = dict(image=f"imagesTr/img{i}.nii.gz", label=f"labelsTr/label{i}.nii.gz")
        _save(tmp_path / record["image"], image, codes)
        _save(tmp_path / record["label"], _labels(), codes)
        if i != 1:
            _save(tmp_path / f"predictions/img{i}.nii.gz", _labels(), codes)
        records.append(record)
    content = dict(validation=records, labels={str(i): name for i, name in enumerate(CLASSES)})
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path


def test_slices_show_most_organs():
    labels = _labels()
    found = planes([labels], labels)
    assert set(np.unique(found["axial"][0])) == {0, 1, 2}
    assert set(np.unique(found["coronal"][0])) == {0, 2, 3}
    assert set(np.unique(found["sagittal"][0])) == {0, 2, 3}


def test_slices_are_in_radiological_orientation():
    """Columns grow to the patient's left or back, rows to the back or the feet."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")  # to the right, the front and the head
    found = planes([x, y, z], _labels())
    for plane, column, row in (("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2)):
        slices = found[plane]
        across = ({0, 1, 2} - {column, row}).pop()
        assert np.unique(slices[across]).size == 1
        assert (np.diff(slices[column], axis=1) == -1).all()
        assert (np.diff(slices[row], axis=0) == -1).all()
        assert slices[column].shape == (SHAPE[row], SHAPE[column])


def test_a_colour_for_each_organ():
    for number in (2, 14, 19, 40):
        colours = _colours(number)
        assert colours.shape == (number, 4)
        assert colours[0, 3] == 0
        assert len(np.unique(colours, axis=0)) == number
        assert (colours[1:, :3].max(1) - colours[1:, :3].min(1) > 0.1).all()  # none is grey


def test_the_picture_has_every_colour_in_place(work):
    """Rows and columns of the picture: an organ on the patient's right is on the left of it."""
    path = draw(find_volumes(_items(work), work / "predictions", 1), CLASSES, work / "sheet.png")
    with Image.open(path) as file:
        assert file.format == "PNG"
        pixels = np.asarray(file.convert("RGB")).astype(int)
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 1200
    panel = pixels[: int(0.8 * pixels.shape[0]), : pixels.shape[1] // 6]  # the axial slice and its label
    hue = (_colours(4)[1:3, :3] * 0.55 * 255)[:, None, None]
    rest = panel - hue  # the image beneath adds a grey of up to 45 %
    grey = (rest.max(-1) - rest.min(-1) < 12) & (rest.min(-1) > -6) & (rest.max(-1) < 0.45 * 255 + 6)
    right, left = (np.argwhere(mask)[:, 1].mean() for mask in grey)
    assert right < left


def _items(work):
    records = json.loads((work / "list.json").read_text())["validation"]
    return [{key: str(work / path) for key, path in record.items()} for record in records]


def test_find_volumes(work):
    cases = find_volumes(_items(work), work / "predictions", 5)
    assert [case.image.name for case in cases] == ["img0.nii.gz", "img2.nii.gz"]
    assert cases[0].prediction == work / "predictions/img0.nii.gz"
    assert len(find_volumes(_items(work), work / "predictions", 1)) == 1
    several = [item | {"image": [item["image"], "other.nii.gz"]} for item in _items(work)]
    pictures = [dict(image="a.png", label="b.png")]
    assert find_volumes([*pictures, *several], work / "predictions", 5) == cases


def test_a_prediction_on_another_grid_is_refused(work):
    path = _save(work / "predictions/img0.nii.gz", _labels(), "RAS")
    nibabel.save(nibabel.Nifti1Image(_labels(), np.diag([2.0, 2.0, 4.0, 1.0])), path)
    case = Volumes(work / "imagesTr/img0.nii.gz", work / "labelsTr/label0.nii.gz", path)
    with pytest.raises(ValueError, match="is not on the grid") as error:
        draw([case], CLASSES, work / "sheet.png")
    assert str(path) in str(error.value)
    assert not (work / "sheet.png").exists()


def test_nothing_to_draw(work):
    with pytest.raises(ValueError, match="at least one case"):
        draw([], CLASSES, work / "sheet.png")


def _runner(work, folder):
    dataset = SimpleNamespace(items=_items(work), metainfo=dict(classes=CLASSES), label_map={})
    return SimpleNamespace(
        work_dir=str(folder), logger=logging.getLogger("sheet"), val_dataloader=SimpleNamespace(dataset=dataset)
    )


def test_the_hook(work, caplog):
    hook, runner = HOOKS.build(dict(type="VolumeSheet", samples=2, window=[-100, 200])), _runner(work, work)
    assert isinstance(hook, VolumeSheet)
    hook.before_val_epoch(runner)
    hook.after_val_epoch(runner, dict(dice=np.float32(0.5)))
    assert json.loads((work / "metrics.json").read_text()) == dict(dice=0.5)
    assert not (work / "predictions.png").exists()
    with caplog.at_level("INFO"):
        hook.after_run(runner)
    assert "wrote" in caplog.text
    assert (work / "predictions.png").stat().st_size > 10_000


def test_the_hook_without_predictions(work, caplog):
    hook, runner = VolumeSheet(), _runner(work, work / "elsewhere")
    hook.before_val_epoch(runner)
    hook.after_run(runner)
    assert "holds no prediction" in caplog.text
    assert not (work / "elsewhere").exists()


def test_mapped_labels_are_drawn_as_their_classes(work):
    """Ids that the map leaves out look like background."""
    cases = find_volumes(_items(work), work / "predictions", 1)
    hidden = draw(cases, CLASSES, work / "hidden.png", label_map={1: 0}).read_bytes()
    assert hidden == draw(cases, CLASSES, work / "again.png", label_map={1: 0, 2: 0}).read_bytes()
    assert hidden != draw(cases, CLASSES, work / "all.png").read_bytes()
