"""Check of sets of labelled volumes: gzipped NIfTI files in `imagesTr`, `labelsTr` and `imagesTs`; and their data list.

nibabel, of the extra `medical`, is needed only where files are opened.
"""

import gzip
import os
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .layout import LayoutError, Progress, Report, Wrong, each, sizes

__all__ = ["Case", "Cases", "check_cases", "data_list", "find_cases", "split_cases"]

_SUFFIX = ".nii.gz"
# Images, labels, images without labels: MONAI's and the decathlon's layout, and that of the challenge's archive.
_LAYOUTS = (
    ("imagesTr", "labelsTr", "imagesTs"),
    *(tuple(f"{top}{name}" for name in ("Training/img", "Training/label", "Testing/img"))
      for top in ("", "RawData/", "Abdomen/RawData/")),
)  # fmt: skip
_SPACING = 0.1, 20.0  # mm: beyond it the unit is wrong, or the header


@dataclass(frozen=True)
class Case:
    """An image and its label, if it has one: paths relative to the set's folder, with forward slashes."""

    image: str
    label: str | None = None


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
    labelled: dict[str, Case]
    test: dict[str, Case]


def _key(name: str) -> str:
    return re.sub(r"^(img|label)(?=.)", "", name.removesuffix(_SUFFIX))


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
    files: list[dict[str, str]] = []
    for folder in where:
        found = sizes(root / folder, _SUFFIX)
        report.found[folder] = len(found)
        report.wrong += [Wrong(f"{folder}/{name}", "is empty", "a volume") for name in sorted(found) if not found[name]]
        keys: dict[str, str] = {}
        for name in sorted(found):
            if (other := keys.setdefault(_key(name), name)) != name:
                report.wrong.append(Wrong(f"{folder}/{name}", f"is of the same case as {other}", "one file a case"))
        files.append({key: f"{folder}/{name}" for key, name in keys.items() if found[name]})
    images, labels, test = files
    for key in sorted(images.keys() ^ labels.keys()):
        there = images.get(key) or labels[key]
        lacking, folder = ("label", where[1]) if key in images else ("image", where[0])
        report.wrong.append(Wrong(there, f"has no {lacking} of its case", f"one in {folder}"))
    return Cases(
        root,
        where,
        {key: Case(images[key], labels[key]) for key in sorted(images.keys() & labels.keys())},
        {key: Case(name) for key, name in sorted(test.items())},
    )


def _file(path: Path, name: str) -> list[Wrong]:
    """What is wrong with a file's compression, to its checksum, or with its header."""
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
    if len(volume.shape) != 3 or min(volume.shape) < 2:
        return [Wrong(name, f"has the shape {volume.shape}", "three dimensions")]
    if not int(volume.header["sform_code"]) and not int(volume.header["qform_code"]):
        return [Wrong(name, "has neither sform nor qform", "an affine: without one, right and left are unknown")]
    if wrong := affine_problems(name, volume.affine):
        return wrong
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    if spacing.min() < _SPACING[0] or spacing.max() > _SPACING[1]:
        found = " x ".join(f"{value:.4g}" for value in spacing)
        return [Wrong(name, f"has voxels of {found} mm", "{} to {} mm".format(*_SPACING))]
    return []


def _check(folder: Path, classes: int, case: Case) -> list[Wrong]:
    """What is wrong with a case's files, each by itself and then together."""
    from .volume_files import check_volume

    names = {str(folder / name): name for name in (case.image, case.label) if name}
    if wrong := [bad for path, name in names.items() for bad in _file(Path(path), name)]:
        return wrong
    label = folder / case.label if case.label else None
    found = check_volume(folder / case.image, label, range(classes + 1))
    return [replace(wrong, file=names[wrong.file]) for wrong in found]


def check_cases(
    cases: Cases, report: Report, classes: int, jobs: int | None = None, progress: Progress | None = None
) -> None:
    """Read every volume whole and add what is wrong to the report.

    Args:
        cases: of `find_cases`.
        report: is added to.
        classes: highest class of a label; 0 is the background.
        jobs: threads that read.
        progress: called with the numbers of cases read and to read.

    Raises:
        ImportError: nibabel is missing.
    """
    import nibabel  # noqa: F401  (missing, it is not every file's fault)

    every = [*cases.labelled.values(), *cases.test.values()]
    report.wrong += each(partial(_check, cases.folder, classes), every, jobs, progress)
    report.found["cases read"] = len(every)


def split_cases(keys: Sequence[str], validation: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and validation keys, drawn at random.

    Args:
        keys: of the labelled cases.
        validation: number of validation cases, or a fraction below 1.
        seed: the split follows from it and from the keys.

    Raises:
        ValueError: a split would be empty, or a number is not whole.
    """
    if validation >= 1 and validation != int(validation):
        raise ValueError(f"validation must be a whole number of cases or a fraction below 1, got {validation}")
    count = int(validation) if validation >= 1 else round(validation * len(keys))
    if not 0 < count < len(keys):
        raise ValueError(f"validation={validation:g} of {len(keys)} labelled cases leaves a split empty")
    chosen = set(random.Random(seed).sample(sorted(keys), count))
    return [key for key in sorted(keys) if key not in chosen], sorted(chosen)


def data_list(
    labels: Sequence[str],
    splits: Mapping[str, Sequence[Case]],
    name: str,
    description: str = "",
    folder: str | Path = ".",
    root: str | Path = ".",
) -> dict[str, Any]:
    """The data list of a set as MONAI's `load_decathlon_datalist` reads it.

    Args:
        labels: names of the classes, the background first.
        splits: cases of "training", "validation" and "test", relative to `root`.
        name: of the set.
        description: of the set.
        folder: that the list is written to; its paths are relative to this folder.
        root: the set's folder.

    Raises:
        ValueError: there is no case for training or for validation.
    """
    for split in ("training", "validation"):
        if not splits.get(split):
            raise ValueError(f"no case for {split}")
    start = os.path.relpath(root, folder)

    def path(name: str) -> str:
        return Path(os.path.normpath(os.path.join(start, name))).as_posix()

    pairs = {
        split: [dict(image=path(case.image), label=path(case.label or "")) for case in splits[split]]
        for split in ("training", "validation")
    }
    test = [path(case.image) for case in splits.get("test", ())]
    return dict(
        name=name,
        description=description,
        tensorImageSize="3D",
        modality={"0": "CT"},
        labels={str(i): label for i, label in enumerate(labels)},
        numTraining=len(pairs["training"]),
        numValidation=len(pairs["validation"]),
        numTest=len(test),
        **pairs,
        test=test,
    )
