"""Kinds of files: what is read is what was checked, and a prediction of each can be written."""

import gzip
import json

import nibabel
import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from PIL import Image
from volumes import tiny_volumes

from vision_ssm.data.volume_checks import check_volume
from vision_ssm.data.volume_files import read_channels, read_grid, read_labels, read_volume
from vision_ssm.engine import ConfigError, DataError
from vision_ssm.engine import test as evaluate
from vision_ssm.volumes import Case, VolumeDataset, VolumeSegmentor, build_transforms
from vision_ssm.volumes.case import prediction_name, prediction_names

BOTH = ["image", "label"]
AFFINE = np.diag([-1.0, -1.5, 2.0, 1.0])
PERFECT = dict(type="volumes.tiny_volumes.Threshold")


def _steps(*keys):
    return [dict(type="LoadImaged", keys=list(keys)), dict(type="EnsureChannelFirstd", keys=list(keys))]


def _dataset(root, image, label=None, test_mode=False, classes=("skin", "lesion"), **changes):
    entry = dict(image=image) | (dict(label=label) if label else {})
    keys = ["image"] if test_mode else BOTH
    return VolumeDataset(
        str(root), dict(x=[entry]), "x", changes.pop("steps", _steps(*keys)), classes, test_mode=test_mode, **changes
    )


def _picture(path, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(path, **options)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("tag", [3, 6])
def test_pictures_are_seen_as_viewers_show_them(suffix, tag, tmp_path):
    """The camera's orientation, in training, in tests and in the check; masks are drawn on what is shown."""
    mask = np.zeros((64, 48), np.uint8)
    mask[8:24, 8:40] = 255
    stored = mask[::-1, ::-1] if tag == 3 else np.rot90(mask)  # a viewer turns it by 180, or by 90 degrees to the right
    exif = Image.Exif()
    exif[0x0112] = tag
    _picture(tmp_path / f"i.{suffix}", np.repeat(stored[..., None], 3, -1), exif=exif)
    _picture(tmp_path / "m.png", mask)
    train = _dataset(tmp_path, f"i.{suffix}", "m.png", label_map={255: 1})
    train.check()
    sample = train[0]
    assert sample["image"].shape == (3, 48, 64) and sample["label"].shape == (1, 48, 64)
    assert torch.equal(sample["image"][:1] > 127, sample["label"] == 1)
    case = _dataset(tmp_path, f"i.{suffix}", "m.png", test_mode=True, label_map={255: 1})[0]["case"]
    assert case.original_shape == (48, 64) and torch.equal(case.truth, torch.from_numpy((mask > 0).T).byte())


def test_palettes_and_deep_pictures(tmp_path):
    """Indices are ids in label maps and colours in images; 16 bits of grey have the range of 8."""
    ids = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    for name, colour in (("m.png", None), ("i.png", 9)):
        picture = Image.fromarray(ids, "P")
        picture.putpalette([0, 0, 0, colour or 255, 100, 3])
        picture.save(tmp_path / name)
    sample = _dataset(tmp_path, "i.png", "m.png")[0]
    assert torch.equal(sample["label"][0], torch.from_numpy(ids.T).long())
    assert sample["image"][:, 1, 0].tolist() == [9, 100, 3]
    _picture(tmp_path / "d.png", ids.astype(np.uint16) * 200 * 257)
    deep = _dataset(tmp_path, "d.png", "m.png")
    deep.check()
    assert torch.equal(deep[0]["image"][0], torch.from_numpy(ids.T) * 200.0)
    assert [read_channels(tmp_path / name) for name in ("i.png", "d.png")] == [3, 1]
    _picture(tmp_path / "f.tif", ids.astype(np.float32))
    with pytest.raises(DataError, match=r"f\.tif: cannot be read: it .*float pixels"):
        _dataset(tmp_path, "f.tif", "m.png").check()


def _damaged(path):
    """Other voxels under the checksum of before, in a stream that decompresses."""
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    for k in range(3000, 3300):
        content[k] ^= 0x15
    path.write_bytes(content)


def _longer(path):
    path.write_bytes(path.read_bytes() + b"and more")


@pytest.mark.parametrize("spoil", [_damaged, _longer])
@pytest.mark.parametrize("name", ["x.nii.gz", "x.mgz", "x.img.gz"])
def test_compressed_files_are_read_to_their_checksum(name, spoil, tmp_path):
    kind = {"x.mgz": nibabel.MGHImage, "x.img.gz": nibabel.Nifti1Pair}.get(name, nibabel.Nifti1Image)
    voxels = np.random.default_rng(0).integers(0, 2, (16, 16, 16)).astype(np.uint8)
    nibabel.save(kind(voxels, AFFINE), tmp_path / name)
    assert check_volume(tmp_path / name, tmp_path / name) == []
    spoil(tmp_path / name)
    wrong = check_volume(tmp_path / name, tmp_path / name)
    assert [one.file for one in wrong] == [str(tmp_path / name)] * 2
    assert all("cannot be read: BadGzipFile" in one.what for one in wrong)
    with pytest.raises(DataError, match=r"x\..*cannot be read: BadGzipFile"):  # a test, whose files no check has seen
        _dataset(tmp_path, name, test_mode=True)[0]


@pytest.mark.parametrize(
    ("value", "dtype", "slope"),
    [(1e300, np.float64, 1), (30000, np.int16, 1e36), (np.nan, np.float32, 1), (-1e39, np.float64, 1)],
    ids=str,
)
def test_voxels_are_those_that_the_network_gets(value, dtype, slope, tmp_path):
    """Finite in the file is not finite in float32."""
    voxels = np.ones((6, 5, 4), dtype)
    voxels[1, 2, 3] = value
    image = nibabel.Nifti1Image(voxels, AFFINE)
    image.header.set_slope_inter(slope, 0)
    nibabel.save(image, tmp_path / "x.nii.gz")
    (wrong,) = check_volume(tmp_path / "x.nii.gz")
    assert "1 voxels are not finite" in wrong.what
    with pytest.raises(DataError, match=r"x\.nii\.gz: .*not finite"):
        _dataset(tmp_path, "x.nii.gz", test_mode=True)[0]


def test_files_of_3d_and_4d_have_one_geometry(tmp_path):
    """An sform of 1 mm beside the right qform: the same rule in the check, in training and in tests."""
    stale, right = np.diag([-1.0, -1.0, 1.0, 1.0]), np.diag([1.5, 1.25, 5.0, 1.0])
    image, labels = tiny_volumes.arrays(0, (8, 9, 7))
    for name, voxels in (("i", np.stack([image] * 2, -1)), ("m", labels)):
        file = nibabel.Nifti1Image(voxels, right)
        file.set_qform(right, code=1)
        file.header.set_sform(stale, code=1)
        nibabel.save(nibabel.Nifti1Image(voxels, None, file.header), tmp_path / f"{name}.nii.gz")
        assert np.allclose(read_grid(tmp_path / f"{name}.nii.gz").affine, right)
    spacing = dict(type="Spacingd", keys=BOTH, pixdim=(1.5, 1.25, 2.5), mode=["bilinear", "nearest"])
    train = _dataset(tmp_path, "i.nii.gz", "m.nii.gz", classes=("a", "b", "c"), steps=[*_steps(*BOTH), spacing])
    train.check()
    sample = train[0]
    assert sample["image"].shape == (2, 8, 9, 13) and sample["label"].shape == (1, 8, 9, 13)
    case = _dataset(tmp_path, "i.nii.gz", "m.nii.gz", True, classes=("a", "b", "c"))[0]["case"]
    assert np.allclose(case.original_affine, right) and case.spacing == pytest.approx((1.5, 1.25, 5.0))


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], np.complex64], ids=["RGB", "complex"])
def test_voxels_that_are_no_real_numbers(dtype, tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), dtype), AFFINE), tmp_path / "x.nii.gz")
    for found in (check_volume(tmp_path / "x.nii.gz"), check_volume([], tmp_path / "x.nii.gz")):
        assert "cannot be read: its voxels are " in found[0].what
        assert "colours (RGB)" in found[0].what or "complex64 numbers" in found[0].what


