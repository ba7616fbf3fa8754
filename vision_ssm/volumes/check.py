"""The files of a data set of volumes, looked at before a training."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from monai.transforms import (
    CropForegroundd,
    Orientationd,
    RandCropByLabelClassesd,
    RandCropByPosNegLabeld,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
    Resized,
    ResizeWithPadOrCropd,
    Spacingd,
    SpatialPadd,
    Transform,
)
from nibabel.affines import voxel_sizes
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from ..data.layout import Wrong, each
from ..data.volume_files import check_volume, read_grid
from ..engine import DataError
from ..engine.data_check import checked_once, file_stamp

__all__ = ["check_volumes", "size_for_crops", "told"]

_CROPS = (RandCropByPosNegLabeld, RandCropByLabelClassesd, RandSpatialCropd, RandSpatialCropSamplesd)


def told(wrong: Wrong) -> str:
    """What is wrong with a file, in a line."""
    return f"{wrong.file}: {wrong.what} (expected {wrong.expected})"


def size_for_crops(shape: Sequence[int], affine: np.ndarray, transforms: Sequence[Transform]) -> np.ndarray:
    """About how many voxels a volume has where crops are taken, of its header alone.

    Args:
        shape, affine: of the file.
        transforms: of the data set; those that turn axes, change the spacing or resize count.
    """
    sizes, spacing = np.array(shape, dtype=float), voxel_sizes(affine)[: len(shape)]
    for step in transforms:
        if isinstance(step, Orientationd) and len(shape) == 3 and step.ornt_transform.axcodes:
            change = ornt_transform(io_orientation(affine), axcodes2ornt(step.ornt_transform.axcodes))
            order = np.argsort(change[:, 0])
            sizes, spacing = sizes[order], spacing[order]
        elif isinstance(step, Spacingd):
            target = np.broadcast_to(np.array(step.spacing_transform.pixdim, dtype=float), sizes.shape)
            target = np.where(target > 0, target, spacing)
            sizes, spacing = np.rint((sizes - 1) * spacing / target) + 1, target
        elif isinstance(step, Resized):
            asked = np.broadcast_to(np.array(step.resizer.spatial_size), sizes.shape)
            sizes = np.where(asked > 0, asked, sizes)
    return sizes.astype(int)


def _crop_size(transforms: Sequence[Transform]) -> np.ndarray | None:
    for step in transforms:
        if isinstance(step, _CROPS):
            cropper = step.cropper
            size = getattr(cropper, "spatial_size", None)
            return np.array(size if size is not None else getattr(cropper, "roi_size", None))
    return None


def _before_crops(transforms: Sequence[Transform]) -> tuple[bool, bool]:
    """Whether the foreground alone comes to the crops, at whatever size, and whether it, or the whole, is padded."""
    foreground = padded = False
    for step in transforms:
        if isinstance(step, CropForegroundd):
            foreground, padded = True, False
        elif isinstance(step, (SpatialPadd, ResizeWithPadOrCropd, Resized)):
            foreground, padded = False, padded or not isinstance(step, Resized)
        elif isinstance(step, _CROPS):
            break
    return foreground, padded


def _small(item: Mapping, transforms: Sequence[Transform]) -> str | None:
    """A line about a volume that is smaller than the crops."""
    crop = _crop_size(transforms)
    path = item["image"] if isinstance(item["image"], str) else item["image"][0]
    shape, affine = read_grid(path)
    size = size_for_crops(shape, affine, transforms)
    if crop is None or crop.shape != size.shape or (size >= crop).all():
        return None
    sizes = ["x".join(map(str, one)) for one in (size, crop)]
    return f"{path} has about {sizes[0]} voxels at the training's spacing, its crops {sizes[1]}"


def check_volumes(
    items: Sequence[Mapping],
    allowed: Collection[int],
    transforms: Sequence[Transform] = (),
    log: Callable[[str], object] | None = None,
) -> None:
    """Read all images and label maps, in threads; what was found good is not read again.

    Volumes that are smaller than the crops are told to `log` where `SpatialPadd` pads them.

    Args:
        items: `image` and perhaps `label` of each volume.
        allowed: ids that label maps may hold.
        transforms: of the data set, to compare its crops with the volumes.
        log: called with lines.

    Raises:
        DataError: files are missing or truncated; voxels or affines are not finite, or affines have no inverse; shapes
            or affines of an image and its label map differ; ids are outside the classes; or a volume is smaller than
            its crops, or may be after a `CropForegroundd`, and nothing pads it.
    """

    def problems() -> list[str]:
        if log:
            log(f"checking {len(items)} volumes and their label maps, once")
        wrong = each(lambda item: check_volume(item["image"], item.get("label"), allowed), items)
        return [told(one) for one in wrong]

    paths = [path for item in items for path in (item["image"], item.get("label")) if path]
    files = [one for path in paths for one in ([path] if isinstance(path, str) else path)]
    checked_once([f"volumes {allowed}", *map(file_stamp, files)], problems)
    small = [line for item in items if (line := _small(item, transforms))]
    more = f" (and {len(small) - 1} more)" if len(small) > 1 else ""
    foreground, padded = _before_crops(transforms)
    if small and not padded:
        raise DataError(f"{small[0]}{more}: add a SpatialPadd of that size before the crop")
    if foreground and (crop := _crop_size(transforms)) is not None:
        size = "x".join(map(str, crop))
        raise DataError(f"a CropForegroundd may leave less than crops of {size}: add a SpatialPadd between them")
    if small and log:
        log(f"{small[0]}{more}: they are padded")
