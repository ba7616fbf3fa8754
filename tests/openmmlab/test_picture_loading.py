"""One picture has the same pixels in every door: both libraries' pipelines, and the commands on single images."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmcv")
pytest.importorskip("vision_ssm.openmmlab")
pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from mmengine.registry import TRANSFORMS, init_default_scope

from vision_ssm.cli.image_folder import ImageFolder
from vision_ssm.pictures import PictureError, read_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
GREY = RGB[..., 0]
PALETTE = Image.fromarray(GREY % 4, "P")
PALETTE.putpalette([9, 8, 7, 40, 50, 60, 200, 0, 3, 1, 2, 250])
TURNED = Image.Exif()
TURNED[0x0112] = 6
CLEAR = np.dstack([RGB, np.zeros_like(GREY)])
# name of a file: (picture, options to save it with, what a viewer shows)
KINDS = {
    "rgb.png": (RGB, {}, RGB),
    "grey.png": (GREY, {}, np.repeat(GREY[..., None], 3, -1)),
    "turned.png": (RGB, dict(exif=TURNED.tobytes()), np.rot90(RGB, -1)),
    "turned.webp": (RGB, dict(exif=TURNED.tobytes(), lossless=True), np.rot90(RGB, -1)),
    "turned.tif": (RGB, dict(exif=TURNED), np.rot90(RGB, -1)),
    "palette.png": (PALETTE, {}, np.asarray(PALETTE.convert("RGB"))),
    "palette.gif": (PALETTE, {}, np.asarray(PALETTE.convert("RGB"))),
    "sixteen.png": (GREY.astype(np.uint16) * 257, {}, np.repeat(GREY[..., None], 3, -1)),
    "sixteen.tif": (GREY.astype(np.uint16) * 257, {}, np.repeat(GREY[..., None], 3, -1)),
    "alpha.png": (CLEAR, {}, RGB),
    "grey_alpha.png": (Image.fromarray(CLEAR[..., 2:], "LA"), {}, np.repeat(CLEAR[..., 2:3], 3, -1)),
    "bits.png": (GREY > 99, {}, np.repeat((GREY > 99)[..., None] * np.uint8(255), 3, -1)),
    "really_png.jpg": (RGB, dict(format="PNG"), RGB),
    "UPPER.PNG": (RGB, {}, RGB),
    "tiny.png": (RGB[:1, :1], {}, RGB[:1, :1]),
}


def loader(scope: str, **options):
    init_default_scope(scope)
    return TRANSFORMS.build(dict(type="LoadImageFromFile", **options))


def saved(folder, name: str):
    picture, options, shown = KINDS[name]
    path = folder / name
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path, shown


@pytest.mark.parametrize("name", KINDS)
def test_every_door_shows_what_a_viewer_shows(tmp_path, name):
    (tmp_path / "class").mkdir()
    path, shown = saved(tmp_path / "class", name)
    for scope in ("mmseg", "mmdet"):
        result = loader(scope)(dict(img_path=str(path)))
        assert np.array_equal(result["img"][..., ::-1], shown) and result["img"].dtype == np.uint8, scope
        assert result["img"].flags.c_contiguous and result["img_shape"] == result["ori_shape"] == shown.shape[:2]
    assert np.array_equal(np.asarray(read_image(path)), shown)  # `vision-ssm predict`
    folder = ImageFolder(tmp_path)  # `vision-ssm evaluate`
    folder.transform = np.asarray
    assert np.array_equal(folder[0][0], shown)


def test_options_of_the_transform(tmp_path):
    path, _ = saved(tmp_path, "grey.png")
    info = dict(img_path=str(path))
    assert np.array_equal(loader("mmseg", color_type="grayscale")(dict(info))["img"], GREY)
    assert loader("mmdet", to_float32=True)(dict(info))["img"].dtype == np.float32
    assert loader("mmseg", color_type="unchanged")(dict(info))["img"].shape == GREY.shape
    path, shown = saved(tmp_path, "turned.png")
    own = loader("mmseg", imdecode_backend="pillow", color_type="color_ignore_orientation")(dict(img_path=str(path)))
    assert np.array_equal(own["img"][..., ::-1], RGB) and shown.shape != RGB.shape
    for backend in ({}, dict(backend_args=dict(backend="local")), dict(file_client_args=dict(backend="disk"))):
        assert np.array_equal(loader("mmdet", **backend)(dict(img_path=str(path)))["img"][..., ::-1], shown)


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, told in (("float.tif", "float pixels"), ("empty.png", "no format")):
        info = dict(img_path=str(tmp_path / name))
        with pytest.raises(PictureError, match=rf"{name} cannot be read: .*{told}"):
            loader("mmseg")(info)
        assert loader("mmdet", ignore_empty=True)(info) is None


def test_photos_are_those_of_opencv(tmp_path):
    """Ordinary photos keep the pixels that the published recipes were trained and tested with."""
    smooth = Image.fromarray(RGB).resize((64, 48), Image.Resampling.BICUBIC)
    for mode in ("RGB", "L"):
        file = io.BytesIO()
        smooth.convert(mode).save(file, "JPEG", quality=90)
        path = tmp_path / f"{mode}.jpg"
        path.write_bytes(file.getvalue())
        ours, theirs = (
            loader("mmseg", **o)(dict(img_path=str(path)))["img"] for o in ({}, dict(imdecode_backend="cv2"))
        )
        assert np.abs(ours.astype(int) - theirs).max() <= 3  # decoders round the colours apart
