"""One volume of an evaluation: its files, its original grid, and the way back to it."""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.transforms import SpatialResample
from PIL import Image
from torch import Tensor

from ..data.volume_files import is_picture
from ..files import write_atomically

__all__ = ["Case", "prediction_name"]


def prediction_name(image: str) -> str:
    """File name of an image's prediction: the image's, but PNG for pictures."""
    path = Path(image)
    return path.with_suffix(".png").name if is_picture(path) else path.name


@dataclass(frozen=True)
class Case:
    """A volume (or a picture) and its grids.

    Attributes:
        image: its file, the first one of several channels.
        affine: (4, 4) of the grid that the network sees, voxel indices to millimetres, float64.
        original_affine: (4, 4) of the file's grid.
        original_shape: of the file's grid, two or three sizes.
        truth: class ids on the file's grid, uint8, where there are any.
    """

    image: str
    affine: Tensor
    original_affine: Tensor
    original_shape: tuple[int, ...]
    truth: Tensor | None = None

    @property
    def name(self) -> str:
        """File name of a prediction."""
        return prediction_name(self.image)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Sizes of a voxel of the file's grid in millimetres."""
        axes = len(self.original_shape)
        return tuple(float(s) for s in affine_to_spacing(self.original_affine.numpy(), axes))

    def on_original_grid(self, labels: Tensor) -> Tensor:
        """Class ids read at the centres of the file's voxels.

        Whatever turned, cropped, padded or resampled the image is in its affine, so that one nearest-neighbour
        reading undoes it all. Voxels outside what the network saw are background.

        Args:
            labels: (*grid) class ids, uint8.

        Returns:
            (*original_shape), uint8.
        """
        axes = len(self.original_shape)
        grid = MetaTensor(labels[None].float(), affine=to_affine_nd(3, self.affine.numpy()))
        resample = SpatialResample(mode="nearest", padding_mode="zeros", dtype=torch.float64)
        destination = to_affine_nd(axes, self.original_affine.numpy())
        result = resample(grid, dst_affine=destination, spatial_size=self.original_shape)
        return result.as_tensor()[0].round().to(torch.uint8)

    def save(self, labels: Tensor, folder: Path) -> Path:
        """Write class ids on the original grid: NIfTI with the image's affine, codes and units; PNG for pictures.

        Args:
            labels: (*original_shape), uint8.
            folder: for a file of the image's name, written in one step.
        """
        ids = labels.cpu().numpy().astype(np.uint8)
        if ids.ndim == 2:
            picture = Image.fromarray(np.ascontiguousarray(ids.T))
            return write_atomically((folder / self.name).with_suffix(".png"), picture.save)
        source = nibabel.load(self.image)
        header = nibabel.Nifti1Header.from_header(source.header, check=False)
        header.set_data_dtype(np.uint8)
        header.set_data_shape(ids.shape)
        header["scl_slope"], header["scl_inter"], header["cal_min"], header["cal_max"] = np.nan, np.nan, 0, 0
        volume = nibabel.Nifti1Image(ids, source.affine, header)
        return write_atomically(folder / self.name, volume.to_filename)
