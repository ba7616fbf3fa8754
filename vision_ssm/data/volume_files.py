"""Medical images and label maps as files: NIfTI volumes, and pictures for 2D sets. Needs nibabel (extra `medical`)."""

import bz2
import gzip
import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import SpatialImage

from .. import pictures
from ..pictures import is_picture
from .layout import Wrong

__all__ = [
    "Grid", "Volume", "affine_problems", "drift", "is_picture", "read_channels", "read_grid", "read_labels",
    "read_volume", "read_whole",
]  # fmt: skip

_VOLUME = 0.1  # of the box that the axes' directions span; 0 in one plane, and a gantry tilt of 30 degrees has 0.87
_COMPRESSED = {".gz": gzip.open, ".mgz": gzip.open, ".bz2": bz2.open}


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
        scale: slope and intercept that are still to be applied.
    """

    voxels: np.ndarray
    affine: np.ndarray
    axes: int
    scale: tuple[float, float] = (1.0, 0.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of the grid."""
        return self.voxels.shape[: self.axes]

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid(self.shape, self.affine)


def _opened(path: Path) -> SpatialImage:
    """A file of a volume, of which the header alone has been read.

    Raises:
        FileNotFoundError, OSError, ValueError: it is missing, cannot be opened, or is no volume of numbers.
    """
    if path.is_dir():
        raise ValueError("it is a folder, expected one file (dcm2niix makes one of a DICOM series)")
    try:
        image = nibabel.load(path)
    except (OSError, EOFError, zlib.error):
        raise
    except Exception as error:  # of decoders that the suffix chose
        empty = path.stat().st_size == 0
        raise ValueError("it is empty" if empty else "it is damaged, or of no format that nibabel reads") from error
    if not isinstance(image, SpatialImage) or len(image.shape) < 2 or min(image.shape) < 1:
        raise ValueError(f"it is no volume: its shape is {getattr(image, 'shape', None)}")
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        kind = f"colours ({''.join(dtype.names)})" if dtype.names else f"{dtype} numbers"
        raise ValueError(f"its voxels are {kind}, expected one real number a voxel")
    return image


def read_grid(path: str | Path) -> Grid:
    """The grid of a file, from its header alone."""
    path = Path(path)
    if is_picture(path):
        return Grid(pictures.read_size(path), np.eye(4))
    image = _opened(path)
    return Grid(image.shape[:3], _affine(image))


def read_channels(path: str | Path) -> int:
    """The number of channels of a file, from its header alone."""
    path = Path(path)
    return pictures.read_channels(path) if is_picture(path) else math.prod(_opened(path).shape[3:])


def _affine(image: SpatialImage) -> np.ndarray:
    """Of voxel indices to millimetres.

    Some NIfTI files, ACDC's among them, have an sform of 1 mm voxels beside the right sizes and qform. As in MONAI's
    reader of 3D files, the qform is then taken.
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
    """Read the voxels of a file.

    Args:
        path: its name.
        scaled: apply the slope and intercept of its header, which makes float64 of integers.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no picture or volume of real numbers.
        OSError, EOFError, zlib.error, ...: it cannot be decoded.
    """
    path = Path(path)
    if is_picture(path):
        return Volume(pictures.read_pixels(path).swapaxes(0, 1), np.eye(4), 2)
    image = _opened(path)
    stored, scale = image.dataobj, (1.0, 0.0)
    if scaled or not hasattr(stored, "get_unscaled"):
        voxels = np.asanyarray(stored)
    else:
        voxels, scale = stored.get_unscaled(), (float(stored.slope), float(stored.inter))
    if voxels.ndim > 4:
        voxels = voxels.reshape(*voxels.shape[:3], -1)
    return Volume(voxels, _affine(image), min(image.ndim, 3), scale)


def read_whole(path: str | Path) -> None:
    """Decompress a file to its end, where its checksum is, which readers of voxels do not reach.

    Raises:
        OSError, EOFError, zlib.error: it is damaged, or something follows what is compressed.
    """
    path = Path(path)
    if is_picture(path):  # the decoder does
        return
    for part in _opened(path).file_map.values():  # of .img and .hdr two
        name = Path(part.filename or "")
        if name.is_file() and (unpack := _COMPRESSED.get(name.suffix.lower())):
            with unpack(name) as file:
                while file.read(1 << 24):
                    pass


def read_labels(path: str | Path) -> np.ndarray:
    """Class ids of a label file, integers in the file's order of axes; a single channel at the end is dropped.

    Raises:
        ValueError: the values are no ids.
    """
    if is_picture(Path(path)):
        return pictures.read_labels(path).swapaxes(0, 1)
    volume = read_volume(path)
    voxels = volume.voxels
    if voxels.ndim == volume.axes + 1 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != volume.axes:
        raise ValueError(f"it has {voxels.shape[-1]} channels, expected one, of class ids")
    if voxels.dtype.kind != "f":
        return voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    with np.errstate(invalid="ignore"):
        ids = voxels.astype(np.int64)
    if not np.array_equal(ids, voxels):
        raise ValueError("it has values that are no whole numbers, expected class ids")
    return ids


def drift(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
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
