"""Pictures as files: what each kind means, whoever reads it."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from vision_ssm.pictures import (
    PictureError,
    check_image,
    is_picture,
    is_turned,
    read_image,
    read_labels,
    read_pixels,
    read_size,
)

GREY = np.random.default_rng(0).integers(0, 256, (6, 8), np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
# What a viewer does with each value of the orientation tag.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
    9: lambda a: a,  # no value of the tag
}


def _save(path, pixels, **options):
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


@pytest.mark.parametrize("tag", TURNED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_pictures_and_label_maps_stand_upright(tmp_path, suffix, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    options = dict(lossless=True) if suffix == "webp" else {}
    path = _save(tmp_path / f"i.{suffix}", RGB, exif=exif.tobytes() if suffix != "tif" else exif, **options)
    upright = TURNED[tag](RGB)
    assert np.array_equal(np.asarray(read_image(path)), upright)
    assert np.array_equal(read_pixels(path), upright)
    assert read_size(path) == upright.shape[1::-1]
    if suffix != "webp":
        ids = _save(tmp_path / f"m.{suffix}", GREY, exif=exif.tobytes() if suffix != "tif" else exif)
        assert np.array_equal(read_labels(ids), TURNED[tag](GREY))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_of_grey_are_those_of_8(tmp_path, suffix, order):
    path = _save(tmp_path / f"i.{suffix}", (GREY.astype(np.uint16) * 257).astype(order))
    assert np.array_equal(np.asarray(read_image(path)), np.repeat(GREY[..., None], 3, -1))
    assert np.array_equal(read_pixels(path), GREY)
    fine = _save(tmp_path / f"f.{suffix}", np.array([[0, 128, 65535]], np.uint16))
    assert read_pixels(fine) == pytest.approx(np.array([[0, 128 / 257, 255]]))
    assert read_labels(fine).tolist() == [[0, 128, 65535]]


def test_a_palette_has_colours_in_pictures_and_indices_in_label_maps(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    picture.putpalette([9, 8, 7, 40, 50, 60, 200, 0, 3])
    for name, options in {"plain.png": {}, "clear.png": dict(transparency=b"\x00\x80"), "i.gif": {}}.items():
        path = _save(tmp_path / name, picture, **options)
        colours = [[[9, 8, 7], [40, 50, 60]], [[200, 0, 3], [40, 50, 60]]]
        assert np.asarray(read_image(path)).tolist() == colours == read_pixels(path).tolist(), name
        assert read_labels(path).tolist() == [[0, 1], [2, 1]], name


def test_transparency_is_dropped_and_one_bit_is_black_and_white(tmp_path):
    rgba = np.dstack([RGB, np.zeros_like(GREY)])
    assert np.array_equal(np.asarray(read_image(_save(tmp_path / "a.png", rgba))), RGB)
    grey = _save(tmp_path / "la.png", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY // 2)]))
    assert np.array_equal(read_pixels(grey), GREY)
    bits = _save(tmp_path / "b.png", Image.fromarray(GREY > 99))
    assert np.array_equal(read_pixels(bits), (GREY > 99) * 255)
    assert np.array_equal(read_labels(bits), GREY > 99) and read_labels(bits).dtype == np.uint8


def test_pictures_come_from_open_files_too():
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    assert np.array_equal(np.asarray(read_image(file)), RGB)


def test_float_pictures_and_those_of_32_bits_have_no_known_range(tmp_path):
    for name, pixels in {"f.tif": GREY.astype(np.float32), "i.tif": GREY.astype(np.int32)}.items():
        path = _save(tmp_path / name, pixels)
        for read in (read_image, read_pixels):
            with pytest.raises(PictureError, match=f"{name} .*(float|32-bit) pixels"):
                read(path)
        assert np.array_equal(read_labels(path), GREY)
    with pytest.raises(PictureError, match=r"h\.tif .*no whole numbers"):
        read_labels(_save(tmp_path / "h.tif", GREY.astype(np.float32) + 0.5))
    with pytest.raises(PictureError, match=r"c\.png .*3 channels \(RGB\)"):
        read_labels(_save(tmp_path / "c.png", RGB))


def test_what_is_no_whole_picture_is_named(tmp_path):
    whole = _save(tmp_path / "w.png", np.random.default_rng(2).integers(0, 256, (64, 64), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:900])
    (tmp_path / "head.png").write_bytes(whole[:20])
    (tmp_path / "text.png").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ["cut", "head", "text", "empty", "link", "folder", "pipe", "none"]
    for name in names:
        for read in (read_image, read_pixels, read_labels):
            with pytest.raises(PictureError, match=rf"{name}\.png (cannot be read|is missing|is a folder)"):
                read(tmp_path / f"{name}.png")
    with pytest.raises(PictureError, match="is missing"):
        read_size(tmp_path / "none.png")
    assert is_picture("a/b.TIF") and not is_picture("b.nii.gz") and not is_picture("b.h5")


def test_pictures_of_absurd_size(tmp_path, monkeypatch):
    path = _save(tmp_path / "i.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    for read in (read_image, read_labels, check_image):
        with pytest.raises(PictureError, match=r"i\.png has more than 40 pixels"):
            read(path)


def test_checking_is_reading(tmp_path):
    """What `check_image` finds good is what `read_image` reads, and its size is the one that is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.kron(RGB, np.ones((9, 9, 1), np.uint8)))
    files = [_save(tmp_path / "p.jpg", photo, exif=exif.tobytes()), _save(tmp_path / "g.png", GREY)]
    for path in files:
        assert check_image(path) == read_image(path).size == read_size(path)
        assert is_turned(path) == (path.suffix == ".jpg")
    cut = files[0].read_bytes()
    files[0].write_bytes(cut[: len(cut) // 2])
    files.append(_save(tmp_path / "f.tif", GREY.astype(np.float32)))
    for path in (files[0], files[2]):
        for read in (check_image, read_image):
            with pytest.raises(PictureError, match=path.name):
                read(path)
