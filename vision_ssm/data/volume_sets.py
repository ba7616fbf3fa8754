"""Check of sets of labelled volumes: gzipped NIfTI files in `imagesTr`, `labelsTr` and `imagesTs`; and their data list.

nibabel, of the extra `medical`, is needed only where files are opened.
"""

import gzip
import os
import random
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .layout import LayoutError, Missing, Progress, Report, Wrong, each, sizes

__all__ = ["CaseFiles", "Cases", "check_cases", "data_list", "find_cases", "list_files", "pair_files", "split_cases"]

_NAME = re.compile(r"(?:img|label)?(.+)\.nii\.gz")
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's names: a file for each channel, case_0000 and on
# Images, labels, images without labels: MONAI's and the decathlon's layout, and that of the challenge's archive.
_LAYOUTS = (
    ("imagesTr", "labelsTr", "imagesTs"),
    *(tuple(f"{top}{name}" for name in ("Training/img", "Training/label", "Testing/img"))
      for top in ("", "RawData/", "Abdomen/RawData/")),
)  # fmt: skip
_SPACING = 0.1, 20.0  # mm: beyond it the unit is wrong, or the header


@dataclass(frozen=True)
class CaseFiles:
    """An image and its label, if it has one: paths relative to the set's folder, with forward slashes.

    Attributes:
        image: a file, or one for each channel.
        label: a file.
    """

    image: str | tuple[str, ...]
    label: str | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """The files of the image."""
        return (self.image,) if isinstance(self.image, str) else self.image


@dataclass
class Cases:
    """The files of a set, by a case's key: its name without `img`, `label` and the suffix.

    Attributes:
        folder: the set's folder.
        where: folders of images, labels and images without labels, relative to it.
        labelled: cases with an image and a label.
        test: cases with an image alone, by design.
    """

    folder: Path
    where: tuple[str, str, str]
    labelled: dict[str, CaseFiles]
    test: dict[str, CaseFiles]


def list_files(root: Path, folder: str, pattern: re.Pattern[str], report: Report) -> dict[str, str]:
    """Paths of a folder's files, relative to `root`, by the key of their case.

    Args:
        root: the set's folder.
        folder: relative to it.
        pattern: that whole names match; its first group is the key. Other files are left alone.
        report: gets their number, and those that are empty or the second of a case.
    """
    lengths = sizes(root / folder, "")
    found = {name: match for name in lengths if (match := pattern.fullmatch(name))}
    report.found[folder] = len(found)
    files: dict[str, str] = {}
    for name in sorted(found):
        path = f"{folder}/{name}"
        if not lengths[name]:
            report.wrong.append(Wrong(path, "is empty", "an image or a label"))
        elif (other := files.setdefault(found[name][1], path)) != path:
            report.wrong.append(Wrong(path, f"is of the same case as {Path(other).name}", "one file a case"))
    return files


def _grouped(images: dict[str, str], labels: dict[str, str], report: Report) -> dict[str, str | tuple[str, ...]]:
    """Images of nnU-Net's names (`case_0000` and on, beside a label `case`) by case; others as they are."""
    matches = {key: _CHANNEL.fullmatch(key) for key in images}
    if not images or not all(matches.values()) or images.keys() & labels.keys():
        return images
    if labels and not {match[1] for match in matches.values()} & labels.keys():
        return images
    cases: dict[str, dict[int, str]] = {}
    for key, match in sorted(matches.items()):
        cases.setdefault(match[1], {})[int(match[2])] = images[key]
    expected = range(max(max(channels) for channels in cases.values()) + 1)
    for channels in cases.values():
        for lacking in sorted({*expected} - channels.keys()):
            there = next(iter(channels.values()))
            report.wrong.append(Wrong(there, f"has no channel {lacking:04d} of its case", f"{len(expected)} channels"))
    return {
        key: tuple(channels.values()) if len(expected) > 1 else next(iter(channels.values()))
        for key, channels in cases.items()
    }


