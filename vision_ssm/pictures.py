"""Pictures and label maps as files, which mean the same wherever they are read. Pillow is imported on use."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np

from .errors import InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "PictureError",
    "check_image",
    "is_picture",
    "is_turned",
    "read_channels",
    "read_image",
    "read_labels",
    "read_pixels",
    "read_size",
]

Source = str | os.PathLike[str] | IO[bytes]
_T = TypeVar("_T")
_ORIENTATION = 0x0112  # EXIF; from 5 on width and height change places
_WIDTH, _HEIGHT = 0x0100, 0x0101  # TIFF
_STUBS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow knows and does not decode
_GREY = ("1", "L", "LA", "La")
_BITS_16 = ("PNG", "PPM")  # formats whose pictures of mode "I" have 16 bits


class PictureError(InputError):
    """A file is not there, is damaged, or holds no picture that has a meaning here: told in one line with its name."""


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a picture that can be read, by its suffix."""
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    return kind in Image.OPEN and kind not in _STUBS


def read_image(source: Source) -> Image.Image:
    """A picture as a viewer shows it, in mode RGB.

    The EXIF orientation is applied, a palette becomes its colours, and 16 bits of grey become 8 (their range, not that
    of the picture). Transparency is dropped, and the colours under it stay, as in timm's and OpenCV's loaders. Of
    several pictures in one file the first counts.

    Args:
        source: path, or an open binary file.

    Raises:
        PictureError: it cannot be read whole, or has float or 32-bit pixels, whose range nobody knows.
    """
    from PIL import Image

    def convert(picture: Image.Image) -> Image.Image:
        grey = _sixteen_bits(picture)
        if grey is not None:
            picture = Image.fromarray(np.rint(grey / 257).astype(np.uint8))
        elif "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return picture.convert("RGB")

    return _read(source, convert)


def read_pixels(source: Source) -> np.ndarray:
    """Pixels of `read_image`, but grey stays one channel and 16 bits of grey keep their precision.

    Returns:
        (height, width) or (height, width, 3), from 0 to 255: uint8, or float32 from 16 bits.

    Raises:
        PictureError: see `read_image`.
    """

    def convert(picture: Image.Image) -> np.ndarray:
        grey = _sixteen_bits(picture)
        if grey is not None:
            return (grey / 257).astype(np.float32)
        if picture.mode in _GREY:
            return np.asarray(picture.convert("L"))
        return np.asarray((picture.convert("RGBA") if "transparency" in picture.info else picture).convert("RGB"))

    return _read(source, convert)


def read_labels(source: Source) -> np.ndarray:
    """Class ids of a label map (height, width), integers as the file stores them.

    The EXIF orientation is applied; of a palette the indices are the ids; one bit gives 0 and 1.

    Raises:
        PictureError: it cannot be read whole, has several channels, or values that are no whole numbers.
    """

    def convert(picture: Image.Image) -> np.ndarray:
        ids = np.asarray(picture)
        if ids.ndim != 2:
            raise ValueError(f"it has {ids.shape[-1]} channels ({picture.mode}), expected one, of class ids")
        if ids.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                whole = ids.astype(np.int64)
            if not np.array_equal(whole, ids):
                raise ValueError("it has values that are no whole numbers, expected class ids")
            return whole
        return ids.astype(np.uint8 if ids.dtype == bool else ids.dtype.newbyteorder("="))

    return _read(source, convert)


def read_size(source: Source) -> tuple[int, int]:
    """Width and height as a viewer shows the picture, from its header alone.

    Raises:
        PictureError: the header cannot be read.
    """

    return _opened(source, _shown_size)


def check_image(source: Source) -> tuple[int, int]:
    """Width and height of a picture that `read_image` reads; JPEG is decoded at an eighth of its resolution.

    Raises:
        PictureError: see `read_image`.
    """

    def look(picture: Image.Image) -> tuple[int, int]:
        size = _shown_size(picture)
        picture.draft("RGB", (max(size[0] // 8, 1), max(size[1] // 8, 1)))
        picture.load()
        _sixteen_bits(picture)
        return size

    return _opened(source, look)


def is_turned(source: Source) -> bool:
    """Whether a picture is shown in another way than it is stored.

    Raises:
        PictureError: the header cannot be read.
    """
    return _opened(source, lambda picture: picture.getexif().get(_ORIENTATION, 1) in range(2, 9))


def read_channels(source: Source) -> int:
    """The number of channels that `read_pixels` gives, 1 or 3, from the header alone.

    Raises:
        PictureError: the header cannot be read.
    """
    return _opened(source, lambda picture: 1 if picture.mode in _GREY or picture.mode.startswith("I") else 3)


def _shown_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    if picture.format == "TIFF":  # some versions of Pillow have turned it already
        width, height = picture.tag_v2[_WIDTH], picture.tag_v2[_HEIGHT]
    return (height, width) if picture.getexif().get(_ORIENTATION, 1) in range(5, 9) else (width, height)


def _sixteen_bits(picture: Image.Image) -> np.ndarray | None:
    """Grey values of 16 bits, where a picture has such."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _BITS_16):
        return np.asarray(picture).astype(np.float64)
    if picture.mode in ("I", "F"):
        kind = "32-bit" if picture.mode == "I" else "float"
        raise ValueError(f"it has {kind} pixels, whose range is unknown: save it with 8 or 16 bits")
    return None


def _read(source: Source, convert: Callable[[Image.Image], _T]) -> _T:
    """Decode a picture whole, turn it upright and convert it."""
    from PIL import ImageOps

    def decoded(picture: Image.Image) -> _T:
        kind = picture.format
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        upright.format = kind  # which a copy forgets
        return convert(upright)

    return _opened(source, decoded)


def _opened(source: Source, read: Callable[[Image.Image], _T]) -> _T:
    """What `read` makes of an opened picture.

    Raises:
        PictureError: whatever goes wrong; decoders of damaged files raise exceptions of any class.
    """
    from PIL import Image, UnidentifiedImageError

    is_path = isinstance(source, (str, os.PathLike))
    name = os.fspath(source) if is_path else getattr(source, "name", "a picture")
    try:
        if is_path and not stat.S_ISREG(os.stat(source).st_mode):  # nobody writes to a pipe
            raise PictureError(f"{name} is a folder or a device, expected a picture")
        # An open file, and not its name: Pillow maps named ones into memory, and turned TIFF files then wrongly.
        with open(source, "rb") if is_path else nullcontext(source) as file, Image.open(file) as picture:
            return read(picture)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{name} is missing") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise PictureError(
            f"{name} has more than {most} pixels, a bomb perhaps: if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except UnidentifiedImageError:
        raise PictureError(f"{name} cannot be read: it is of no format that Pillow knows, or damaged") from None
    except Exception as error:
        reason = " ".join(str(error).replace(str(name), "it").split())
        raise PictureError(f"{name} cannot be read: {reason or type(error).__name__}") from error
