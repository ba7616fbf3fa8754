"""Volumes as they are listed, transformed and looked at before training; what is wrong is named."""

import gzip
import json
import os
import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from mmengine.hooks import Hook
from monai.data import MetaTensor
from monai.transforms import LoadImaged, Orientationd, Resized, Spacingd
from nibabel.affines import voxel_sizes
from volumes import tiny_volumes
from volumes.tiny_volumes import CROPS, arrays, loading, oblique, save

from vision_ssm.data.volume_files import read_grid, read_volume
from vision_ssm.engine import ConfigError, DataError, train
from vision_ssm.engine.order import Order, Seeded
from vision_ssm.volumes import VolumeDataset, build_transforms
from vision_ssm.volumes.check import sizes_at_crops


class WithoutFiles(Hook):
    """Takes away the images to train on after the first step."""

    def __init__(self, root):
        self.images = [Path(root) / f"imagesTr/img{i:04d}.nii.gz" for i in range(3)]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for image in self.images:
            image.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_volumes.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def root(whole, tmp_path):
    """A copy to break."""
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


def _dataset(root, split="training", **changes):
    arguments = tiny_volumes.dataset(root, split, **changes)
    arguments.pop("type")
    return VolumeDataset(**arguments)


def _rewrite(root, change):
    path = root / "dataset_0.json"
    lists = json.loads(path.read_text())
    path.write_text(json.dumps(change(lists) or lists))


def test_samples(whole):
    sample = _dataset(whole)[0]
    assert sample["image"].shape == sample["label"].shape == (2, 1, 12, 12, 12)
    assert (sample["image"].dtype, sample["label"].dtype) == (torch.float32, torch.int64)
    assert type(sample["image"]) is torch.Tensor and set(sample["label"].unique().tolist()) <= {0, 1, 2}
    # crops of image and label lie in one place: the image is the label with noise below 0.25 and a shift below 0.1
    assert (sample["image"] - sample["label"]).abs().max() < 0.36

    info = _dataset(whole).get_data_info(1)
    assert info["img_path"].endswith("img0001.nii.gz") and info["seg_map_path"].endswith("label0001.nii.gz")
    test = _dataset(whole, "validation")[1]
    assert test["image"].shape[:2] == (1, 1) and test["case"].name == "img0004.nii.gz"
    assert np.array_equal(test["case"].truth, arrays(4)[1])
    assert np.allclose(test["case"].original_affine, oblique())


def test_a_position_in_the_run_has_one_crop(whole):
    """The seed and the position decide, whatever was drawn before and however the volumes are kept."""

    def batches(seed, **changes):
        dataset = _dataset(whole, **changes)
        dataset.fill_cache()
        order = Order(lambda _: torch.utils.data.BatchSampler(range(3), 1, False), seed)
        return [Seeded(dataset)[index] for batch in order for index in batch]

    one, again, other = batches(0), batches(0, cache_rate=0.5), batches(1)
    for a, b, c in zip(one, again, other, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])
        assert not torch.equal(a["image"], c["image"])


def test_volumes_in_memory_are_not_read_again(root):
    dataset = _dataset(root, cache_rate=1.0)
    dataset.fill_cache()
    shutil.rmtree(root / "imagesTr")
    first, second = dataset[0]["image"], dataset[0]["image"]
    assert not torch.equal(first, second)  # other crops all the same


def test_volumes_inside_wrappers_are_kept_in_memory(root, tmp_path):
    """Later steps read no file, whatever MMEngine's wrappers are around the data set."""
    lists = json.loads((root / "dataset_0.json").read_text())
    one, other = (tiny_volumes.dataset(root, data_list=dict(training=part), cache_rate=1.0, cache_workers=1)
                  for part in (lists["training"][:1], lists["training"][1:]))  # fmt: skip
    repeated = dict(type="RepeatDataset", dataset=one, times=2)
    cfg = tiny_volumes.config(root, steps=9)
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[repeated, other])
    cfg.custom_hooks = [dict(type=WithoutFiles, root=str(root))]
    train(cfg, tmp_path / "run")
    assert not (root / "imagesTr/img0000.nii.gz").exists()


def test_folder_of_volumes_follows_files_and_transforms(root, tmp_path):
    def maximum(**changes):
        sample = _dataset(root, cache_dir=str(tmp_path / "cache"), **changes)[0]
        return sample["image"].max()

    assert maximum() < 3
    scaled = [*loading("image", "label"), dict(type="ScaleIntensityd", keys="image", minv=90, maxv=99), *CROPS]
    assert maximum(transforms=scaled) > 80
    image, _ = arrays(0)
    save(root / "imagesTr/img0000.nii.gz", image + 50, oblique())
    assert maximum() > 45