@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.float64, np.uint16, ">i2"], ids=str)
def test_numbers_of_every_kind_are_ids_and_intensities(dtype, tmp_path):
    labels = tiny_volumes.arrays(0, (8, 9, 7))[1].astype(dtype)
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE, dtype=np.dtype(dtype)), tmp_path / "x.nii.gz")
    data = _dataset(tmp_path, "x.nii.gz", "x.nii.gz", classes=("a", "b", "c"))
    data.check()
    assert torch.equal(data[0]["image"].long(), data[0]["label"]) and data[0]["label"].max() == 2


def test_modalities_of_one_grid(tmp_path):
    """Rounding of 1e-6 is none; a shift of a voxel is named by the check and by the loader."""
    image, labels = tiny_volumes.arrays(0, (8, 9, 7))
    shifted, rounded = AFFINE.copy(), AFFINE.copy()
    rounded[0, 1], shifted[0, 3] = 1e-6, 1.0
    for name, affine in (("t1", AFFINE), ("t2", rounded), ("off", shifted)):
        tiny_volumes.save(tmp_path / f"{name}.nii.gz", image, affine)
    tiny_volumes.save(tmp_path / "m.nii.gz", labels, AFFINE)
    classes = ("a", "b", "c")
    good = _dataset(tmp_path, ["t1.nii.gz", "t2.nii.gz"], "m.nii.gz", classes=classes)
    good.check()
    assert torch.equal(good[0]["image"], torch.from_numpy(np.stack([image] * 2)))
    bad = _dataset(tmp_path, ["t1.nii.gz", "off.nii.gz"], "m.nii.gz", classes=classes)
    for look in (bad.check, lambda: bad[0]):
        with pytest.raises(DataError, match=r"off\.nii\.gz:? its affine puts voxels 1\.0 voxels off"):
            look()


