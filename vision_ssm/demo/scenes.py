"""Scenes of real handwriting: scikit-learn's digit scans, composed to images with the pixels of every digit known.

Training scenes show scans of the digits' training part, validation scenes scans of the part held out. They are written
in the layouts of ADE20K (a class per pixel) and of COCO (a mask per digit), so a segmentation or detection job reads
them with the classes that read the real data sets.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from ..files import write_atomically, write_json
from .digits import load_digits

__all__ = ["CLASSES", "Scene", "Scenes", "compose", "scans", "write"]

CLASSES = ("background", *"0123456789")  # of the label maps; COCO's categories 1 to 10 are these without the first

VERSION = 1  # of what a recipe makes: to be raised with every change of a pixel
_SPLITS = {"train": "training", "val": "validation"}
_HEIGHTS = (1 / 4, 1 / 2)  # of a digit, in sides of the image
_ANGLE = 12  # degrees
_TRIES = 16  # places looked at for one digit
_HIDDEN = 0.3  # of an earlier digit's pixels, at most
_EDGE = (0.3, 0.6)  # ink of a scan, from none to full coverage of a pixel


@dataclass(frozen=True)
class Scenes:
    """What a set of scenes depends on.

    Args:
        train: number of training scenes.
        val: number of validation scenes.
        size: side of an image in pixels.
        digits: fewest and most digits of a scene; one for which there is no room is left out.
        seed: everything random follows from it, from the split and from a scene's index.

    Raises:
        ValueError: a value is out of range.
    """

    train: int = 1200
    val: int = 200
    size: int = 128
    digits: tuple[int, int] = (2, 6)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train, self.val) < 1:
            raise ValueError(f"expected at least one scene of each split, got train={self.train}, val={self.val}")
        if self.size < 32:
            raise ValueError(f"size must be at least 32 pixels for legible digits, got {self.size}")
        if len(self.digits) != 2 or not 1 <= self.digits[0] <= self.digits[1] <= 20:
            raise ValueError(f"digits must be the fewest and the most of 1 to 20, got {self.digits}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Scene:
    """An image and what is where in it.

    Attributes:
        image: (size, size, 3), uint8.
        instances: a (label, mask) for each digit, back to front: label 0 to 9, mask (size, size) of its visible pixels.
        labels: (size, size), uint8: 0 for the background, 1 + digit elsewhere.
        scans: the row of each instance in the `scans` of the scene's split.
    """

    image: NDArray[np.uint8]
    instances: list[tuple[int, NDArray[np.bool_]]]
    labels: NDArray[np.uint8]
    scans: list[int]


@lru_cache(maxsize=1)
def _digits() -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
    data = load_digits()
    parts = {"train": (data.train_images, data.train_labels), "val": (data.test_images, data.test_labels)}
    return {split: ((x.squeeze(1).numpy() + 1) / 2, y.numpy()) for split, (x, y) in parts.items()}


def scans(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The scans that the scenes of a split are made of.

    Args:
        split: "train" (the training part of `load_digits`) or "val" (its test part).

    Returns:
        Ink (n, 8, 8) in [0, 1], and digits (n,).

    Raises:
        ValueError: there is no such split.
        ImportError: scikit-learn is missing.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    return _digits()[split]


def _colour(rng: Generator, light: float, chroma: float) -> NDArray[np.float64]:
    """RGB (3,) of a lightness, with a tint of any hue and up to a chroma."""
    hue = rng.uniform(0, 2 * np.pi) + np.array([0, 2, 4]) * np.pi / 3
    return light + rng.uniform(0, chroma) * np.cos(hue)


def _noise(rng: Generator, size: int, cells: int) -> NDArray[np.float64]:
    """Smooth noise (size, size) in [-1, 1], with features of a cell's width."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64).clip(-1, 1)


