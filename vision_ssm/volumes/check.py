"""The files of a data set of volumes, looked at before a training."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from monai.transforms import (
    CropForegroundd,
    DivisiblePadd,
    Orientationd,
    RandCropByLabelClassesd,
    RandCropByPosNegLabeld,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
    RandWeightedCropd,
    Resized,
    ResizeWithPadOrCropd,
    Spacingd,
    SpatialPadd,
    Transform,
)
from nibabel.affines import voxel_sizes
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from ..data.layout import Wrong, each
from ..data.volume_checks import check_volume
from ..data.volume_files import read_channels, read_grid
from ..engine import DataError
from ..engine.data_check import checked_once, file_stamp

__all__ = ["check_volumes", "sizes_at_crops", "told"]

_CROPS = (
    RandCropByLabelClassesd, RandCropByPosNegLabeld, RandSpatialCropd, RandSpatialCropSamplesd, RandWeightedCropd,
)  # fmt: skip


def told(wrong: Wrong) -> str:
    """What is wrong with a file, in a line."""
    return f"{wrong.file}: {wrong.what} (expected {wrong.expected})"


@dataclass
class _Sizes:
    """What is known of a volume's sides, of its header alone, after some of the transforms.

    Attributes:
        spacing: of its voxels.
        about: voxels, if nothing had been padded.
        padded: voxels.
        least: voxels, whatever the foreground is.
    """

    spacing: np.ndarray
    about: np.ndarray
    padded: np.ndarray
    least: np.ndarray

    def change(self, function: Callable[[np.ndarray], np.ndarray], pads: bool = False) -> None:
        """Change the numbers of voxels, but for that without padding if the step pads."""
        self.about = self.about if pads else function(self.about)
        self.padded, self.least = function(self.padded), function(self.least)


def _per_axis(asked: int | Sequence[int], axes: int) -> np.ndarray:
    """One number for each axis; those that are not above 0 ask for nothing."""
    return np.broadcast_to(np.array(asked, dtype=float), axes)


def sizes_at_crops(shape: Sequence[int], affine: np.ndarray, transforms: Sequence[Transform]) -> _Sizes:
    """About how many voxels a volume has where crops are taken.

    Args:
        shape, affine: of the file.
        transforms: of the data set; those before the first crop that turn axes, change the spacing, resize, cut the
            foreground or pad count.
    """
    axes = len(shape)
    voxels = np.array(shape, dtype=float)
    sizes = _Sizes(voxel_sizes(affine)[:axes], voxels, voxels, voxels)
    for step in transforms:
        if isinstance(step, _CROPS):
            break
        if isinstance(step, Orientationd) and axes == 3 and step.ornt_transform.axcodes:
            turn = ornt_transform(io_orientation(affine), axcodes2ornt(step.ornt_transform.axcodes))
            order = np.argsort(turn[:, 0])
            sizes.spacing = sizes.spacing[order]
            sizes.change(lambda n, order=order: n[order])
        elif isinstance(step, Spacingd):
            asked = _per_axis(step.spacing_transform.pixdim, axes)
            target = np.where(asked > 0, asked, sizes.spacing)
            scale, sizes.spacing = sizes.spacing / target, target
            sizes.change(lambda n, scale=scale: np.maximum(np.rint((n - 1) * scale) + 1, 1))
        elif isinstance(step, CropForegroundd):
            sizes.least = np.ones(axes)
        elif isinstance(step, Resized):
            asked = _per_axis(step.resizer.spatial_size, axes)
            if step.resizer.size_mode == "longest":
                sizes.change(lambda n, asked=asked: np.rint(n * asked / n.max()))
            else:
                sizes.change(lambda n, asked=asked: np.where(asked > 0, asked, n))
        elif isinstance(step, ResizeWithPadOrCropd):
            asked = _per_axis(step.padder.padder.spatial_size, axes)
            sizes.change(lambda n, asked=asked: np.where(asked > 0, asked, n), pads=True)
        elif isinstance(step, SpatialPadd):
            asked = _per_axis(step.padder.spatial_size, axes)
            sizes.change(lambda n, asked=asked: np.maximum(n, asked), pads=True)
        elif isinstance(step, DivisiblePadd):
            unit = np.maximum(_per_axis(step.padder.k, axes), 1)
            sizes.change(lambda n, unit=unit: np.ceil(n / unit) * unit, pads=True)
    return sizes


def _crop_size(transforms: Sequence[Transform], axes: int) -> np.ndarray:
    """Voxels of the first crop; 0 without one, and where it takes an axis whole."""
    crop = next((step for step in transforms if isinstance(step, _CROPS)), None)
    while crop is not None and hasattr(crop, "cropper"):  # the transform of arrays inside that of dictionaries
        crop = crop.cropper
    asked = getattr(crop, "spatial_size", None) or getattr(crop, "roi_size", None) or 0
    return np.maximum(_per_axis(asked, axes), 0)


def _by(sizes: np.ndarray) -> str:
    return "x".join(str(int(one)) for one in sizes)


def _check_sizes(items: Sequence[Mapping], transforms: Sequence[Transform], log: Callable[[str], object]) -> None:
    """Compare volumes with each other and with the crops of training, and say which ones are padded."""
    padded, first = [], None
    for item in items:
        paths = [item["image"]] if isinstance(item["image"], str) else item["image"]
        path, channels = paths[0], sum(map(read_channels, paths))
        first = first or (path, channels)
        if channels != first[1]:
            raise DataError(f"{path} has {channels} channels, {first[0]} has {first[1]}: expected the same number")
        shape, affine = read_grid(path)
        sizes, crop = sizes_at_crops(shape, affine, transforms), _crop_size(transforms, len(shape))
        line = f"{path} has about {_by(sizes.about)} voxels at the training's spacing, its crops {_by(crop)}"
        if (sizes.padded < crop).any():
            raise DataError(f"{line}: add a SpatialPadd of that size before the crop")
        if (sizes.least < crop).any():
            raise DataError(
                f"a CropForegroundd may leave less than crops of {_by(crop)}: add a SpatialPadd between them"
            )
        if (sizes.about < crop).any():
            padded.append(line)
    if padded:
        more = f" (and {len(padded) - 1} more)" if len(padded) > 1 else ""
        log(f"{padded[0]}{more}: they are padded")


def check_volumes(
    items: Sequence[Mapping],
    allowed: Collection[int],
    transforms: Sequence[Transform] = (),
    log: Callable[[str], object] | None = None,
) -> None:
    """Read all images and label maps, in threads; what was found good is not read again.

    Volumes that are smaller than the crops are told to `log` where a transform pads them.

    Args:
        items: `image` and perhaps `label` of each volume.
        allowed: ids that label maps may hold.
        transforms: of the data set, to compare its crops with the volumes.
        log: called with lines.

    Raises:
        DataError: files are missing or truncated; voxels or affines are not finite, or affines have no inverse; shapes
            or affines of an image and its label map differ; ids are outside the classes; or a volume is smaller than
            its crops, or may be after a `CropForegroundd`, and nothing pads it; or images have other channels.
    """

    def problems() -> list[str]:
        if log:
            log(f"checking {len(items)} volumes and their label maps, once")
        wrong = each(lambda item: check_volume(item["image"], item.get("label"), allowed), items)
        return [told(one) for one in wrong]

    paths = [path for item in items for path in (item["image"], item.get("label")) if path]
    files = [one for path in paths for one in ([path] if isinstance(path, str) else path)]
    checked_once([f"volumes {sorted(allowed)}", *map(file_stamp, files)], problems)
    _check_sizes(items, transforms, log or (lambda line: None))
