"""Medical images and label maps as files: NIfTI volumes, and pictures for 2D sets. Needs nibabel (extra `medical`)."""

import math
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from PIL import Image

from .layout import Wrong

__all__ = [
    "Grid", "Volume", "affine_problems", "check_volume", "checked_grid", "checked_labels", "is_picture",
    "read_channels", "read_grid", "read_labels", "read_volume",
]  # fmt: skip

_UNREADABLE = (
    OSError, EOFError, ValueError, SyntaxError, zlib.error, ImageFileError, HeaderDataError,
    Image.DecompressionBombError,
)  # fmt: skip
_SHOWN = 5
_VOLUME = 0.1  # of the box that the axes' directions span; 0 in one plane, and a gantry tilt of 30 degrees has 0.87


class Grid(NamedTuple):
    """Where voxels lie: the sizes of the spatial axes, and the affine (4, 4) of voxel indices to millimetres, RAS+."""

    shape: tuple[int, ...]
    affine: np.ndarray


class Volume(NamedTuple):
    """What a file holds.

    Attributes:
        voxels: (x, y, z[, channels]) in the file's order of axes; pictures (x, y[, channels]).
        affine: (4, 4), voxel indices to millimetres, RAS+; the identity for pictures.
        axes: number of spatial axes.
    """

    voxels: np.ndarray
    affine: np.ndarray
    axes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of the grid."""
        return self.voxels.shape[: self.axes]


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its suffix."""
    return path.suffix.lower() in Image.registered_extensions()


def read_grid(path: str | Path) -> Grid:
    """The grid of a file, from its header alone."""
    path = Path(path)
    if is_picture(path):
        with Image.open(path) as picture:
            return Grid(picture.size, np.eye(4))
    image = nibabel.load(path)
    return Grid(image.shape[:3], _affine(image))


def read_channels(path: str | Path) -> int:
    """The number of channels of a file, from its header alone."""
    path = Path(path)
    if is_picture(path):
        with Image.open(path) as picture:
            return len(picture.getbands())
    return math.prod(nibabel.load(path).shape[3:])


def _affine(image: nibabel.spatialimages.SpatialImage) -> np.ndarray:
    """Of voxel indices to millimetres.

    Some NIfTI files, ACDC's among them, have an sform of 1 mm voxels beside the right sizes and qform. As MONAI's
    reader does, the qform is then taken.
    """
    if isinstance(image, nibabel.Nifti1Pair) and not affine_problems("", image.affine):
        axes = min(image.ndim, 3)
        sizes = image.header.get_zooms()[:axes]
        if np.allclose(voxel_sizes(image.affine)[:axes], sizes):
            return image.affine
        with suppress(ValueError):  # a quaternion that turns nothing
            if np.allclose(voxel_sizes(qform := image.get_qform())[:axes], sizes):
                return qform
    return image.affine


def read_volume(path: str | Path, scaled: bool = True) -> Volume:
    """Read a whole file.

    Args:
        path: its name.
        scaled: apply the slope and intercept of its header, which makes float64 of integers.

    Raises:
        FileNotFoundError: it is not there.
        OSError, EOFError, ValueError, zlib.error, ImageFileError: it cannot be decoded.
    """
    path = Path(path)
    if is_picture(path):
        with Image.open(path) as picture:
            return Volume(np.asarray(picture).swapaxes(0, 1), np.eye(4), 2)
    image = nibabel.load(path)
    stored = image.dataobj
    voxels = np.asanyarray(stored) if scaled or not hasattr(stored, "get_unscaled") else stored.get_unscaled()
    return Volume(voxels, _affine(image), min(image.ndim, 3))


def read_labels(path: str | Path) -> np.ndarray:
    """Class ids of a label file, integers in the file's order of axes; a single channel at the end is dropped.

    Raises:
        ValueError: the values are no ids.
    """
    volume = read_volume(path)
    voxels = volume.voxels
    if voxels.ndim == volume.axes + 1 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != volume.axes:
        raise ValueError(f"{path} has {voxels.shape[-1]} channels, expected one, of class ids")
    if voxels.dtype.kind != "f":
        return voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    with np.errstate(invalid="ignore"):
        ids = voxels.astype(np.int64)
    if not np.array_equal(ids, voxels):
        raise ValueError(f"{path} has values that are no whole numbers, expected class ids")
    return ids


def _present(ids: np.ndarray) -> set[int]:
    if ids.min(initial=0) >= 0 and ids.max(initial=0) < 1 << 16:  # far faster than sorting
        slabs = (np.bincount(slab.ravel(), minlength=1 << 16) for slab in ids)  # each as int64 for a moment
        return set(np.flatnonzero(sum(slabs, np.zeros(1 << 16, np.int64))).tolist())
    return set(np.unique(ids).tolist())


