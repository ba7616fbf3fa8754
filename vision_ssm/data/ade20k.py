"""Check of ADE20K's scene parsing set (ADEChallengeData2016): 150 classes, 20,210 and 2,000 images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .archives import Archive
from .layout import Progress, Report, Wrong, each, find_root, open_image, sizes

__all__ = ["ARCHIVES", "Ade20k", "check_ade20k"]

_FOLDERS = ("images", "annotations")
# The MD5 is the one that torchbench's loader checks (torchbench/datasets/ade20k.py).
ARCHIVES = (
    Archive(
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        holds=_FOLDERS,
        md5="7328b3957e407ddae1d3cbf487f149ef",
        top="ADEChallengeData2016",
    ),
)
_PREFIXES = {"training": "ADE_train_", "validation": "ADE_val_"}


@dataclass(frozen=True)
class Ade20k:
    """What is expected: numbers of images, and the highest class in a mask (0 is unlabelled)."""

    training: int = 20_210
    validation: int = 2_000
    classes: int = 150


def _decode(root: Path, classes: int, pair: tuple[str, str]) -> list[Wrong]:
    """What is wrong with the pixels of an image and its mask."""
    split, stem = pair
    names = f"images/{split}/{stem}.jpg", f"annotations/{split}/{stem}.png"
    (image, bad_image), (mask, bad_mask) = (open_image(root / name, name) for name in names)
    wrong = [bad for bad in (bad_image, bad_mask) if bad]
    if mask is None:
        return wrong
    if image is not None and image.size != mask.size:
        size, expected = ("{} x {}".format(*i.size) for i in (mask, image))
        wrong.append(Wrong(names[1], f"{size} pixels", f"{expected}, as its image"))
    ids = np.asarray(mask)
    if ids.ndim != 2:
        wrong.append(Wrong(names[1], f"{ids.shape[2]} channels", "1: a class per pixel"))
    elif int(ids.max()) > classes:
        wrong.append(Wrong(names[1], f"class {int(ids.max())}", f"0 to {classes}"))
    return wrong


def check_ade20k(
    root: str | Path,
    decode: bool = False,
    jobs: int | None = None,
    expected: Ade20k | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a folder `ADEChallengeData2016`: every image and every mask there, and none empty.

    Args:
        root: the folder that holds `images` and `annotations`.
        decode: also decode every image and mask, which takes far longer: sizes that agree, classes within range.
        jobs: threads that decode.
        expected: what a complete set holds.
        progress: called with the numbers of pairs decoded and to decode.

    Raises:
        LayoutError: there is no such folder, or it lies above or below the set's.
    """
    expected = expected or Ade20k()
    folder = find_root(root, _FOLDERS)
    report = Report(str(root))
    pairs: list[tuple[str, str]] = []
    for split, prefix in _PREFIXES.items():
        stems = {f"{prefix}{i + 1:08d}" for i in range(getattr(expected, split))}
        whole = set(stems)
        for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
            where = f"{kind}/{split}"
            found = sizes(folder / where, suffix)
            report.found[where] = len(found)
            names = {stem + suffix for stem in stems}
            report.lack(where, names - found.keys())
            for name in sorted(found.keys() - names):  # loaders list folders, so it would be trained on
                report.wrong.append(Wrong(f"{where}/{name}", "is not of the set", "no other files"))
            for name in sorted(name for name, size in found.items() if not size):
                report.wrong.append(Wrong(f"{where}/{name}", "is empty", "an image"))
            whole &= {name.removesuffix(suffix) for name, size in found.items() if size}
        pairs += [(split, stem) for stem in sorted(whole)]
    if (folder / "images" / "training" / "a").is_dir():
        report.notes.append(
            "images/training/a is of the full ADE20K: the scene parsing set, ADEChallengeData2016, is needed"
        )
    if decode:
        report.wrong += each(partial(_decode, folder, expected.classes), pairs, jobs, progress)
        report.found["pairs decoded"] = len(pairs)
    return report
