"""Pictures in MMSegmentation's and MMDetection's pipelines that mean what they mean everywhere in this package."""

import io
from importlib import import_module
from importlib.util import find_spec

import numpy as np
from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile
from mmengine import fileio

from ..pictures import PictureError, read_image

__all__ = ["LoadImageFromFile"]

_BACKEND, _COLOURS = "pictures", ("color", "grayscale")


class LoadImageFromFile(_LoadImageFromFile):
    """mmcv's transform of this name, which reads pictures as `vision_ssm.pictures.read_image` does.

    The EXIF orientation is applied in every format, 16 bits of grey become 8 of the same range, and pixels whose range
    nobody knows are an error that names the file. mmcv's backends differ from each other there.

    Args:
        to_float32, color_type, **kwargs: mmcv's. A colour type other than "color" and "grayscale" is read by OpenCV.
        imdecode_backend: one of mmcv's, to read as that does.
    """

    def __init__(
        self, to_float32: bool = False, color_type: str = "color", imdecode_backend: str | None = None, **kwargs
    ):
        own = _BACKEND if color_type in _COLOURS else "cv2"
        super().__init__(to_float32, color_type, imdecode_backend or own, **kwargs)

    def transform(self, results: dict) -> dict | None:
        """Add `img` (height, width, 3), uint8, in the order BGR, or (height, width) in grey; and its shape.

        Raises:
            PictureError: the file holds no picture that has a meaning; None instead where `ignore_empty` is set.
        """
        if self.imdecode_backend != _BACKEND:
            return super().transform(results)
        try:
            pixels = self._pixels(results["img_path"])
        except (OSError, PictureError):
            if self.ignore_empty:
                return None
            raise
        results["img"] = pixels.astype(np.float32) if self.to_float32 else pixels
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results

    def _pixels(self, path: str) -> np.ndarray:
        if self.file_client_args is None:
            content = fileio.get(path, backend_args=self.backend_args)
        else:
            content = fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        file = io.BytesIO(content)
        file.name = path  # for errors
        picture = read_image(file)
        if self.color_type == "grayscale":
            return np.array(picture.convert("L"))
        return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


for _library in ("mmseg", "mmdet"):  # in their own registries, which come before mmcv's; mmcv's own stays as it is
    if find_spec(_library):
        _transforms = import_module(f"{_library}.registry").TRANSFORMS
        _transforms.register_module(name="LoadImageFromFile", module=LoadImageFromFile)
