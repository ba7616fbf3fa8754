"""Abdominal phantoms in the layout of BTCV: CT volumes that are drawn, for 3D segmentation to train on.

They are phantoms and not patients: thirteen organs of random size, place, shape and density in a body with spine, ribs
and lung bases, as a scanner would show them in the portal venous phase. What a network learns on them says that the
software works, and nothing about real scans.
"""

import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..data.btcv import LABELS, TEST, TRAINING, VALIDATION, case
from ..data.volume_sets import data_list
from ..files import remove_unfinished, write_atomically, write_json
from .phantom_anatomy import Body, draw_patient, organs
from .phantom_frame import Canvas, paint_bowel, paint_frame, paint_organ, paint_skeleton
from .phantom_shapes import Floats, Space, rotation, smooth_noise

__all__ = ["LABELS", "Phantom", "Phantoms", "cases", "compose", "write"]

VERSION = 1  # of what a recipe makes: to be raised with every change of a voxel
_AXES = ("LAS", "LPS", "RAS", "RPI", "PLS", "LSA")  # orientations of the voxel axes; BTCV's are mostly the first
_BULGE = 3.0  # mm, standard deviation of the body's deformation
_CELL = 105.0  # mm, over which it varies


@dataclass(frozen=True)
class Phantoms:
    """What a set of phantoms depends on.

    Args:
        train: number of training cases.
        val: number of validation cases.
        test: number of cases without labels.
        size: voxels along each side of an axial slice; BTCV has 512, with voxels of 0.6 to 0.9 mm.
        thickness: least and greatest distance of two slices in millimetres; BTCV's is 2.5 to 5.
        seed: everything random follows from it and from a case's number.

    Raises:
        ValueError: a value is out of range.
    """

    train: int = 24
    val: int = 6
    test: int = 2
    size: int = 80
    thickness: tuple[float, float] = (4.0, 6.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train, self.val) < 1:
            raise ValueError(f"expected at least one case of train and val, got train={self.train}, val={self.val}")
        if self.test < 0:
            raise ValueError(f"test must not be negative, got {self.test}")
        if not 32 <= self.size <= 1024:
            raise ValueError(f"size must be 32 to 1024 voxels, got {self.size}")
        if len(self.thickness) != 2 or not 0.5 <= self.thickness[0] <= self.thickness[1] <= 10:
            raise ValueError(f"thickness must be the least and the greatest of 0.5 to 10 mm, got {self.thickness}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Phantom:
    """A volume and what is where in it.

    Attributes:
        image: (n_1, n_2, n_3), int16, Hounsfield units.
        labels: the same shape, uint8, BTCV's ids.
        affine: (4, 4), from voxel indices to millimetres in RAS+: towards the patient's right, front and head.
    """

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


def cases(phantoms: Phantoms) -> dict[str, list[int]]:
    """Case numbers of each split: BTCV's own in its usual split, then 1001, 2001 and 3001 and on."""
    numbers = {}
    splits = (("training", TRAINING, phantoms.train), ("validation", VALIDATION, phantoms.val))
    for thousand, (split, first, count) in enumerate((*splits, ("test", TEST, phantoms.test)), 1):
        more = range(1000 * thousand + 1, 1000 * thousand + 1 + max(0, count - len(first)))
        numbers[split] = [*first[:count], *more]
    return numbers


def _space(rng: Generator, phantoms: Phantoms, body: Body) -> tuple[Space, NDArray[np.float64]]:
    """The field of view of a scan of a body, and the affine (4, 4) of its voxels in the order of RAS."""
    width = 2 * (body.cavity[0] + body.fat[0]) * body.scale[0]
    view = np.clip(width + rng.uniform(15, 60), 320, 450)  # mm
    thickness = rng.uniform(*phantoms.thickness)
    spacing = np.array([view / phantoms.size] * 2 + [thickness]).round(4)
    foot, head = np.array([rng.uniform(-165, -135), rng.uniform(112, 138)]) * body.scale[2]
    shape = phantoms.size, phantoms.size, max(16, round((head - foot) / thickness))
    affine = np.eye(4)
    affine[:3, :3] = rotation(rng.normal(0, 2.0, 3).clip(-4, 4)) * spacing
    centre = np.array([0, 34, 0]) * body.scale + [*rng.normal(0, 6, 2), (foot + head) / 2]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    bulges = [_BULGE * smooth_noise(rng, shape, view_mm / _CELL) for view_mm in [np.array(shape) * spacing] * 3]
    axes = []
    for row, bulge, scale in zip(affine[:3].astype(np.float32), bulges, body.scale):
        axes.append((sum(w * i for w, i in zip(row, index)) + row[3] + bulge) / np.float32(scale))
    slack = max(float(np.abs(b).max()) for b in bulges) / float(body.scale.min())
    to_voxels = np.linalg.inv(affine) @ np.diag([*body.scale, 1.0])
    return Space(*axes, to_voxels, slack), affine


def _table(canvas: Canvas, affine: NDArray[np.float64], bottom: float) -> None:
    """The scanner's table, a curved shell of carbon fibre around foam; it is behind the body, undeformed."""
    shape = canvas.density.shape
    index = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    row_x, row_y = affine[:2].astype(np.float32)
    x = sum(w * i for w, i in zip(row_x, index)) + row_x[3]
    y = sum(w * i for w, i in zip(row_y, index)) + row_y[3]
    depth = np.float32(bottom - 4) + x * x / 900 - y  # below the table's surface, mm
    slab = np.maximum(np.abs(depth - 14) - 14, np.abs(x) - 205)
    canvas.cover(slab, -930.0)
    canvas.cover(np.abs(slab + 1.5) - 1.5, -350.0)


def _scan(rng: Generator, density: Floats, spacing: NDArray[np.float64]) -> NDArray[np.int16]:
    """What a scanner makes of densities: noise that is correlated within a slice, more of it in the middle."""
    shape = density.shape
    noise = rng.standard_normal(shape, dtype=np.float32)
    for axis in (0, 1):
        noise = noise + 0.5 * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    noise *= np.float32(1 / 1.5)  # of unit variance again, after two sums of 1.5
    u, v = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape[:2])
    attenuation = 1.25 - 0.6 * (u[:, None, None] ** 2 + v[None, :, None] ** 2)
    # A large voxel averages more photons; the exponent is less than that of independent voxels' noise.
    level = rng.uniform(9, 16) * float(np.clip((1.5 / spacing.prod() ** (1 / 3)) ** 0.5, 0.5, 1.2))
    return (density + level * attenuation * noise).round().clip(-1024, 3071).astype(np.int16)


