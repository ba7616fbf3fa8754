"""MONAI's `LoadImaged` reads files as their check does: one rule for geometry, pictures and label maps."""

from collections.abc import Sequence

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple

from ..data.volume_checks import off_grid
from ..data.volume_files import Volume, read_grid, read_labels, read_volume

__all__ = ["FileReader"]


class FileReader(ImageReader):
    """Reads what nibabel and Pillow read; several files of one grid are the channels of an image.

    Args:
        labels: the files are label maps, of which a picture's palette indices are the ids.
    """

    def __init__(self, labels: bool = False):
        super().__init__()
        self.labels = labels

    def verify_suffix(self, filename) -> bool:
        """Any file."""
        return True

    def read(self, data, **kwargs) -> list[Volume]:
        """What the files hold.

        Raises:
            ValueError: they lie on grids that differ by more than rounding.
            Exception: see `read_volume`.
        """
        volumes = []
        for path in ensure_tuple(data):
            if self.labels:
                grid = read_grid(path)
                volumes.append(Volume(read_labels(path), grid.affine, len(grid.shape)))
            else:
                volumes.append(read_volume(path))
            if wrong := off_grid(path, volumes[-1].grid, volumes[0].grid, "other channels"):
                raise ValueError(f"{wrong[0].file} {wrong[0].what} (expected {wrong[0].expected})")
        return volumes

    def get_data(self, img: Sequence[Volume]) -> tuple[np.ndarray, dict]:
        """Voxels, float32, and what MONAI notes of their geometry, which is that of the first file."""
        first = img[0]
        with np.errstate(over="ignore"):  # what is infinite then is found by `CheckImaged`
            voxels = [np.ascontiguousarray(one.voxels, np.float32) for one in img]
        channels = [one[..., None] if one.ndim == first.axes else one for one in voxels]
        one_map = len(img) == 1 and voxels[0].ndim == first.axes
        meta = dict(
            affine=_own_axes(first).copy(),
            original_affine=_own_axes(first).copy(),
            spatial_shape=np.array(first.shape),
            original_channel_dim=float("nan") if one_map else -1,
            space="RAS",
        )
        return voxels[0] if one_map else np.concatenate(channels, -1), meta


def _own_axes(volume: Volume) -> np.ndarray:
    """The affine, of as many axes as pictures have."""
    return volume.affine if volume.axes == 3 or not np.array_equal(volume.affine, np.eye(4)) else np.eye(3)
