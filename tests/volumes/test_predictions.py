"""Tests by config: predictions lie in their image's original geometry, and what fails is named."""

import json

import nibabel
import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from monai.data import MetaTensor
from monai.transforms import Spacing
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from volumes import tiny_volumes
from volumes.tiny_volumes import CLASSES, oblique

import vision_ssm.volumes  # noqa: F401 - registers
from vision_ssm.engine import ConfigError, DataError, train
from vision_ssm.engine import test as evaluate
from vision_ssm.volumes import Case, VolumeSegmentor

PERFECT = dict(type="volumes.tiny_volumes.Threshold")
# What is between the file's grid and the network's: none of it may lose a voxel.
GEOMETRIES = {
    "oblique": oblique(),
    "not turned": np.diag([-1.0, -1.5, 2.0, 1.0]),
    "axes permuted": oblique()[:, [2, 0, 1, 3]],
    "not flipped": oblique(flipped=False),
}


@pytest.fixture
def checkpoint(tmp_path):
    """Of the perfect network."""
    path = tmp_path / "perfect.pth"
    torch.save(dict(state_dict=VolumeSegmentor(PERFECT, dict(roi_size=(12, 12, 12))).state_dict()), path)
    return path


def _perfect(root, **changes):
    cfg = tiny_volumes.config(root)
    cfg.model.network = PERFECT
    cfg.merge_from_dict(changes)
    return cfg


def _pixdim(affine):
    """Spacing after the orientation to RAS, for which nothing is resampled."""
    reoriented = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine)).affine
    return tuple(float(side) for side in nibabel.affines.voxel_sizes(reoriented))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_perfect_network_is_perfect_on_the_original_grid(name, checkpoint, tmp_path):
    affine = GEOMETRIES[name]
    root = tiny_volumes.write(tmp_path / "data", train=1, affine=affine)
    cfg = _perfect(root)
    cfg.test_dataloader.dataset.transforms[3].pixdim = _pixdim(affine)
    metrics = evaluate(cfg, checkpoint, tmp_path / "run", out=tmp_path / "out")
    assert metrics["mean_dice"] == 1 and metrics["mean_hd95"] == 0
    assert {f"dice/{organ}" for organ in CLASSES[1:]} <= metrics.keys()
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    written = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert written == ["img0001.nii.gz", "img0002.nii.gz"]
    for i in (1, 2):
        image = nibabel.load(root / f"imagesTr/img{i:04d}.nii.gz")
        truth = nibabel.load(root / f"labelsTr/label{i:04d}.nii.gz")
        prediction = nibabel.load(tmp_path / f"out/img{i:04d}.nii.gz")
        assert np.array_equal(prediction.affine, image.affine) and prediction.shape == image.shape
        assert prediction.get_data_dtype() == np.uint8
        assert prediction.header.get_zooms() == image.header.get_zooms()
        assert int(prediction.header["sform_code"]) == int(image.header["sform_code"])
        assert int(prediction.header["qform_code"]) == int(image.header["qform_code"])
        assert np.array_equal(np.asarray(prediction.dataobj), np.asarray(truth.dataobj))


def test_finer_grid_is_read_at_the_original_centres(tmp_path):
    """Upsampled by three along an axis each original voxel is the middle one of three."""
    affine = oblique()
    fine = affine @ np.diag([1, 1, 1 / 3, 1])
    fine[:3, 3] = (affine @ [0, 0, -1 / 3, 1])[:3]
    original = torch.randint(0, 9, (6, 5, 4), dtype=torch.uint8)
    labels = original.repeat_interleave(3, 2)
    labels[..., ::3] = labels[..., 2::3] = 77
    case = Case("x.nii.gz", torch.from_numpy(fine), torch.from_numpy(affine), (6, 5, 4))
    assert torch.equal(case.on_original_grid(labels), original)
    assert case.spacing == pytest.approx(tiny_volumes.SPACING)


def test_oblique_grids_by_points():
    """Every voxel of the file by hand: its centre in millimetres, and the nearest voxel of the network's grid."""
    grid, file = oblique((1.3, 1.1, 2.3), angle=-0.4), oblique((0.9, 1.7, 1.6), flipped=False)
    grid[:3, 3] = (file @ [2.5, 1.2, 3.1, 1])[:3] - grid[:3, :3] @ [6, 2, 1]
    labels = torch.randint(1, 9, (9, 8, 7), dtype=torch.uint8)
    expected = np.zeros((11, 10, 12), np.uint8)
    for place in np.ndindex(expected.shape):
        index = np.rint(np.linalg.inv(grid) @ file @ [*place, 1])[:3].astype(int)
        if (index >= 0).all() and (index < labels.shape).all():
            expected[place] = labels[tuple(index)]
    assert 100 < (expected > 0).sum() < expected.size
    case = Case("x.nii.gz", torch.from_numpy(grid), torch.from_numpy(file), expected.shape)
    assert np.array_equal(case.on_original_grid(labels).numpy(), expected)


