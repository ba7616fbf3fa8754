"""Check of the pictures of skin lesions of ISIC's challenges of 2017 and 2018, and VM-UNet's split of them."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from .layout import LayoutError, Progress, Report, Wrong, each
from .volume_sets import CaseFiles, list_files, pair_files

__all__ = ["ISIC17", "ISIC18", "LABELS", "Isic", "check_isic"]

LABELS = ("skin", "lesion")
_IDS = {0, 1, 255}
_IMAGE = re.compile(r"(ISIC_\d{7})\.jpe?g", re.IGNORECASE)
_MASK = re.compile(r"(ISIC_\d{7})_segmentation\.png", re.IGNORECASE)
_ANY = re.compile(r"(.+?)(?:_segmentation)?\.(?:png|jpe?g)", re.IGNORECASE)
# VM-UNet's own files, split already.
_SPLIT = {"training": ("train/images", "train/masks"), "validation": ("val/images", "val/masks")}


@dataclass(frozen=True)
class Isic:
    """What is expected of a year.

    Attributes:
        folders: of images and masks, as the challenge's archives unpack, and the number of pairs in them.
        validation: pairs of all that VM-UNet holds out.
    """

    folders: Mapping[tuple[str, str], int]
    validation: int


# VM-UNet trains on 1500 and 1886 pictures and holds out 650 and 808 (from memory of its paper, unverified): together
# the challenges' training and validation sets. Which pictures it holds out is known of its own files alone.
ISIC17 = Isic(
    {
        ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"): 2000,
        ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"): 150,
    },
    validation=650,
)
ISIC18 = Isic(
    {
        ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"): 2594,
        ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"): 100,
    },
    validation=808,
)


def check_isic(
    root: str | Path, jobs: int | None = None, progress: Progress | None = None, expected: Isic = ISIC18
) -> tuple[Report, dict[str, list[CaseFiles]]]:
    """Check the pictures and their masks: numbers, pairs, sizes, and every pixel.

    Args:
        root: holds the folders of the challenge's archives, or VM-UNet's `train` and `val` with `images` and `masks`.
        jobs: threads that read.
        progress: called with the numbers of pairs read and to read.
        expected: the year.

    Returns:
        The report, and the cases of each split: VM-UNet's own, or as many drawn at random, always the same.

    Raises:
        LayoutError: the folder holds neither.
    """
    root = Path(root)
    total = sum(expected.folders.values())
    own = {_SPLIT["training"]: total - expected.validation, _SPLIT["validation"]: expected.validation}
    layouts = (expected.folders, own)
    folders = next((known for known in layouts if any((root / f).is_dir() for pair in known for f in pair)), None)
    if folders is None:
        known = " nor ".join(" and ".join(next(iter(layout))) for layout in layouts)
        raise LayoutError(f"{root} holds neither {known}" if root.is_dir() else f"no folder {root}")
    report = Report(str(root))
    found = {where: _pairs(root, where, count, folders is own, report) for where, count in folders.items()}
    cases = [case for pairs in found.values() for case in pairs]
    report.wrong += each(partial(_check, root), cases, jobs, progress)
    report.found["pairs read"] = len(cases)
    if folders is own:
        return report, {split: found[where] for split, where in _SPLIT.items()}
    held_out = set(random.Random(0).sample(cases, min(expected.validation, len(cases))))
    report.notes.append("the split is drawn at random, as large as VM-UNet's: its own is known of its own files alone")
    splits = {"training": [case for case in cases if case not in held_out]}
    return report, splits | {"validation": [case for case in cases if case in held_out]}


def _pairs(root: Path, where: tuple[str, str], count: int, any_name: bool, report: Report) -> list[CaseFiles]:
    patterns = (_ANY, _ANY) if any_name else (_IMAGE, _MASK)
    files = [list_files(root, folder, pattern, report) for folder, pattern in zip(where, patterns, strict=True)]
    return list(pair_files(*files, where, report, count).values())


def _check(root: Path, case: CaseFiles) -> list[Wrong]:
    """What is wrong with a picture and its mask."""
    from .volume_checks import check_volume

    paths = {str(root / name): name for name in (case.image, case.label or "")}
    found = [replace(wrong, file=paths[wrong.file]) for wrong in check_volume(*map(Path, paths), _IDS)]
    if not found:
        with Image.open(root / case.image) as picture:
            if picture.mode != "RGB":
                found.append(Wrong(case.image, f"has the mode {picture.mode}", "RGB"))
    return found
