import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nibabel")

import nibabel

from vision_ssm.data.btcv import LABELS, Btcv, check_btcv
from vision_ssm.demo import phantoms as module
from vision_ssm.demo.phantom_shapes import Ellipsoid, Space, distance, rotation, smooth_maximum, smooth_noise, tube
from vision_ssm.demo.phantoms import Phantom, Phantoms, cases, compose, write

RECIPE = Phantoms(size=64)
FEW = Phantoms(train=2, val=1, test=1, size=36, thickness=(7, 8), seed=5)
CASES = (1, 21, 35, 1001)
# Millilitres of adults, from small to large; those of the stomach and the gallbladder depend on the last meal.
VOLUMES = {
    "spleen": (80, 350), "right kidney": (90, 230), "left kidney": (90, 230), "gallbladder": (12, 70),
    "oesophagus": (8, 40), "liver": (1000, 2200), "stomach": (200, 800), "aorta": (45, 140),
    "inferior vena cava": (50, 140), "portal and splenic veins": (20, 50), "pancreas": (50, 120),
    "right adrenal gland": (2, 9), "left adrenal gland": (2, 9),
}  # fmt: skip
# Mean HU in the portal venous phase.
DENSITIES = {
    "spleen": (90, 150), "right kidney": (150, 235), "left kidney": (150, 235), "gallbladder": (-5, 45),
    "liver": (80, 140), "aorta": (120, 200), "inferior vena cava": (110, 180), "pancreas": (60, 130),
    "portal and splenic veins": (120, 205), "right adrenal gland": (30, 110), "left adrenal gland": (30, 110),
    "oesophagus": (10, 90),
}  # fmt: skip


@pytest.fixture(scope="module")
def patients() -> list[Phantom]:
    return [compose(RECIPE, number) for number in CASES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("phantoms"), FEW)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _centres(phantom: Phantom) -> dict[str, np.ndarray]:
    """Centre of mass of every organ, in millimetres towards the patient's right, front and head."""
    centres = {}
    for label, name in enumerate(LABELS):
        voxels = np.argwhere(phantom.labels == label).mean(0)
        centres[name] = phantom.affine[:3, :3] @ voxels + phantom.affine[:3, 3]
    return centres