def _drift(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """How far apart, in voxels, two affines put the corners of a grid."""
    sides = [(0, n - 1) for n in (*shape, 1, 1)[:3]]
    corners = np.stack([*(axis.ravel() for axis in np.meshgrid(*sides)), np.ones(8)])
    apart = np.linalg.norm(((one - other) @ corners)[:3], axis=0).max()
    return float(apart / np.linalg.norm(one[:3, :3], axis=0).min())


def affine_problems(path: Path | str, affine: np.ndarray) -> list[Wrong]:
    """What makes an affine (4, 4) one that no voxel can be found by."""
    if not np.isfinite(affine).all():
        return [Wrong(str(path), "its affine is not finite", "numbers")]
    axes = affine[:3, :3]
    sides = np.linalg.norm(axes, axis=0)
    if not sides.all():
        return [Wrong(str(path), f"has voxels of {' x '.join(f'{side:.4g}' for side in sides)} mm", "sizes above 0")]
    if abs(np.linalg.det(axes / sides)) < _VOLUME:
        return [Wrong(str(path), "has axes that lie in one plane", "an affine with three directions")]
    return []


def _unreadable(path: Path, error: Exception) -> Wrong:
    if isinstance(error, FileNotFoundError):
        return Wrong(str(path), "it is missing", "a file")
    reason = " ".join(str(error).replace(str(path), path.name).split())
    return Wrong(str(path), f"cannot be read: {type(error).__name__}: {reason}", "a whole volume")


def check_volume(
    images: Path | Sequence[Path], label: Path | None = None, allowed: Collection[int] | None = None
) -> list[Wrong]:
    """Read an image (one file, or one for each channel) and its label map whole, and compare them.

    Args:
        images, label: the files.
        allowed: ids that the label map may hold; any if None.

    Returns:
        What is wrong: files that are missing or truncated, voxels or affines that are not finite, affines that have no
        inverse, shapes or affines that differ (corners further apart than a tenth of a voxel), ids that no class has.
    """
    wrong: list[Wrong] = []
    first: Grid | None = None
    for path in [images] if isinstance(images, (str, Path)) else images:
        try:
            volume = read_volume(path, scaled=False)  # a tenth of the memory, where integers have a slope
        except _UNREADABLE as error:
            wrong.append(_unreadable(Path(path), error))
            continue
        if volume.voxels.dtype.kind == "f" and (count := int((~np.isfinite(volume.voxels)).sum())):
            wrong.append(Wrong(str(path), f"{count} voxels are not finite", "numbers"))
        wrong += affine_problems(path, volume.affine)
        if first is not None and volume.shape != first.shape:
            wrong.append(Wrong(str(path), f"has {_by(volume.shape)} voxels", f"{_by(first.shape)}, as other channels"))
        first = first or Grid(volume.shape, volume.affine)
        del volume  # not beside the label map
    if label is not None:
        wrong += checked_labels(label, first, allowed)[1]
    return wrong


def checked_grid(path: Path | str) -> tuple[Grid, list[Wrong]]:
    """The grid of a file, and what is wrong with it; an empty one if the file cannot be read."""
    try:
        grid = read_grid(path)
    except _UNREADABLE as error:
        return Grid((), np.eye(4)), [_unreadable(Path(path), error)]
    return grid, affine_problems(path, grid.affine)


def checked_labels(
    path: Path | str, image: Grid | None = None, allowed: Collection[int] | None = None
) -> tuple[np.ndarray, list[Wrong]]:
    """Read a label map, and look at it as at one of its image.

    Args:
        path: its file.
        image: has the shape and affine that it should have; any if None. An affine that is bad itself is not compared.
        allowed: ids that it may hold; any if None.

    Returns:
        Ids (see `read_labels`), none if the file cannot be read, and what is wrong (see `check_volume`).
    """
    try:
        ids, (shape, affine) = read_labels(path), read_grid(path)
    except _UNREADABLE as error:
        return np.zeros(0, np.int64), [_unreadable(Path(path), error)]
    wrong = affine_problems(path, affine)
    comparable = image is not None and not wrong and not affine_problems(path, image.affine)
    if image is not None and shape != image.shape:
        wrong.append(Wrong(str(path), f"has {_by(shape)} voxels", f"{_by(image.shape)}, as its image"))
    elif comparable and (drift := _drift(image.affine, affine, shape)) > 0.1:
        wrong.append(Wrong(str(path), f"its affine puts voxels {drift:.1f} voxels off", "the affine of its image"))
    if allowed is not None and (strange := sorted(_present(ids) - set(allowed))):
        some = ", ".join(map(str, strange[:_SHOWN])) + (", ..." if len(strange) > _SHOWN else "")
        several = f"one of {', '.join(map(str, sorted(allowed)))}"
        known = f"ids of {len(allowed)} classes" if isinstance(allowed, range) else several
        wrong.append(Wrong(str(path), f"has ids outside the classes: {some}", known))
    return ids, wrong


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
