"""One volume of an evaluation: its files, its original grid, and the way back to it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data.utils import affine_to_spacing, to_affine_nd
from PIL import Image
from torch import Tensor

from ..data.volume_files import is_picture
from ..files import write_atomically

__all__ = ["Case", "label_dtype", "prediction_name", "prediction_names"]


def prediction_name(image: str) -> str:
    """File name of an image's prediction: the image's, but PNG for pictures and NIfTI for volumes of other formats."""
    path = Path(image)
    if is_picture(path):
        return path.with_suffix(".png").name
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return path.name
    whole = Path(path.stem) if path.suffix.lower() in (".gz", ".bz2", ".zst") else path
    return f"{whole.stem}.nii.gz"


def prediction_names(images: Sequence[str]) -> list[str]:
    """Names of the predictions of a set: those of the images; with the images' folders where names would be the same.

    Returns:
        Relative paths, of all images alike: below the folder that the images have in common, if two have one name.
    """
    names = [prediction_name(image) for image in images]
    paths = [os.path.abspath(image) for image in images]
    if len(set(zip(names, paths, strict=True))) == len(set(names)):
        return names
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [
        Path(os.path.relpath(os.path.dirname(path), common), name).as_posix()
        for path, name in zip(paths, names, strict=True)
    ]


def label_dtype(classes: int) -> torch.dtype:
    """The smallest type that files and tensors of so many classes share."""
    return torch.uint8 if classes <= 1 << 8 else torch.int16 if classes <= 1 << 15 else torch.int32


_SLAB = 1 << 18  # voxels
_BORDER = 1e-3  # voxels


@dataclass(frozen=True)
class Case:
    """A volume (or a picture) and its grids.

    Attributes:
        image: its file, the first one of several channels.
        affine: (4, 4) of the grid that the network sees, voxel indices to millimetres, float64.
        original_affine: (4, 4) of the file's grid.
        original_shape: of the file's grid, two or three sizes.
        truth: class ids on the file's grid, where there are any.
        ignored: voxels of the truth that are not measured, where there are any; bool.
        prediction: path of the prediction in the folder of predictions; the image's name if None.
    """

    image: str
    affine: Tensor
    original_affine: Tensor
    original_shape: tuple[int, ...]
    truth: Tensor | None = None
    ignored: Tensor | None = None
    prediction: str | None = None

    @property
    def name(self) -> str:
        """Path of the prediction in its folder."""
        return self.prediction or prediction_name(self.image)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Sizes of a voxel of the file's grid in `unit`."""
        axes = len(self.original_shape)
        return tuple(float(s) for s in affine_to_spacing(self.original_affine.numpy(), axes))

    @property
    def unit(self) -> str:
        """Of distances: millimetres, but pixels for pictures, whose files know no others."""
        return "pixels" if is_picture(Path(self.image)) else "mm"

    def on_original_grid(self, labels: Tensor) -> Tensor:
        """Class ids read at the centres of the file's voxels.

        Whatever turned, cropped, padded or resampled the image is in its affine, so that one nearest-neighbour
        reading undoes it all. Voxels outside what the network saw are background. The file's grid is filled slab by
        slab: coordinates of all its voxels at once would take many times the memory of the result.

        Args:
            labels: (*grid) class ids; a grid without voxels, of an image without foreground, is all background.

        Returns:
            (*original_shape), on the device and of the type of `labels`.
        """
        axes, (first, *rest) = len(self.original_shape), self.original_shape
        grid, file = (to_affine_nd(axes, affine.numpy()) for affine in (self.affine, self.original_affine))
        matrix = np.linalg.solve(grid, file)  # indices of the file's voxels to indices of the grid's
        result = torch.zeros(self.original_shape, dtype=labels.dtype, device=labels.device)
        if not labels.numel():
            return result
        for slab in torch.arange(first).split(max(_SLAB // math.prod(rest), 1)):
            sides = [slab, *map(torch.arange, rest)]
            places = torch.meshgrid(*(side.to(labels.device, torch.float64) for side in sides), indexing="ij")
            read, inside = 0, True
            for row, side in zip(matrix[:axes], labels.shape, strict=True):
                at = sum((place * step for place, step in zip(places, row[:axes], strict=True)), row[axes])
                # A resampled grid may end just half a voxel before the file's: what is on its border is inside.
                inside = inside & (at > -0.5 - _BORDER) & (at < side - 0.5 + _BORDER)
                read = read * side + at.round_().clamp_(0, side - 1).long()
            result[slab[0] : slab[-1] + 1] = labels.reshape(-1)[read] * inside
        return result

    def save(self, labels: Tensor, folder: Path) -> Path:
        """Write class ids on the original grid: NIfTI with the image's affine, codes and units; PNG for pictures.

        Args:
            labels: (*original_shape), of `label_dtype`; in pictures 16 bits are unsigned.
            folder: for a file of the image's name, written in one step.
        """
        ids = labels.cpu().numpy()
        if is_picture(Path(self.image)):
            ids = ids if ids.dtype == np.uint8 else ids.astype(np.uint16)
            picture = Image.fromarray(np.ascontiguousarray(ids.T))
            return write_atomically(folder / self.name, picture.save)
        source = nibabel.load(self.image)
        header = nibabel.Nifti1Header.from_header(source.header, check=False)
        header.set_data_dtype(ids.dtype)
        header.set_data_shape(ids.shape)
        header["scl_slope"], header["scl_inter"], header["cal_min"], header["cal_max"] = np.nan, np.nan, 0, 0
        volume = nibabel.Nifti1Image(ids, source.affine, header)
        return write_atomically(folder / self.name, volume.to_filename)