@pytest.mark.parametrize("left", [0, 1000])
def test_cut_file_of_the_folder_is_made_again(left, root, tmp_path):
    """As a kill leaves it while it is copied from another file system."""
    dataset = _dataset(root, cache_dir=str(tmp_path / "kept"))
    np.random.seed(3)
    expected = dataset[0]["image"]
    (kept,) = (tmp_path / "kept").rglob("*.pt")
    kept.write_bytes(kept.read_bytes()[:left])
    np.random.seed(3)
    assert torch.equal(_dataset(root, cache_dir=str(tmp_path / "kept"))[0]["image"], expected)
    assert zipfile.is_zipfile(kept)


def test_label_map_merges_and_drops(whole):
    changes = dict(classes=("background", "box"), label_map={1: 0, 2: 1})
    train_ids = torch.cat([_dataset(whole, **changes)[i]["label"].unique() for i in range(3)]).unique()
    assert train_ids.tolist() == [0, 1]
    truth = _dataset(whole, "validation", **changes)[0]["case"].truth
    assert np.array_equal(truth, arrays(3)[1] == 2)
    with pytest.raises(ConfigError, match=r"\[2\], beyond the 2 classes"):
        _dataset(whole, classes=("background", "box"), label_map={1: 2})
    with pytest.raises(ConfigError, match=r"\[-1, 65536\]: ids in files are 0 to 65535"):
        _dataset(whole, label_map={-1: 2, 1: 1, 65536: 0})


def test_several_channels(root):
    for i in range(3):
        save(root / f"imagesTr/other{i}.nii.gz", arrays(i)[0] + 5, oblique())

    def paired(lists):
        for i, entry in enumerate(lists["training"]):
            entry["image"] = [entry["image"], f"imagesTr/other{i}.nii.gz"]

    _rewrite(root, paired)
    dataset = _dataset(root)
    assert dataset[0]["image"].shape == (2, 2, 12, 12, 12)
    dataset.check()
    save(root / "imagesTr/other1.nii.gz", arrays(1)[0][:-1], oblique())
    with pytest.raises(DataError, match=r"other1\.nii\.gz: has 25x22x20 voxels \(expected 26x22x20"):
        dataset.check()


# Bad configs


def test_memory_is_for_training(whole):
    with pytest.raises(ConfigError, match="are for training"):
        _dataset(whole, "validation", cache_rate=1.0)


def test_unknown_transform():
    with pytest.raises(ConfigError, match=r"no transform 'Spacing2d' .* did you mean .*Spacingd"):
        build_transforms([dict(type="Spacing2d", keys=["image"])])
    with pytest.raises(ConfigError, match=r"Spacingd: .*pixdimm"):
        build_transforms([dict(type="Spacingd", keys=["image"], pixdimm=1)])
    with pytest.raises(ConfigError, match="no transform None"):
        build_transforms([dict(keys=["image"])])
    with pytest.raises(ConfigError, match="LoadImaged of 'label'"):
        build_transforms([dict(type="LoadImaged", keys=["image"])], {1: 1})


def test_one_of_several_transforms():
    flips = [dict(type="RandFlipd", keys=["image"], prob=1.0, spatial_axis=axis) for axis in (0, 1)]
    pipeline = build_transforms([dict(type="OneOf", transforms=flips)])
    image = torch.arange(6.0).view(1, 2, 3)
    found = set()
    for seed in range(8):
        result = pipeline.set_random_state(seed=seed)({"image": image})["image"]
        again = pipeline.set_random_state(seed=seed)({"image": image})["image"]
        assert torch.equal(result, again)
        found.add(tuple(result.flatten().tolist()))
    assert found == {tuple(image.flip(axis).flatten().tolist()) for axis in (1, 2)}


def test_config_errors_name_the_config(whole, tmp_path):
    cfg = tiny_volumes.config(whole)
    cfg.train_dataloader.dataset.transforms[0].type = "LoadImagd"
    with pytest.raises(ConfigError, match="did you mean LoadImaged"):
        train(cfg, tmp_path)