def pair_files(
    images: Mapping[str, str | tuple[str, ...]],
    labels: Mapping[str, str],
    where: Sequence[str],
    report: Report,
    count: int = 0,
) -> dict[str, CaseFiles]:
    """Cases with an image and a label, by their key.

    Args:
        images, labels: of `list_files`.
        where: their folders.
        report: gets files without their partner, and the number of cases that are missing altogether.
        count: of the cases of a whole set.
    """
    if (there := len(images.keys() | labels.keys())) < count:
        report.missing.append(Missing(f"{where[0]} and {where[1]}", count - there))
    for key in sorted(images.keys() ^ labels.keys()):
        there = CaseFiles(images.get(key) or labels[key]).images[0]
        lacking, folder = ("label", where[1]) if key in images else ("image", where[0])
        report.wrong.append(Wrong(there, f"has no {lacking} of its case", f"one in {folder}"))
    return {key: CaseFiles(images[key], labels[key]) for key in sorted(images.keys() & labels.keys())}


def find_cases(root: str | Path, report: Report) -> Cases:
    """List a set's files; adds those that have no partner, or are empty, to the report.

    Raises:
        LayoutError: the folder is none of a set of labelled volumes.
    """
    root = Path(root)
    if not root.is_dir():
        raise LayoutError(f"{root} is a file: expected a folder" if root.exists() else f"no folder {root}")
    where = next((layout for layout in _LAYOUTS if any((root / name).is_dir() for name in layout[:2])), None)
    if where is None:
        expected = " or ".join(f"{layout[0]} and {layout[1]}" for layout in _LAYOUTS[:2])
        zipped = " (RawData.zip is there: unzip it)" if (root / "RawData.zip").is_file() else ""
        raise LayoutError(f"{root} holds neither {expected}{zipped}")
    for folder in where:
        unzipped = [name for name in sizes(root / folder, ".nii") if not (root / folder / f"{name}.gz").is_file()]
        for name in sorted(unzipped):
            report.wrong.append(Wrong(f"{folder}/{name}", "is not compressed", "a .nii.gz file: gzip it"))
    images, labels, test = (list_files(root, folder, _NAME, report) for folder in where)
    plain = bool(images.keys() & labels.keys())
    images, test = _grouped(images, labels, report), test if plain else _grouped(test, {}, report)
    labelled = pair_files(images, labels, where, report)
    return Cases(root, where, labelled, {key: CaseFiles(name) for key, name in sorted(test.items())})


