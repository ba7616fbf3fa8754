"""Medical images and label maps as files, and what may be wrong with one or with a pair of them.

NIfTI volumes (gzipped or not), and pictures for 2D sets. nibabel, of the extra `medical`, is needed only where volumes
are opened.
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .layout import Wrong

__all__ = [
    "Volume",
    "check_volume",
    "image_problems",
    "label_problems",
    "open_volume",
    "pair_problems",
    "read_grid",
    "read_labels",
    "read_volume",
]

_SHIFT = 0.1  # voxels by which a label's corners may lie off its image's
_UNDECODABLE = (OSError, EOFError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError)


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


# One file


def open_volume(path: Path) -> Any:
    """A NIfTI file as nibabel's image, decoded from the first byte to the checksum.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is truncated, damaged or no NIfTI; the message says how.
    """
    import nibabel

    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        kinds = nibabel.Nifti1Image, nibabel.Nifti2Image
        kind = next((k for k in kinds if k.header_class.may_contain_header(raw[:1024])), kinds[0])
        volume = kind.from_bytes(raw)
        np.asanyarray(volume.dataobj)  # fewer bytes than the header says
        return volume
    except FileNotFoundError:
        raise
    except (*_UNDECODABLE, nibabel.filebasedimages.ImageFileError, nibabel.wrapstruct.WrapStructError) as error:
        raise ValueError(f"cannot be read: {_reason(error, path)}") from error
    except nibabel.spatialimages.HeaderDataError as error:
        raise ValueError(f"has a bad header: {error}") from error


def _reason(error: Exception, path: Path) -> str:
    return " ".join(str(error).replace(str(path), path.name).split())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in Image.registered_extensions()


def read_grid(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine (4, 4) of a file, from its header alone."""
    path = Path(path)
    if _is_picture(path):
        with Image.open(path) as picture:
            return picture.size, np.eye(4)
    import nibabel

    image = nibabel.load(path)
    return image.shape[:3], image.affine


def read_volume(path: str | Path) -> Volume:
    """Read a whole file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be decoded; the message says how.
    """
    path = Path(path)
    if not _is_picture(path):
        image = open_volume(path)
        return Volume(np.asanyarray(image.dataobj), image.affine, min(image.ndim, 3))
    try:
        with Image.open(path) as picture:
            return Volume(np.asarray(picture).swapaxes(0, 1), np.eye(4), 2)
    except FileNotFoundError:
        raise
    except _UNDECODABLE as error:
        raise ValueError(f"cannot be read: {_reason(error, path)}") from error


def read_labels(path: str | Path) -> np.ndarray:
    """Class ids of a label file, int64 in the file's order of axes.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be decoded, or its values are no ids; the message names it.
    """
    try:
        volume = read_volume(path)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    if problems := label_problems(str(path), volume.voxels, None, volume.axes):
        raise ValueError(f"{path}: {problems[0].what} (expected {problems[0].expected})")
    return _squeezed(volume.voxels, volume.axes).astype(np.int64)


def _squeezed(voxels: np.ndarray, axes: int) -> np.ndarray:
    return voxels[..., 0] if voxels.ndim == axes + 1 and voxels.shape[-1] == 1 else voxels


# What may be wrong


def image_problems(name: str, voxels: np.ndarray) -> list[Wrong]:
    """Voxels of an image that are no numbers."""
    bad = int((~np.isfinite(voxels)).sum()) if voxels.dtype.kind in "fc" else 0
    return [Wrong(name, f"{bad:,} voxels are not finite", "none")] if bad else []


def label_problems(name: str, voxels: np.ndarray, classes: int | None, axes: int = 3) -> list[Wrong]:
    """Values of a label map that are no class.

    Args:
        name: of the file.
        voxels: its values.
        classes: highest class, None for any.
        axes: number of spatial axes.
    """
    voxels = _squeezed(voxels, axes)
    if voxels.ndim != axes:
        return [Wrong(name, f"has {voxels.shape[-1]} channels", "one, of classes")]
    ids = _values(voxels)
    whole = np.isfinite(ids) & (ids == np.round(ids))
    if not whole.all():
        return [Wrong(name, f"a voxel is {ids[~whole][0]:g}", "whole numbers, a class each")]
    if ids.size and (ids[0] < 0 or (classes is not None and ids[-1] > classes)):
        bad = int(ids[0] if ids[0] < 0 else ids[-1])
        return [Wrong(name, f"class {bad}", "0 and above" if classes is None else f"0 to {classes}")]
    return []


def _values(voxels: np.ndarray) -> np.ndarray:
    """The values that occur, in order."""
    if voxels.dtype.kind in "iu" and voxels.min(initial=0) >= 0 and voxels.max(initial=0) < 1 << 16:  # without sorting
        return np.flatnonzero(np.bincount(voxels.ravel()))
    return np.unique(voxels)


def pair_problems(
    name: str, shape: Sequence[int], affine: np.ndarray, image_shape: Sequence[int], image_affine: np.ndarray
) -> list[Wrong]:
    """Where a label map's grid is not its image's: another size, or corners more than a tenth of a voxel off."""
    if tuple(shape) != tuple(image_shape):
        return [Wrong(name, f"has the shape {tuple(shape)}", f"{tuple(image_shape)}, as its image")]
    sides = [(0, n - 1) for n in (*shape, 1, 1)[:3]]
    corners = np.array(np.meshgrid(*sides, indexing="ij")).reshape(3, 8)
    difference = affine - image_affine
    shift = np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max()
    if shift > _SHIFT * np.linalg.norm(image_affine[:3, :3], axis=0).min():
        return [Wrong(name, f"lies {shift:.3g} mm off its image", "the same affine")]
    return []


def _read(path: str) -> tuple[Volume | None, list[Wrong]]:
    try:
        return read_volume(path), []
    except FileNotFoundError:
        return None, [Wrong(path, "is missing", "a file")]
    except ValueError as error:
        return None, [Wrong(path, str(error), "a whole image")]


def check_volume(images: str | Sequence[str], label: str | None = None, classes: int | None = None) -> list[Wrong]:
    """Read an image (one file, or one for each channel) and its label map whole, and compare them.

    Args:
        images, label: the files.
        classes: highest class that the label map may hold, None for any.

    Returns:
        What is wrong: files that are missing, truncated or damaged, voxels that are not finite, grids that differ,
        values that are no class.
    """
    wrong: list[Wrong] = []
    first: Volume | None = None
    for path in [images] if isinstance(images, str) else images:
        volume, problems = _read(path)
        wrong += problems
        if volume is None:
            continue
        wrong += image_problems(path, volume.voxels)
        if first is not None:
            wrong += pair_problems(path, volume.shape, volume.affine, first.shape, first.affine)
        first = first or volume
    if label is None:
        return wrong
    volume, problems = _read(label)
    if volume is None:
        return wrong + problems
    if first is not None:
        wrong += pair_problems(label, volume.shape, volume.affine, first.shape, first.affine)
    return wrong + label_problems(label, volume.voxels, classes, volume.axes)