# Bad lists


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lists: lists.update(training=[]), "'training' is empty"),
        (lambda lists: lists.pop("training"), "no list 'training', only validation"),
        (lambda lists: [1, 2], "no list 'training'"),
        (lambda lists: lists["training"][1].pop("image"), "'training', entry 1: expected an `image`"),
        (lambda lists: lists["training"].insert(0, 3), "'training', entry 0: expected an `image`"),
        (
            lambda lists: lists["training"][2].update(label=["a", "b"]),
            r"'training', entry 2: its `label` is \['a', 'b'\]",
        ),
        (lambda lists: lists["training"][2].update(label=""), "its `label` is '', expected a path"),
        (lambda lists: lists["training"][2].update(labels=lists["training"][2].pop("label")), "entry 2: .* 'labels'"),
        (lambda lists: lists["training"][2].pop("label"), r"img0002\.nii\.gz has no `label`"),
    ],
)
def test_bad_lists(change, message, root):
    def broken(lists):
        result = change(lists)
        return result if isinstance(result, list) and result == [1, 2] else None

    _rewrite(root, broken)
    with pytest.raises(DataError, match=message):
        _dataset(root)


def test_unreadable_lists(root):
    path = root / "dataset_0.json"
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(DataError, match="is no JSON file"):
            _dataset(root)
    path.unlink()
    with pytest.raises(DataError, match=r"^no list of volumes"):
        _dataset(root)
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"^no list of volumes .*: it is no regular file"):
        _dataset(root)


# Bad files


def _nan(root):
    image, _ = arrays(1)
    image[3, 4, 5] = np.nan
    save(root / "imagesTr/img0001.nii.gz", image, oblique())


def _strange_ids(root):
    _, labels = arrays(1)
    labels[0, 0, :2] = 7, 9
    save(root / "labelsTr/label0001.nii.gz", labels, oblique())


def _no_ids(root):
    save(root / "labelsTr/label0001.nii.gz", arrays(1)[0] + 0.5, oblique())


def _other_shape(root):
    save(root / "labelsTr/label0001.nii.gz", arrays(1)[1][:, :-2], oblique())


def _other_affine(root):
    affine = oblique()
    affine[0, 3] += 3
    save(root / "labelsTr/label0001.nii.gz", arrays(1)[1], affine)


def _truncated(root):
    path = root / "imagesTr/img0001.nii.gz"
    path.write_bytes(path.read_bytes()[:3000])


def _missing(root):
    (root / "labelsTr/label0001.nii.gz").unlink()


def _no_nifti(root):
    (root / "imagesTr/img0001.nii.gz").write_bytes(b"<html>please log in</html>")


def _affine(root, folder, change):
    affine, (image, labels) = oblique(), arrays(1)
    change(affine)
    voxels = {"imagesTr/img": image, "labelsTr/label": labels}[folder]
    header = nibabel.Nifti1Header()  # as a broken tool writes it: nibabel itself would refuse some
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header["srow_x"], header["srow_y"], header["srow_z"] = affine[:3]
    header["sform_code"] = 1
    header["pixdim"][1:4] = tiny_volumes.SPACING
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = header.binaryblock + bytes(4) + voxels.tobytes(order="F")
    (root / f"{folder}0001.nii.gz").write_bytes(gzip.compress(content))


def _affine_of_nan(root):
    for folder in ("imagesTr/img", "labelsTr/label"):
        _affine(root, folder, lambda affine: affine.__setitem__((1, 2), np.nan))


def _image_without_third_axis(root):
    _affine(root, "imagesTr/img", lambda affine: affine.__setitem__(2, 0))


def _label_without_extent(root):
    _affine(root, "labelsTr/label", lambda affine: affine.__setitem__((slice(None, 3), 1), 0))


