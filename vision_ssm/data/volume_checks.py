"""What is wrong with the files of a medical image and its label map. Needs nibabel (extra `medical`)."""

import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from .layout import Wrong
from .volume_files import Grid, Volume, affine_problems, drift, read_grid, read_labels, read_volume, read_whole

__all__ = ["check_volume", "checked_grid", "checked_labels", "off_grid"]

_SHOWN = 5
_DRIFT = 0.1  # voxels


def check_volume(
    images: Path | Sequence[Path], label: Path | None = None, allowed: Collection[int] | None = None
) -> list[Wrong]:
    """Read an image (one file, or one for each channel) and its label map whole, and compare them.

    Args:
        images, label: the files.
        allowed: ids that the label map may hold; any if None.

    Returns:
        What is wrong: files that are missing, truncated or damaged; voxels that are no finite float32; affines that
        are not finite or have no inverse; shapes or affines that differ (corners further apart than a tenth of a
        voxel); ids that no class has.
    """
    wrong: list[Wrong] = []
    first: Grid | None = None
    for path in [images] if isinstance(images, (str, Path)) else images:
        try:
            read_whole(path)
            volume = read_volume(path, scaled=False)  # a tenth of the memory, where integers have a slope
        except Exception as error:  # decoders of damaged files raise anything
            wrong.append(_unreadable(Path(path), error))
            continue
        if count := _infinite(volume):
            wrong.append(Wrong(str(path), f"{count} voxels are not finite", "numbers"))
        wrong += affine_problems(path, volume.affine)
        if first is not None:
            wrong += off_grid(path, volume.grid, first, "other channels")
        first = first or volume.grid
        del volume  # not beside the label map
    if label is not None:
        wrong += checked_labels(label, first, allowed)[1]
    return wrong


def _infinite(volume: Volume) -> int:
    """The number of voxels that are no finite float32, which is what networks get."""
    voxels, (slope, intercept) = volume.voxels, volume.scale
    if voxels.dtype.kind != "f":
        voxels = np.array([voxels.min(), voxels.max()], np.float64)  # if any, then these
    with np.errstate(over="ignore", invalid="ignore"):
        if (slope, intercept) != (1.0, 0.0):
            voxels = voxels.astype(np.float64) * slope + intercept
        return int((~np.isfinite(voxels.astype(np.float32))).sum())


def _unreadable(path: Path, error: Exception) -> Wrong:
    if isinstance(error, FileNotFoundError) or not path.exists():
        return Wrong(str(path), "it is missing", "a file")
    reason = " ".join(str(error).replace(str(path), "it").split())
    kind = f"{type(error).__name__}: " if isinstance(error, (OSError, EOFError, zlib.error)) else ""
    return Wrong(str(path), f"cannot be read: {kind}{reason or 'it is damaged'}", "a whole volume or picture")


def off_grid(path: Path | str, grid: Grid, other: Grid, of: str) -> list[Wrong]:
    """Whether a file lies elsewhere than another one; affines that are bad themselves are not compared."""
    if grid.shape != other.shape:
        return [Wrong(str(path), f"has {_by(grid.shape)} voxels", f"{_by(other.shape)}, as {of}")]
    if affine_problems(path, grid.affine) or affine_problems(path, other.affine):
        return []
    if (apart := drift(other.affine, grid.affine, grid.shape)) > _DRIFT:
        return [Wrong(str(path), f"its affine puts voxels {apart:.1f} voxels off", f"the affine of {of}")]
    return []


def _present(ids: np.ndarray) -> set[int]:
    if ids.min(initial=0) >= 0 and ids.max(initial=0) < 1 << 16:  # far faster than sorting
        counts = (np.bincount(slab.ravel().astype(np.intp), minlength=1 << 16) for slab in ids)  # slab by slab: memory
        return set(np.flatnonzero(sum(counts, np.zeros(1 << 16, np.int64))).tolist())
    return set(np.unique(ids).tolist())


def checked_grid(path: Path | str) -> tuple[Grid, list[Wrong]]:
    """The grid of a file, and what is wrong with it or its checksum; an empty one if the file cannot be read."""
    try:
        read_whole(path)
        grid = read_grid(path)
    except Exception as error:
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
        read_whole(path)
        ids, grid = read_labels(path), read_grid(path)
    except Exception as error:
        return np.zeros(0, np.int64), [_unreadable(Path(path), error)]
    wrong = affine_problems(path, grid.affine)
    if image is not None:
        wrong += off_grid(path, grid, image, "its image")
    if allowed is not None and (strange := sorted(_present(ids) - set(allowed))):
        some = ", ".join(map(str, strange[:_SHOWN])) + (", ..." if len(strange) > _SHOWN else "")
        several = f"one of {', '.join(map(str, sorted(allowed)))}"
        known = f"ids of {len(allowed)} classes" if isinstance(allowed, range) else several
        wrong.append(Wrong(str(path), f"has ids outside the classes: {some}", known))
    return ids, wrong


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