def _core(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask whose six neighbours are in it."""
    inner = mask.copy()
    for axis, step in itertools.product(range(3), (1, -1)):
        inner &= np.roll(mask, step, axis)
    return inner


def test_every_organ_is_there_in_a_plausible_size(patients):
    for phantom in patients:
        voxel = abs(np.linalg.det(phantom.affine[:3, :3])) / 1000
        counts = np.bincount(phantom.labels.ravel(), minlength=len(LABELS)) * voxel
        assert len(counts) == len(LABELS)
        for name, millilitres in zip(LABELS[1:], counts[1:], strict=True):
            low, high = VOLUMES[name]
            assert low <= millilitres <= high, f"{name}: {millilitres:.1f} mL"


def test_organs_lie_on_their_sides(patients):
    """In world coordinates, whatever the order and the direction of the voxels' axes."""
    for phantom in patients:
        at = _centres(phantom)
        middle = at["aorta"][0]
        for name in ("liver", "gallbladder", "right kidney", "right adrenal gland", "inferior vena cava"):
            assert at[name][0] > middle + 10, name
        for name in ("spleen", "stomach", "left kidney", "left adrenal gland"):
            assert at[name][0] < middle - 10, name
        for side in ("right", "left"):  # adrenal glands: above the kidneys and nearer to the midline
            gland, kidney = at[f"{side} adrenal gland"], at[f"{side} kidney"]
            assert gland[2] > kidney[2]
            assert abs(gland[0] - middle) < abs(kidney[0] - middle)
        for behind, before in (("left kidney", "stomach"), ("spleen", "stomach"), ("right kidney", "gallbladder")):
            assert at[behind][1] < at[before][1] - 20
        assert at["oesophagus"][2] > at["stomach"][2]
        assert at["spleen"][0] < at["left kidney"][0]


def test_densities_are_those_of_organs():
    """With voxels that resolve the adrenal glands; larger ones mix the limbs with the fat between them."""
    for phantom in (compose(Phantoms(size=128, thickness=(3, 3)), number) for number in (1, 21)):
        for label, name in enumerate(LABELS):
            if name not in DENSITIES:
                continue
            mask = phantom.labels == label
            core = _core(mask)
            mean = phantom.image[core if core.sum() >= 8 else mask].mean()
            assert DENSITIES[name][0] <= mean <= DENSITIES[name][1], f"{name}: {mean:.0f} HU"
        assert phantom.image.min() >= -1024
        assert (phantom.image < -900).mean() > 0.2  # air around the body
        assert 300 < np.percentile(phantom.image, 99.8) < 1500  # bone


def test_patients_differ(patients):
    livers = [p.image[_core(p.labels == LABELS.index("liver"))].mean() for p in patients]
    assert np.std(livers) > 3
    assert len({p.affine.tobytes() for p in patients}) == len({p.labels.tobytes() for p in patients}) == len(patients)


def test_organs_are_of_one_piece(patients):
    ndimage = pytest.importorskip("scipy.ndimage")
    for phantom in patients:
        for label in range(1, len(LABELS)):
            pieces, _ = ndimage.label(phantom.labels == label, np.ones((3, 3, 3)))
            counts = np.bincount(pieces.ravel())[1:]
            assert counts.max() >= 0.9 * counts.sum(), LABELS[label]


def test_organs_keep_clear_of_bone_and_of_the_air_outside(patients):
    for phantom in patients:
        solid = (phantom.labels > 0) & (phantom.labels != LABELS.index("stomach"))
        assert (phantom.image[solid] > 350).mean() < 1e-3
        assert (phantom.image[solid] < -500).mean() < 5e-3


def test_the_stomach_holds_gas_in_front(patients):
    for phantom in patients:
        stomach = phantom.labels == LABELS.index("stomach")
        gas = stomach & (phantom.image < -700)
        fluid = stomach & (phantom.image > -50)
        heights = [(np.argwhere(mask) @ phantom.affine[1, :3]).mean() for mask in (gas, fluid)]
        assert heights[0] > heights[1]


def test_noise_is_that_of_a_scan(patients):
    for phantom in patients:
        liver = _core(_core(phantom.labels == LABELS.index("liver")))
        assert 4 < phantom.image[liver].std() < 25


def test_geometry_varies_and_is_oblique():
    phantoms = [compose(Phantoms(size=32, thickness=(5, 8)), number) for number in range(1, 17)]
    codes = {"".join(nibabel.aff2axcodes(p.affine)) for p in phantoms}
    assert len(codes) >= 3
    assert "LAS" in codes
    assert len({p.image.shape for p in phantoms}) > 6
    for phantom in phantoms:
        spacing = np.linalg.norm(phantom.affine[:3, :3], axis=0)
        turn = phantom.affine[:3, :3] / spacing
        assert np.allclose(turn.T @ turn, np.eye(3), atol=1e-6)
        angle = np.degrees(np.arccos(np.abs(turn).max(0)))
        assert 0.05 < angle.max() < 9
        through = int(np.argmax(np.abs(turn[2])))  # the axis from slice to slice
        assert 5 <= spacing[through] <= 8
        plane = np.delete(spacing, through)
        assert np.isclose(*plane)
        assert 320 <= plane[0] * 32 <= 450
        assert phantom.image.shape == phantom.labels.shape
        assert (phantom.image.dtype, phantom.labels.dtype) == (np.int16, np.uint8)


def test_a_case_depends_on_seed_and_number_alone():
    first = compose(FEW, 3)
    again = compose(Phantoms(train=9, val=9, test=9, size=36, thickness=(7, 8), seed=5), 3)
    for a, b in zip((first.image, first.labels, first.affine), (again.image, again.labels, again.affine), strict=True):
        assert np.array_equal(a, b)
    for other in (compose(FEW, 4), compose(Phantoms(size=36, thickness=(7, 8), seed=6), 3)):
        assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_same_seed_same_bytes(folder, tmp_path):
    assert _contents(write(tmp_path / "again", FEW)) == _contents(folder)


def test_files_hold_the_phantoms(folder):
    for number in (1, 2, 35):
        phantom = compose(FEW, number)
        image = nibabel.load(folder / f"imagesTr/img{number:04d}.nii.gz")
        label = nibabel.load(folder / f"labelsTr/label{number:04d}.nii.gz")
        for file, voxels in ((image, phantom.image), (label, phantom.labels)):
            assert file.get_data_dtype() == voxels.dtype
            assert np.array_equal(np.asanyarray(file.dataobj), voxels)
            for affine, code in (file.get_sform(coded=True), file.get_qform(coded=True)):
                assert code == 1
                assert np.allclose(affine, phantom.affine, atol=1e-3)
            assert file.header.get_xyzt_units()[0] == "mm"
    assert sorted(p.name for p in folder.iterdir()) == [
        "dataset_0.json", "imagesTr", "imagesTs", "labelsTr", "phantoms.json",
    ]  # fmt: skip


def test_the_check_of_btcv_passes(folder):
    report, found = check_btcv(folder, expected=Btcv(training=(1, 2), validation=(35,), test=(61,)))
    assert report.ok, report.lines()
    assert list(found.labelled) == ["0001", "0002", "0035"]


def test_monai_reads_it(folder):
    data = pytest.importorskip("monai.data")
    transforms = pytest.importorskip("monai.transforms")
    listed = {
        split: data.load_decathlon_datalist(folder / "dataset_0.json", True, split)
        for split in ("training", "validation", "test")
    }
    assert [len(listed[split]) for split in listed] == [2, 1, 1]
    assert listed["test"][0]["image"] == str(folder / "imagesTs/img0061.nii.gz")
    pipeline = transforms.Compose(
        [
            transforms.LoadImaged(("image", "label"), ensure_channel_first=True),
            transforms.Orientationd(("image", "label"), axcodes="RAS", labels=None),
        ]
    )
    sample = pipeline(listed["validation"][0])
    canonical = nibabel.as_closest_canonical(nibabel.load(folder / "labelsTr/label0035.nii.gz"))
    assert np.array_equal(sample["label"][0].numpy(), np.asarray(canonical.dataobj))
    assert np.allclose(sample["image"].affine, sample["label"].affine)


def test_case_numbers_are_btcv_s():
    assert cases(Phantoms(train=24, val=6, test=20)) == {
        "training": [*range(1, 11), *range(21, 35)],
        "validation": [*range(35, 41)],
        "test": [*range(61, 81)],
    }
    many = cases(Phantoms(train=26, val=7, test=0))
    assert many["training"][23:] == [34, 1001, 1002]
    assert many["validation"][5:] == [40, 2001]
    assert many["test"] == []


def test_a_complete_set_is_left_alone(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    write(str(folder), FEW)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_killed_generator_s_set_is_completed(folder, tmp_path, monkeypatch):
    save, calls = module._save, iter(range(3))

    def dies(voxels, affine, path):
        if next(calls, None) is None:
            path.write_bytes(b"half")
            os.link(path, path.with_name(f".1-{path.name.split('-')[-1]}"))  # what a killed process leaves
            raise KeyboardInterrupt
        save(voxels, affine, path)

    monkeypatch.setattr(module, "_save", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, FEW)
    assert not (tmp_path / "phantoms.json").exists()
    assert not (tmp_path / "labelsTr/label0002.nii.gz").exists()
    kept = tmp_path / "imagesTr/img0001.nii.gz"
    os.utime(kept, ns=(1, 1))
    with pytest.raises(ValueError, match="choose another folder"):
        write(tmp_path, RECIPE)
    monkeypatch.setattr(module, "_save", save)
    write(tmp_path, FEW)
    assert kept.stat().st_mtime_ns == 1
    assert _contents(tmp_path) == _contents(folder)


def test_another_recipe_and_version_are_refused(folder, monkeypatch):
    with pytest.raises(ValueError, match="choose another folder") as error:
        write(folder, Phantoms(train=2, val=1, test=1, size=36, thickness=(7, 8), seed=6))
    assert str(folder) in str(error.value)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    with pytest.raises(ValueError, match="choose another folder"):
        write(folder, FEW)


def test_other_data_is_not_mixed_with(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(ValueError, match="holds imagesTr of something else"):
        write(tmp_path, FEW)
    assert [p.name for p in tmp_path.iterdir()] == ["imagesTr"]


def test_the_data_list_names_what_is_there(folder):
    content = json.loads((folder / "dataset_0.json").read_text(encoding="utf-8"))
    assert content["labels"] == {str(i): name for i, name in enumerate(LABELS)}
    assert content["modality"] == {"0": "CT"}
    for record in (*content["training"], *content["validation"]):
        assert (folder / record["image"]).is_file()
        assert (folder / record["label"]).is_file()


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(train=0), dict(val=0), dict(test=-1), dict(size=31), dict(size=2048), dict(seed=-1),
        dict(thickness=(0, 3)), dict(thickness=(5, 4)), dict(thickness=(5,)),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        Phantoms(**kwargs)


def test_numbers_are_checked():
    with pytest.raises(ValueError, match="number of a case"):
        compose(FEW, 0)


def _grid(step: float = 2.0, reach: int = 24) -> Space:
    axes = np.meshgrid(*[np.arange(-reach, reach + 1, dtype=np.float32) * step] * 3, indexing="ij")
    matrix = np.diag([1 / step, 1 / step, 1 / step, 1.0])
    matrix[:3, 3] = reach
    return Space(*axes, matrix, 0.0)


def test_rotation_is_by_the_right_hand():
    assert np.allclose(rotation((0, 0, 90)) @ [1, 0, 0], [0, 1, 0])
    assert np.allclose(rotation((90, 0, 0)) @ [0, 1, 0], [0, 0, 1])
    turn = rotation((10, 20, 30))
    assert np.allclose(turn @ turn.T, np.eye(3))
    assert np.isclose(np.linalg.det(turn), 1)


def test_volume_of_an_ellipsoid():
    space = _grid()
    _, found = distance(space, [Ellipsoid((3, -4, 5), (20, 14, 10), rotation((20, 40, 60)))])
    assert np.isclose((found < 0).sum() * 8, 4 / 3 * np.pi * 20 * 14 * 10, rtol=0.02)
    assert found.size < space.x.size
    sphere = Ellipsoid((0, 0, 0), (10, 10, 10))(space.x, space.y, space.z)
    radius = np.sqrt(space.x**2 + space.y**2 + space.z**2)
    assert np.allclose(sphere[radius > 0], (radius - 10)[radius > 0], atol=1e-4)
    assert sphere[radius == 0] < -10


def test_a_box_may_lie_outside():
    _, found = distance(_grid(), [Ellipsoid((500, 0, 0), (10, 10, 10))])
    assert found.size == 0


def test_a_straight_tube_is_a_capsule():
    space = _grid()
    box, found = distance(space, tube([(0, 0, -20), (0, 0, 0), (0, 0, 20)], (8, 8, 8)))
    x, y, z = (axis[box] for axis in (space.x, space.y, space.z))
    expected = np.sqrt(x**2 + y**2 + (np.abs(z) - 20).clip(0) ** 2) - 8
    near = expected < 8
    assert np.allclose(found[near], expected[near], atol=1e-4)


def test_a_smooth_maximum_is_one_away_from_the_seam():
    a, b = np.meshgrid(np.linspace(-9, 9, 37, dtype=np.float32), np.linspace(-9, 9, 37, dtype=np.float32))
    found, sharp = smooth_maximum(a, b, 4), np.maximum(a, b)
    far = np.abs(a - b) >= 4
    assert np.array_equal(found[far], sharp[far])
    assert (found >= sharp).all()
    assert np.allclose(found[np.abs(a - b) < 1e-6], (sharp + 1)[np.abs(a - b) < 1e-6])  # a quarter of the blend


def test_smooth_noise_is_smooth_and_of_unit_variance():
    noise = smooth_noise(np.random.default_rng(0), (96, 96, 96), (12, 12, 12))
    assert abs(noise.mean()) < 0.1
    assert 0.8 < noise.std() < 1.2
    assert np.abs(np.diff(noise, axis=0)).std() < 0.3