BAD = [
    (_affine_of_nan, r"img0001\.nii\.gz: its affine is not finite"),
    (_image_without_third_axis, r"^\S+img0001\.nii\.gz: has axes that lie in one plane \([^;]*$"),
    (_label_without_extent, r"^\S+label0001\.nii\.gz: has voxels of 1 x 0 x 2 mm \([^;]*$"),
    (_nan, r"img0001\.nii\.gz: (ValueError: )?1 voxels are not finite"),
    (_strange_ids, r"label0001\.nii\.gz: has ids outside the classes: 7, 9 \(expected ids of 3 classes"),
    (_no_ids, r"label0001\.nii\.gz: .*whole numbers"),
    (_other_shape, r"label0001\.nii\.gz: has 26x20x20 voxels \(expected 26x22x20, as its image"),
    (_other_affine, r"label0001\.nii\.gz: its affine puts voxels 3\.0 voxels off"),
    (_truncated, r"img0001\.nii\.gz: (cannot be read: )?EOFError"),
    (_missing, r"label0001\.nii\.gz: it is missing"),
    (_no_nifti, r"img0001\.nii\.gz: cannot be read: "),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_bad_files_are_found_before_the_first_step(spoil, message, root, tmp_path):
    spoil(root)
    cfg = tiny_volumes.config(root)
    cfg.default_hooks.data_check = dict(type="DataCheckHook")
    with pytest.raises(DataError, match=message):
        train(cfg, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.parametrize("changes", [dict(), dict(cache_rate=1.0), dict(cache_dir="cache")], ids=str)
def test_files_that_fail_later_are_named(changes, root, tmp_path):
    _truncated(root)
    if "cache_dir" in changes:
        changes = dict(cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"img0001\.nii\.gz.* EOFError"):
        train(tiny_volumes.config(root, **{f"train_dataloader.dataset.{k}": v for k, v in changes.items()}), tmp_path)


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_bad_files_are_named_in_tests(spoil, message, root):
    """A split that no training looked at: each volume is looked at when its turn comes."""
    spoil(root)
    _rewrite(root, lambda lists: lists.update(test=lists["training"]))
    test = _dataset(root, "test")
    assert test[0]["case"].truth.any()
    with pytest.raises(DataError, match=message):
        test[1]


def test_good_files_are_read_once(root):
    lines = []
    dataset = _dataset(root)
    dataset.check(lines.append)
    dataset.check(lines.append)
    assert lines == ["checking 3 volumes and their label maps, once"]
    _nan(root)
    with pytest.raises(DataError, match="not finite"):
        dataset.check(lines.append)


def test_labels_of_other_sets_pass_where_they_are_mapped(root):
    _strange_ids(root)
    _dataset(root, classes=("background", "box"), label_map={1: 0, 2: 1, 7: 0, 9: 0}).check()
    with pytest.raises(
        DataError, match=r"label0001\.nii\.gz: has ids outside the classes: 7, 9 \(expected one of 0, 1, 2"
    ):
        _dataset(root, classes=("background", "box"), label_map={1: 0, 2: 1}).check()


def test_images_are_looked_at_as_they_are_stored(root):
    """Integers with a slope become float64 when they are scaled: eight bytes a voxel, in each of several threads."""
    image = nibabel.load(root / "imagesTr/img0001.nii.gz")
    stored = nibabel.Nifti1Image(np.zeros(image.shape, np.int16), image.affine)
    stored.header.set_slope_inter(0.5, -100)
    nibabel.save(stored, root / "imagesTr/img0001.nii.gz")
    assert read_volume(root / "imagesTr/img0001.nii.gz").voxels.dtype == np.float64
    assert read_volume(root / "imagesTr/img0001.nii.gz", scaled=False).voxels.dtype == np.int16
    _dataset(root).check()


def test_other_numbers_of_channels(root):
    path = root / "imagesTr/img0001.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.stack([image.get_fdata()] * 2, -1), image.affine), path)
    with pytest.raises(
        DataError, match=r"img0001\.nii\.gz has 2 channels, .*img0000\.nii\.gz has 1: expected the same"
    ):
        _dataset(root).check()


def test_list_in_a_folder_of_its_own(root):
    """Its paths are relative to itself."""
    (root / "lists").mkdir()
    content = json.loads((root / "dataset_0.json").read_text())
    for entries in content.values():
        for entry in entries if isinstance(entries, list) else []:
            entry.update({key: f"../{path}" for key, path in entry.items()})
    (root / "lists/mine.json").write_text(json.dumps(content))
    dataset = _dataset(root, data_list="lists/mine.json")
    dataset.check()
    assert torch.isfinite(dataset[0]["image"]).all()


def test_a_broken_qform_beside_a_right_sform(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), oblique())
    image.header["quatern_b"] = image.header["quatern_c"] = 3.0
    path = tmp_path / "x.nii"
    nibabel.save(image, path)
    with pytest.raises(ValueError, match="w2"):
        nibabel.load(path).get_qform()
    np.testing.assert_allclose(read_grid(path).affine, oblique(), atol=1e-5)


def test_voxel_sizes_of_files_with_a_wrong_sform(tmp_path):
    """ACDC's have one of 1 mm; sizes and qform are right, and are what MONAI goes by."""
    path = tmp_path / "x.nii.gz"
    image = nibabel.Nifti1Image(np.zeros((20, 18, 9), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.set_qform(np.diag([1.5, 1.25, 10, 1]), code=1)
    nibabel.save(image, path)
    assert nibabel.load(path).affine[2, 2] == 1
    np.testing.assert_allclose(voxel_sizes(read_grid(path).affine), (1.5, 1.25, 10))
    loaded = LoadImaged(["image"])({"image": str(path)})["image"]
    np.testing.assert_allclose(loaded.affine.numpy(), read_grid(path).affine, atol=1e-5)


# Small volumes


def test_volumes_smaller_than_their_crops(tmp_path):
    root = tiny_volumes.write(tmp_path, train=2, val=1, shape=(20, 16, 9))
    lines = []
    dataset = _dataset(root)
    dataset.check(lines.append)
    assert "img0000.nii.gz has about 20x16x9 voxels at the training's spacing, its crops 12x12x12" in lines[-1]
    assert "and 1 more" in lines[-1] and "they are padded" in lines[-1]
    assert dataset[0]["image"].shape == (2, 1, 12, 12, 12)
    without = _dataset(root, transforms=loading("image", "label") + CROPS[1:])
    with pytest.raises(DataError, match=r"img0000.*add a SpatialPadd of that size"):
        without.check()


def test_what_is_left_of_the_foreground_may_be_smaller_than_the_crops(whole):
    """No header tells, so that the config has to pad, after the foreground crop and before the crop."""
    steps, padding, crops = loading("image", "label"), CROPS[0], CROPS[1:]
    _dataset(whole, transforms=[*steps, padding, *crops]).check()
    _dataset(whole, transforms=[*steps[:-1], *crops]).check()
    for order in ([*steps, *crops], [*steps[:-1], padding, steps[-1], *crops], [*steps, *crops, padding]):
        with pytest.raises(DataError, match="CropForegroundd may leave less than crops of 12x12x12: add a SpatialPadd"):
            _dataset(whole, transforms=order).check()


def _crops(**kwargs) -> dict:
    return dict(keys=["image", "label"], **kwargs)


_EVERY_CROP = [
    dict(type="RandSpatialCropd", **_crops(roi_size=30)),
    dict(type="RandSpatialCropSamplesd", **_crops(roi_size=(30, 8, -1), num_samples=2, random_size=False)),
    dict(type="RandWeightedCropd", **_crops(w_key="label", spatial_size=30)),
    dict(type="RandCropByPosNegLabeld", **_crops(label_key="label", spatial_size=30)),
    dict(type="RandCropByLabelClassesd", **_crops(label_key="label", spatial_size=[30, 4, 4], num_classes=3)),
]


@pytest.mark.parametrize("crop", _EVERY_CROP, ids=lambda crop: crop["type"])
def test_every_crop_is_compared_with_the_volumes(crop, tmp_path):
    """Sizes that are given as one number, too; the second and third side are long enough, or taken whole."""
    root = tiny_volumes.write(tmp_path, train=1, val=1, shape=(20, 40, 40))
    steps = [step for step in loading("image", "label") if step["type"] != "CropForegroundd"]
    _dataset(root, transforms=[*steps, dict(type="SpatialPadd", **_crops(spatial_size=30)), crop]).check()
    _dataset(root, transforms=[*steps, dict(type="DivisiblePadd", **_crops(k=15)), crop]).check()
    for short in ([], [dict(type="SpatialPadd", **_crops(spatial_size=24))]):
        with pytest.raises(DataError, match=r"20x40x40 voxels .* its crops 30x.*: add a SpatialPadd of that size"):
            _dataset(root, transforms=[*steps, *short, crop]).check()


@pytest.mark.parametrize("affine", [oblique(), oblique()[:, [2, 0, 1, 3]], np.diag([-0.7, 2.0, 5.0, 1.0])])
def test_size_at_the_training_spacing(affine):
    """Of the header alone it is what the transforms make of the volume, but for a voxel of rounding."""
    steps = [
        Orientationd(["image"], "RAS", labels=None),
        Spacingd(["image"], pixdim=(1.5, 2.0, 2.5)),
        Resized(["image"], (-1, 40, -1)),
    ]
    shape = (30, 24, 18)
    data = {"image": MetaTensor(torch.zeros(1, *shape), affine=affine)}
    for step in steps:
        data = step(data)
    assert np.abs(sizes_at_crops(shape, affine, steps).padded - data["image"].shape[1:]).max() <= 1
    assert nibabel.aff2axcodes(data["image"].affine.numpy()) == ("R", "A", "S")