FORMATS = {
    "x.nii": nibabel.Nifti1Image, "x.nii.gz": nibabel.Nifti1Image, "x.nii.bz2": nibabel.Nifti1Image,
    "x.img": nibabel.Nifti1Pair, "x.hdr": nibabel.Nifti1Pair, "x.mgz": nibabel.MGHImage, "x.mgh": nibabel.MGHImage,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_predictions_of_every_format_are_written(name, tmp_path):
    image, labels = tiny_volumes.arrays(0, (10, 12, 9))
    affine = tiny_volumes.oblique()
    nibabel.save(FORMATS[name](image, affine), tmp_path / name)
    tiny_volumes.save(tmp_path / "m.nii.gz", labels, affine)
    case = _dataset(tmp_path, name, "m.nii.gz", True, classes=("a", "b", "c"))[0]["case"]
    assert torch.equal(case.truth, torch.from_numpy(labels))
    written = case.save(case.truth, tmp_path / "out")
    assert written.name == (name if name.endswith((".nii", ".nii.gz")) else "x.nii.gz")
    prediction = nibabel.load(written)
    assert np.array_equal(np.asarray(prediction.dataobj), labels) and prediction.get_data_dtype() == np.uint8
    assert np.allclose(prediction.affine, affine, atol=1e-4)


@pytest.mark.parametrize("name", ["x.nrrd", "x.mha", "x.npy", "x.dcm", "x.nii.gz", "folder", "x.gii"])
def test_what_is_no_volume_is_said(name, tmp_path):
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"NRRD0005\n" * 100)
    (wrong,) = check_volume(tmp_path / name)
    assert wrong.file == str(tmp_path / name)
    assert "no format that nibabel reads" in wrong.what or "it is a folder" in wrong.what


def test_missing_links_and_empty_files(tmp_path):
    (tmp_path / "link.nii.gz").symlink_to("nothing.nii.gz")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    assert [one.what for one in check_volume(tmp_path / "link.nii.gz")] == ["it is missing"]
    assert "it is empty" in check_volume(tmp_path / "empty.nii.gz")[0].what


def test_another_reader_is_refused():
    steps = [dict(type="LoadImaged", keys=BOTH, reader="ITKReader")]
    with pytest.raises(ConfigError, match="LoadImaged: `reader` is ITKReader: leave it out"):
        build_transforms(steps)
    with pytest.raises(ConfigError, match="LoadImaged: it has no argument channel_dim"):
        build_transforms([dict(type="LoadImaged", keys=BOTH, channel_dim=0)])


def test_names_of_predictions():
    names = dict(a="a.nii.gz", b="b.c.nii.gz", c="c.png", d="d.nii.gz", e="e.nii.gz", f="f.NII.GZ")
    files = ["a", "b.c.img", "c.TIF", "d.nii.bz2", "e.mgh.gz", "f.NII.GZ"]
    assert [prediction_name(f"x/{file}") for file in files] == list(names.values())
    assert prediction_names(["x/a.nii", "y/b.nii", "x/a.nii"]) == ["a.nii", "b.nii", "a.nii"]
    assert prediction_names(["/x/1/a.nii", "/x/2/t/a.nii", "/x/b.nii"]) == ["1/a.nii", "2/t/a.nii", "b.nii"]