def compose(phantoms: Phantoms, number: int) -> Phantom:
    """One case of a set; it depends on neither the other cases nor on how many there are.

    Args:
        phantoms: the recipe.
        number: of the case, from 1.

    Raises:
        ValueError: the number is less than 1.
    """
    if number < 1:
        raise ValueError(f"the number of a case must be at least 1, got {number}")
    patient, scanner = (np.random.default_rng([phantoms.seed, number, part]) for part in (0, 1))
    body = draw_patient(patient)
    space, affine = _space(scanner, phantoms, body)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    shape = space.x.shape
    density = np.full(shape, -1000, dtype=np.float32)
    canvas = Canvas(density, np.zeros(shape, np.uint8), density, float(spacing.prod() ** (1 / 3)))
    back = (34 - body.cavity[1] - body.fat[2]) * body.scale[1]
    _table(canvas, affine, back)
    wall = paint_frame(canvas, space, body)
    paint_bowel(canvas, space, body, smooth_noise(scanner, shape, np.array(shape) * spacing / 16))
    texture = smooth_noise(scanner, shape, np.array(shape) * spacing / 14)
    for organ in organs(body):
        paint_organ(canvas, space, body, organ, texture)
    paint_skeleton(canvas, space, body, wall)
    image = _scan(scanner, canvas.density, spacing)
    affine[:3, 3] += scanner.uniform(-1, 1, 3) * [20, 40, 600] - [0, 150, 0]  # where the scanner's origin is
    return _reorient(image, canvas.labels, affine, str(scanner.choice(_AXES, p=(0.4, 0.15, 0.15, 0.1, 0.1, 0.1))))


def _reorient(image: NDArray[np.int16], labels: NDArray[np.uint8], affine: NDArray[np.float64], codes: str) -> Phantom:
    """The same volume with its voxel axes in another order and direction, from that of RAS."""
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    volumes = [np.ascontiguousarray(nibabel.orientations.apply_orientation(v, turn)) for v in (image, labels)]
    return Phantom(*volumes, affine @ nibabel.orientations.inv_ornt_aff(turn, image.shape))


def _save(voxels: NDArray, affine: NDArray[np.float64], path: Path) -> None:
    file = nibabel.Nifti1Image(voxels, affine)
    file.header.set_xyzt_units("mm")
    file.set_sform(affine, code="scanner")
    file.set_qform(affine, code="scanner")
    nibabel.save(file, path)


def _begin(folder: Path, recipe: dict[str, Any]) -> bool:
    """Claim a folder for a recipe; True if its set is complete already."""
    whole, begun = folder / "phantoms.json", folder / "phantoms.json.part"
    for marker in (whole, begun):
        if marker.is_file():
            found = json.loads(marker.read_text(encoding="utf-8"))
            if found != recipe:
                raise ValueError(f"{folder} holds phantoms of another recipe ({found}): choose another folder")
            return marker == whole
    names = ("imagesTr", "labelsTr", "imagesTs", "dataset_0.json")
    if strange := [name for name in names if (folder / name).exists()]:
        raise ValueError(f"{folder} holds {' and '.join(strange)} of something else: choose another folder")
    write_json(begun, recipe)
    return False


def write(folder: str | Path, phantoms: Phantoms) -> Path:
    """Write a set of phantoms in the layout of BTCV; returns the folder.

    `imagesTr/img0001.nii.gz` and `labelsTr/label0001.nii.gz` and on for training and validation, `imagesTs` for the
    cases without labels, the data list `dataset_0.json`, and `phantoms.json`, which is written last: a set that is
    complete is left as it is, one of a killed run is completed.

    Raises:
        ValueError: the folder holds phantoms of another recipe, or other data.
    """
    folder = Path(folder)
    recipe = json.loads(json.dumps(dict(version=VERSION, **asdict(phantoms))))
    if _begin(folder, recipe):
        return folder
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        remove_unfinished(folder / name, ".nii.gz")
    numbers = cases(phantoms)
    for split, group in numbers.items():
        for number in group:
            names = case(number, labelled=split != "test")
            files = {"image": folder / names.image} | ({"labels": folder / names.label} if names.label else {})
            if all(path.is_file() for path in files.values()):  # written in one step, so one that is there is whole
                continue
            phantom = compose(phantoms, number)
            for kind, path in files.items():
                write_atomically(path, partial(_save, getattr(phantom, kind), phantom.affine))
    splits = {split: [case(number, split != "test") for number in group] for split, group in numbers.items()}
    content = data_list(LABELS, splits, "phantoms", "Abdominal phantoms in the layout of BTCV: drawn, no scans")
    write_json(folder / "dataset_0.json", content)
    os.replace(folder / "phantoms.json.part", folder / "phantoms.json")
    return folder