def _ground(rng: Generator, size: int, light: float) -> NDArray[np.float64]:
    """Textured ground (size, size, 3) of about a lightness: smooth noise, a gradient or stripes, and grain."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    kind = rng.integers(3)
    if kind == 0:
        texture = 0.7 * _noise(rng, size, rng.integers(3, 7)) + 0.3 * _noise(rng, size, rng.integers(12, 32))
    elif kind == 1:
        texture = along + 0.15 * _noise(rng, size, 8)
    else:
        waves = np.sin(along * np.pi * rng.uniform(3, 12) + rng.uniform(1, 3) * _noise(rng, size, 4))
        texture = 0.6 * waves + 0.4 * _noise(rng, size, 5)
    between = (0.5 + 0.5 * texture.clip(-1, 1))[..., None]
    depth = rng.uniform(0.03, 0.1)
    ends = [_colour(rng, light + side * depth, 0.12) for side in (-1, 1)]
    grain = rng.normal(0, rng.uniform(0.005, 0.025), (size, size, 1))
    return ends[0] * (1 - between) + ends[1] * between + grain


def _draw(rng: Generator, scan: NDArray[np.float32], height: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A scan of a height in pixels, turned a little: coverage and ink in [0, 1], both cropped to the strokes."""
    side = int(np.ceil(height * 1.6))
    angle, slim = np.radians(rng.uniform(-_ANGLE, _ANGLE)), rng.uniform(0.85, 1.15)
    cos, sin = np.cos(angle) * 8 / height, np.sin(angle) * 8 / height
    paper = np.pad(scan, 2)  # the outermost strokes, too, end within the picture
    a, b, d, e = cos * slim, sin * slim, -sin, cos
    centre = paper.shape[0] / 2
    matrix = (a, b, centre - (a + b) * side / 2, d, e, centre - (d + e) * side / 2)
    turned = Image.fromarray(paper).transform(
        (side, side), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
    )
    ink = np.asarray(turned, dtype=np.float64).clip(0, 1)
    cover = ((ink - _EDGE[0]) / (_EDGE[1] - _EDGE[0])).clip(0, 1)
    cover = cover * cover * (3 - 2 * cover)
    rows, columns = (np.flatnonzero((cover > 0).any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return cover[box], ink[box]


def _place(
    rng: Generator, owner: NDArray[np.uint8], sizes: list[int], solid: NDArray[np.bool_]
) -> tuple[slice, slice] | None:
    """Where a digit hides least of those before it, or None if it would hide too much of one everywhere.

    Args:
        owner: (size, size), 0 or 1 + the number of the digit that shows.
        sizes: pixels of each digit before it was hidden in part.
        solid: (height, width) of the new digit.
    """
    height, width = solid.shape
    best, least = None, np.inf
    for _ in range(_TRIES):
        top, left = (int(rng.integers(0, room + 1)) for room in (owner.shape[0] - height, owner.shape[1] - width))
        box = slice(top, top + height), slice(left, left + width)
        hidden = np.bincount(owner[box][solid], minlength=len(sizes) + 1)[1:]
        shown = np.bincount(owner.ravel(), minlength=len(sizes) + 1)[1:] - hidden
        near = float((owner[box] > 0).mean())  # of free places, one apart from others
        if (shown >= (1 - _HIDDEN) * np.array(sizes)).all() and hidden.sum() + near < least:
            best, least = box, hidden.sum() + near
        if least == 0:
            break
    return best


def compose(scenes: Scenes, split: str, index: int) -> Scene:
    """One scene of a set; it depends on neither the other scenes nor on how many there are.

    Args:
        scenes: the recipe.
        split: "train" or "val".
        index: from 0.

    Raises:
        ValueError: there is no such split, or the index is negative.
    """
    images, digits = scans(split)
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    rng = np.random.default_rng([scenes.seed, list(_SPLITS).index(split), index])
    dark = rng.random() < 0.5  # the ground: digits are light on it
    canvas = _ground(rng, scenes.size, rng.uniform(0.12, 0.35) if dark else rng.uniform(0.65, 0.88))
    owner = np.zeros((scenes.size, scenes.size), np.uint8)
    rows, sizes = [], []
    for _ in range(rng.integers(scenes.digits[0], scenes.digits[1] + 1)):
        row = int(rng.integers(len(images)))
        cover, ink = _draw(rng, images[row], scenes.size * rng.uniform(*_HEIGHTS))
        colour = _colour(rng, rng.uniform(0.7, 0.95) if dark else rng.uniform(0.05, 0.35), 0.22)
        solid = cover >= 0.5
        box = _place(rng, owner, sizes, solid)
        if box is None:
            continue
        alpha = (cover * (0.8 + 0.2 * ink))[..., None]  # a pen's strokes are not of one darkness
        canvas[box] = canvas[box] * (1 - alpha) + colour * alpha
        rows.append(row)
        sizes.append(int(solid.sum()))
        owner[box][solid] = len(rows)
    labels = np.array([0, *(1 + digits[row] for row in rows)], np.uint8)[owner]
    image = (canvas * 255).round().clip(0, 255).astype(np.uint8)
    return Scene(image, [(int(digits[row]), owner == i + 1) for i, row in enumerate(rows)], labels, rows)


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: of 0 and of 1 in turn, from 0, down the columns."""
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(starts, prepend=0, append=flat.size).tolist()


def _annotation(label: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A digit as COCO's annotation, without the ids of itself and its image."""
    y, x = np.nonzero(mask)
    return dict(
        category_id=label + 1,
        bbox=[int(v) for v in (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(size=list(mask.shape), counts=_run_lengths(mask)),
    )


def _write_split(folder: Path, scenes: Scenes, split: str) -> Iterator[tuple[str, Scene]]:
    """Write images and label maps of a split; yields the image's name below `images` and the scene."""
    for index in range(getattr(scenes, split)):
        scene = compose(scenes, split, index)
        name = f"{_SPLITS[split]}/ADE_{split}_{index + 1:08d}"
        image, labels = folder / "images" / f"{name}.jpg", folder / "annotations" / f"{name}.png"
        # Files are written in one step, so one that is there is whole.
        if not labels.is_file():
            write_atomically(labels, Image.fromarray(scene.labels).save)
        if not image.is_file():
            write_atomically(image, partial(Image.fromarray(scene.image).save, quality=95, subsampling=0))
        yield f"{name}.jpg", scene


def _begin(folder: Path, recipe: dict[str, Any]) -> bool:
    """Claim a folder for a recipe; True if its set is complete already."""
    whole, begun = folder / "scenes.json", folder / "scenes.json.part"
    for marker in (whole, begun):
        if marker.is_file():
            found = json.loads(marker.read_text(encoding="utf-8"))
            if found != recipe:
                raise ValueError(f"{folder} holds scenes of another recipe ({found}): choose another folder")
            return marker == whole
    if strange := [name for name in ("images", "annotations", "coco") if (folder / name).exists()]:
        raise ValueError(f"{folder} holds {' and '.join(strange)} of something else: choose another folder")
    write_json(begun, recipe)
    return False


def write(folder: str | Path, scenes: Scenes) -> Path:
    """Write a set of scenes in the layouts of ADE20K and of COCO, over the same images; returns the folder.

    `images/{training,validation}/ADE_{train,val}_00000001.jpg` and on, `annotations/` with the label maps of the same
    names as 8-bit PNG, `coco/instances_{train,val}.json` with file names relative to `images/`, and `scenes.json`,
    which is written last: a set that is complete is left as it is, one of a killed run is completed.

    Raises:
        ValueError: the folder holds scenes of another recipe, or other data.
        ImportError: scikit-learn is missing.
    """
    folder = Path(folder)
    recipe = json.loads(json.dumps(dict(version=VERSION, **asdict(scenes))))
    if _begin(folder, recipe):
        return folder
    for split in _SPLITS:
        images, annotations = [], []
        for number, (name, scene) in enumerate(_write_split(folder, scenes, split), 1):
            images.append(dict(id=number, file_name=name, height=scenes.size, width=scenes.size))
            for label, mask in scene.instances:
                ids = dict(id=len(annotations) + 1, image_id=number)
                annotations.append(ids | _annotation(label, mask))
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES) if i]
        text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
        path = folder / "coco" / f"instances_{split}.json"
        write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
    os.replace(folder / "scenes.json.part", folder / "scenes.json")
    return folder