def test_images_of_one_name_and_a_table_of_each(tmp_path):
    root = tiny_volumes.write(tmp_path / "data", train=1, val=2, shape=(12, 12, 12))
    lists = json.loads((root / "dataset_0.json").read_text())
    for i, entry in enumerate(lists["validation"]):
        (root / f"case_{i}").mkdir()
        for key in BOTH:
            (root / entry[key]).rename(root / f"case_{i}" / f"{key}.nii.gz")
            entry[key] = f"case_{i}/{key}.nii.gz"
    labels = nibabel.load(root / "case_1/label.nii.gz")
    without = np.where(np.asarray(labels.dataobj) == 2, 0, np.asarray(labels.dataobj))
    tiny_volumes.save(root / "case_1/label.nii.gz", without, labels.affine)
    (root / "dataset_0.json").write_text(json.dumps(lists))
    cfg = tiny_volumes.config(root)
    cfg.model.network = PERFECT
    torch.save(dict(state_dict=VolumeSegmentor(PERFECT, dict(roi_size=(12, 12, 12))).state_dict()), tmp_path / "w.pth")
    metrics = evaluate(cfg, tmp_path / "w.pth", tmp_path / "run", out=tmp_path / "out")
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["case_0/image.nii.gz", "case_1/image.nii.gz", "cases.csv", "metrics.json"]
    rows = [line.split(",") for line in (tmp_path / "out/cases.csv").read_text().splitlines()]
    assert rows[0] == ["image", "dice/ball", "dice/box", "hd95/ball", "hd95/box"]
    assert [row[0] for row in rows[1:]] == [str(root / f"case_{i}/image.nii.gz") for i in range(2)]
    assert [row[2] for row in rows[1:]] == ["1.0", ""] and rows[2][4] == ""  # no box in the second one's label map
    assert metrics["dice/ball"] == pytest.approx(np.mean([float(row[1]) for row in rows[1:]]))


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.int16), (40000, torch.int32)])
def test_many_classes(classes, dtype, tmp_path):
    """Ids stay what they are on the way through the network, to the file's grid, into files and metrics."""
    labels = np.zeros((6, 5, 4), np.int32)
    labels[1:3, 1:4, 1:3], labels[4] = classes - 1, 200
    tiny_volumes.save(tmp_path / "x.nii.gz", labels.astype(np.float32), AFFINE)
    tiny_volumes.save(tmp_path / "m.nii.gz", labels, AFFINE)
    names = tuple(map(str, range(classes)))
    sample = _dataset(tmp_path, "x.nii.gz", "m.nii.gz", True, classes=names)[0]
    model = VolumeSegmentor(dict(PERFECT, classes=classes), dict(roi_size=(6, 5, 4))).eval()
    (found,) = model([sample["image"]], case=[sample["case"]], mode="predict")
    assert found["labels"].dtype == sample["case"].truth.dtype == dtype
    written = sample["case"].save(sample["case"].on_original_grid(found["labels"]), tmp_path / "out")
    assert np.array_equal(np.asarray(nibabel.load(written).dataobj), labels)
    flat = Case("x.png", torch.eye(4), torch.eye(4), (6, 5), torch.from_numpy(labels[..., 1]).to(dtype))
    assert np.array_equal(read_labels(flat.save(flat.truth, tmp_path / "out")), labels[..., 1])


@pytest.mark.parametrize("scale", [None, dict(type="NormalizeIntensityd", keys=["image"], nonzero=True)])
def test_a_blank_volume_is_background(scale, tmp_path):
    """Nothing is left of it after the crop to its foreground; in training, the crops are of background."""
    for name in ("x", "m"):
        tiny_volumes.save(tmp_path / f"{name}.nii.gz", np.zeros((10, 12, 9), np.int16), AFFINE)
    crop = dict(type="CropForegroundd", source_key="image", allow_smaller=True)
    steps = [*_steps("image"), dict(crop, keys=["image"]), *([scale] if scale else [])]
    sample = _dataset(tmp_path, "x.nii.gz", "m.nii.gz", True, steps=steps)[0]
    model = VolumeSegmentor(dict(PERFECT, classes=2), dict(roi_size=(8, 8, 8))).eval()
    (found,) = model([sample["image"]], case=[sample["case"]], mode="predict")
    assert torch.equal(sample["case"].on_original_grid(found["labels"]), torch.zeros(10, 12, 9, dtype=torch.uint8))
    pad = dict(type="SpatialPadd", keys=BOTH, spatial_size=(8, 8, 8))
    draw = dict(type="RandCropByPosNegLabeld", keys=BOTH, label_key="label", spatial_size=(8, 8, 8), num_samples=2)
    steps = [*_steps(*BOTH), dict(crop, keys=BOTH), *([scale] if scale else []), pad, draw]
    sample = _dataset(tmp_path, "x.nii.gz", "m.nii.gz", steps=steps)[0]
    assert sample["image"].shape == (2, 1, 8, 8, 8) and not sample["image"].any() and not sample["label"].any()


def test_paths_of_every_kind(tmp_path, monkeypatch):
    """Absolute, relative to home, and a folder that is named so."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_volumes.save(tmp_path / "x.nii.gz", np.zeros((4, 4, 4), np.uint8), AFFINE)
    (tmp_path / "list.json").write_text(json.dumps(dict(x=["x.nii.gz", "~/x.nii.gz", str(tmp_path / "x.nii.gz")])))
    data = VolumeDataset("~", "list.json", "x", _steps("image"), ("a", "b"), test_mode=True)
    data.check()
    assert {item["image"] for item in data.items} == {str(tmp_path / "x.nii.gz")}
    assert read_volume(data.items[0]["image"]).shape == (4, 4, 4)