def _file(path: Path, name: str, channels: bool) -> list[Wrong]:
    """What is wrong with a file's compression, to its checksum, or with its header; images may have `channels`."""
    import nibabel

    from .volume_files import affine_problems

    try:
        with gzip.open(path) as file:
            while file.read(1 << 24):
                pass
        volume = nibabel.load(path)
    except (OSError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        reason = " ".join(str(error).replace(str(path), name).split())
        return [Wrong(name, f"cannot be read: {reason}", "a whole gzipped NIfTI volume")]
    if len(volume.shape) not in ((3, 4) if channels else (3,)) or min(volume.shape[:3]) < 2:
        return [Wrong(name, f"has the shape {volume.shape}", "three dimensions" + " and channels" * channels)]
    if not int(volume.header["sform_code"]) and not int(volume.header["qform_code"]):
        return [Wrong(name, "has neither sform nor qform", "an affine: without one, right and left are unknown")]
    if wrong := affine_problems(name, volume.affine):
        return wrong
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    if spacing.min() < _SPACING[0] or spacing.max() > _SPACING[1]:
        found = " x ".join(f"{value:.4g}" for value in spacing)
        return [Wrong(name, f"has voxels of {found} mm", "{} to {} mm".format(*_SPACING))]
    return []


def _check(folder: Path, allowed: Collection[int], channels: int | None, case: CaseFiles) -> list[Wrong]:
    """What is wrong with a case's files, each by itself and then together."""
    from .volume_checks import check_volume
    from .volume_files import read_channels

    names = {str(folder / name): name for name in (*case.images, case.label) if name}
    several = channels is not None
    if wrong := [
        bad for path, name in names.items() for bad in _file(Path(path), name, several and name != case.label)
    ]:
        return wrong
    label = folder / case.label if case.label else None
    images = [folder / name for name in case.images]
    found = [replace(wrong, file=names[wrong.file]) for wrong in check_volume(images, label, allowed)]
    if several and (count := sum(map(read_channels, images))) != channels:
        found.append(Wrong(case.images[0], f"has {count} channels", f"{channels}, as the first case"))
    return found


def _channels(folder: Path, cases: Sequence[CaseFiles]) -> int:
    """The number of channels of the first case whose headers can be read."""
    from .volume_files import read_channels

    for case in cases:
        with suppress(Exception):  # of its files, which the check names
            return sum(read_channels(folder / name) for name in case.images)
    return 1


def check_cases(
    folder: Path,
    cases: Sequence[CaseFiles],
    report: Report,
    classes: int,
    jobs: int | None = None,
    progress: Progress | None = None,
    channels: bool = False,
    ignore_label: int | None = None,
) -> None:
    """Read every volume whole and add what is wrong to the report.

    Args:
        folder: the set's.
        cases: of `find_cases`, or of `pair_files`.
        report: is added to.
        classes: highest class of a label; 0 is the background.
        jobs: threads that read.
        progress: called with the numbers of cases read and to read.
        channels: images may have several, in files of four dimensions or in several files; all have as many.
        ignore_label: id that labels may hold, too.

    Raises:
        ImportError: nibabel is missing.
    """
    import nibabel  # noqa: F401  (missing, it is not every file's fault)

    allowed = range(classes + 1) if ignore_label is None else {*range(classes + 1), ignore_label}
    count = _channels(folder, cases) if channels else None
    report.wrong += each(partial(_check, folder, allowed, count), cases, jobs, progress)
    report.found["cases read"] = len(cases)


def split_cases(keys: Sequence[str], validation: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and validation keys, drawn at random.

    Args:
        keys: of the labelled cases.
        validation: number of validation cases, or a fraction below 1.
        seed: the split follows from it and from the keys.

    Raises:
        InputError: a split would be empty, or a number is not whole.
    """
    if validation >= 1 and validation != int(validation):
        raise InputError(f"validation must be a whole number of cases or a fraction below 1, got {validation}")
    count = int(validation) if validation >= 1 else round(validation * len(keys))
    if not 0 < count < len(keys):
        raise InputError(f"validation={validation:g} of {len(keys)} labelled cases leaves a split empty")
    chosen = set(random.Random(seed).sample(sorted(keys), count))
    return [key for key in sorted(keys) if key not in chosen], sorted(chosen)


def data_list(
    labels: Sequence[str],
    splits: Mapping[str, Sequence[CaseFiles]],
    name: str,
    description: str = "",
    folder: str | Path = ".",
    root: str | Path = ".",
    modality: str | Sequence[str] = "CT",
    size: str = "3D",
) -> dict[str, Any]:
    """The data list of a set as MONAI's `load_decathlon_datalist` reads it.

    Args:
        labels: names of the classes, the background first.
        splits: cases of "training", "validation" and "test", relative to `root`; those of "test" need no label.
        name: of the set.
        description: of the set.
        folder: that the list is written to; its paths are relative to this folder.
        root: the set's folder.
        modality: what the images are, or each of their channels.
        size: "3D" for volumes, "2D" for pictures.

    Raises:
        InputError: there is no case for training or for validation.
    """
    for split in ("training", "validation"):
        if not splits.get(split):
            raise InputError(f"no case for {split}")
    start = os.path.relpath(root, folder)

    def path(name: str) -> str:
        return Path(os.path.normpath(os.path.join(start, name))).as_posix()

    def entry(case: CaseFiles) -> str | dict[str, str | list[str]]:
        image = path(case.image) if isinstance(case.image, str) else [path(name) for name in case.image]
        if case.label:
            return dict(image=image, label=path(case.label))
        return image if isinstance(image, str) else dict(image=image)

    entries = {split: [entry(case) for case in splits.get(split, ())] for split in ("training", "validation", "test")}
    return dict(
        name=name,
        description=description,
        tensorImageSize=size,
        modality={str(i): name for i, name in enumerate([modality] if isinstance(modality, str) else modality)},
        labels={str(i): label for i, label in enumerate(labels)},
        numTraining=len(entries["training"]),
        numValidation=len(entries["validation"]),
        numTest=len(entries["test"]),
        **entries,
    )