def test_large_files_are_read_in_slabs():
    """No tensor on the way takes more than a few times the result's memory."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.nbytes)
            return result

    affine = torch.eye(4, dtype=torch.float64)
    labels = torch.randint(0, 9, (130, 90, 100), dtype=torch.uint8)
    with Watch():
        found = Case("x.nii.gz", affine, affine, (130, 90, 100)).on_original_grid(labels)
    assert torch.equal(found, labels) and largest <= 2 * labels.nbytes


def test_outside_of_what_the_network_saw_is_background():
    affine = torch.eye(4, dtype=torch.float64)
    cropped = affine.clone()
    cropped[:3, 3] = torch.tensor([2.0, 1.0, 3.0])
    case = Case("x.nii.gz", cropped, affine, (7, 7, 7))
    result = case.on_original_grid(torch.ones(3, 4, 2, dtype=torch.uint8))
    expected = torch.zeros(7, 7, 7, dtype=torch.uint8)
    expected[2:5, 1:5, 3:5] = 1
    assert torch.equal(result, expected)


@pytest.mark.parametrize("slices", [82, 149, 150, 151])
def test_no_slice_of_the_file_is_lost_at_the_border(slices):
    """3 mm resampled to 2 mm: of some numbers of slices the last file voxel lies just on the border of the new grid."""
    affine = oblique((1.5, 1.5, 3.0))
    image = MetaTensor(torch.zeros(1, 4, 5, slices), affine=affine)
    resampled = Spacing((1.5, 1.5, 2.0))(image)
    case = Case("x.nii.gz", resampled.affine.double(), torch.from_numpy(affine), (4, 5, slices))
    assert case.on_original_grid(torch.ones(resampled.shape[1:], dtype=torch.uint8)).all()


def test_a_slice_in_a_nifti_file_stays_one(tmp_path):
    affine = oblique()
    labels = torch.randint(0, 3, (6, 5), dtype=torch.uint8)
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5), np.int16), affine), tmp_path / "x.nii.gz")
    case = Case(str(tmp_path / "x.nii.gz"), torch.from_numpy(affine), torch.from_numpy(affine), (6, 5))
    path = case.save(labels, tmp_path / "out")
    assert (path.name, case.name, case.unit) == ("x.nii.gz", "x.nii.gz", "mm")
    written = nibabel.load(path)
    assert np.array_equal(np.asanyarray(written.dataobj), labels.numpy())
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)


def test_scaled_integers_of_several_channels(tmp_path):
    """A 4D file whose voxels are int16 with a slope: the prediction is 3D, uint8 and not scaled."""
    root = tiny_volumes.write(tmp_path / "data", train=1, val=1)
    path = root / "imagesTr/img0001.nii.gz"
    voxels = nibabel.load(path).get_fdata()
    stored = nibabel.Nifti1Image(np.stack([voxels] * 3, -1), oblique())
    stored.set_data_dtype(np.int16)
    stored.header.set_xyzt_units("mm")
    nibabel.save(stored, path)
    assert nibabel.load(path).header["scl_slope"] not in (0, 1)
    cfg = _perfect(root)
    cfg.model.network = dict(type="volumes.tiny_volumes.ColourThreshold")
    model = VolumeSegmentor(cfg.model.network, dict(roi_size=(12, 12, 12)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "perfect.pth")
    assert evaluate(cfg, tmp_path / "perfect.pth", tmp_path / "run", out=tmp_path / "out")["mean_dice"] == 1
    prediction = nibabel.load(tmp_path / "out/img0001.nii.gz")
    truth = nibabel.load(root / "labelsTr/label0001.nii.gz")
    assert prediction.shape == truth.shape and prediction.get_data_dtype() == np.uint8
    assert np.array_equal(prediction.get_fdata(), truth.get_fdata()) and np.allclose(prediction.affine, oblique())
    assert prediction.header.get_xyzt_units()[0] == "mm"


def test_written_predictions_stay_when_a_volume_fails(checkpoint, tmp_path):
    root = tiny_volumes.write(tmp_path / "data", train=1, val=3)
    broken = root / "imagesTr/img0002.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"img0002\.nii\.gz"):
        evaluate(_perfect(root), checkpoint, tmp_path / "run", out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["img0001.nii.gz"]


def test_images_without_labels_are_predicted(checkpoint, tmp_path):
    root = tiny_volumes.write(tmp_path / "data", train=1)
    lists = json.loads((root / "dataset_0.json").read_text())
    lists["test"] = [entry["image"] for entry in lists["validation"]]
    (root / "dataset_0.json").write_text(json.dumps(lists))
    cfg = _perfect(root)
    cfg.test_dataloader.dataset.split = "test"
    assert evaluate(cfg, checkpoint, tmp_path / "run", out=tmp_path / "out") == {}
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_weights_of_the_network_alone(tmp_path):
    """A file with the names of a network that knows no others."""
    root = tiny_volumes.write(tmp_path / "data", train=1, val=1)
    torch.save(tiny_volumes.Threshold().state_dict(), tmp_path / "network.pth")
    assert evaluate(_perfect(root), tmp_path / "network.pth", tmp_path / "run")["mean_dice"] == 1


@pytest.mark.parametrize("outputs", [2, 7])
def test_outputs_and_classes_differ(outputs, tmp_path):
    cfg = tiny_volumes.config(tiny_volumes.write(tmp_path / "data", train=1, val=1))
    cfg.model.network.classes = outputs
    with pytest.raises(ConfigError, match=f"Small of {outputs} classes, the data has 3: background, ball, box"):
        train(cfg, tmp_path / "run")


def test_flips_by_option(checkpoint, tmp_path):
    root = tiny_volumes.write(tmp_path / "data", train=1)
    cfg = _perfect(root)
    assert evaluate(cfg, checkpoint, tmp_path / "run", tta=True)["mean_dice"] == 1  # those of the training
    cfg.tta_options = dict(model=dict(inference=dict(flips=(0, 1, 2))))
    assert evaluate(cfg, checkpoint, tmp_path / "run", tta=True)["mean_dice"] == 1
    cfg.tta_options = dict(model=dict(inference=dict(flips=(3,))))
    with pytest.raises(ConfigError, match="flips"):
        evaluate(cfg, checkpoint, tmp_path / "run", tta=True)


def test_drawing_is_refused(checkpoint, tmp_path):
    root = tiny_volumes.write(tmp_path / "data", train=1)
    with pytest.raises(ConfigError, match="cannot draw"):
        evaluate(_perfect(root), checkpoint, tmp_path / "run", show_dir=tmp_path / "show")


def test_slices_of_a_2d_network(checkpoint, tmp_path):
    root = tiny_volumes.write(tmp_path / "data", train=1)
    cfg = _perfect(root)
    cfg.model.inference.roi_size = (10, 14)
    assert evaluate(cfg, checkpoint, tmp_path / "run")["mean_dice"] == 1


def test_pictures(checkpoint, tmp_path):
    """Colour pictures with masks of 0 and 255, resized for the network."""
    image, labels = tiny_volumes.arrays(0, (24, 16, 8))
    image, labels = image[..., 3], (labels[..., 3] == 1).astype(np.uint8) * 255
    assert labels.any()
    picture = np.repeat((labels > 0)[..., None] * 1.0, 3, -1)
    for folder, array in (("images", picture), ("masks", labels)):
        (tmp_path / folder).mkdir()
        Image.fromarray((array * (255 if array.ndim == 3 else 1)).astype(np.uint8).swapaxes(0, 1)).save(
            tmp_path / folder / "lesion.png"
        )
    (tmp_path / "list.json").write_text(
        json.dumps(dict(test=[dict(image="images/lesion.png", label="masks/lesion.png")]))
    )
    steps = [
        dict(type="LoadImaged", keys=["image"]),
        dict(type="EnsureChannelFirstd", keys=["image"]),
        dict(type="Resized", keys=["image"], spatial_size=(48, 32), mode="nearest"),
        dict(type="ScaleIntensityRanged", keys=["image"], a_min=0, a_max=255, b_min=0, b_max=1),
    ]
    cfg = _perfect(tiny_volumes.write(tmp_path / "data", train=1, val=1))
    cfg.test_dataloader.dataset = dict(
        type="VolumeDataset", data_root=str(tmp_path), data_list="list.json", split="test", transforms=steps,
        classes=("skin", "lesion"), label_map={255: 1}, test_mode=True,
    )  # fmt: skip
    cfg.test_evaluator.classes = ("skin", "lesion")
    cfg.model.network = dict(type="volumes.tiny_volumes.ColourThreshold", classes=2)
    cfg.model.inference.roi_size = (48, 32)
    metrics = evaluate(cfg, checkpoint, tmp_path / "run", out=tmp_path / "out")
    assert metrics["dice/lesion"] == 1
    with Image.open(tmp_path / "out/lesion.png") as written:
        assert np.array_equal(np.asarray(written).T * 255, labels)
