"""Pictures and label maps, looked at before a training that would meet a bad one hours later."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..pictures import PictureError, check_image, is_picture, is_turned, read_labels, read_size
from .checked import Notice, file_stamp
from .order import DataError

__all__ = ["LabelRule", "Sample", "label_findings", "left_out_pictures", "picture_problem"]

_SHOWN = 5
_IGNORED = 255


class Sample(NamedTuple):
    """Where a sample lies, and the size that its annotation says it has."""

    image: str
    labels: str | None
    width: int | None
    height: int | None

    def fingerprint(self) -> str:
        """Changes when a file does."""
        return " ".join([f"{self.width}x{self.height}", *map(file_stamp, filter(None, (self.image, self.labels)))])


def _can_be_looked_at(path: str) -> bool:
    """Whether the file is local, and of a format that Pillow knows."""
    return "://" not in path and is_picture(path)


def picture_problem(sample: Sample) -> str | None:
    """What is wrong with a picture."""
    if not _can_be_looked_at(sample.image):
        return None
    try:
        size = check_image(sample.image)
    except PictureError as error:
        return str(error)
    if sample.width is not None and sample.height is not None and size != (sample.width, sample.height):
        return f"{sample.image} is {size[0]}x{size[1]} pixels, its annotation says {sample.width}x{sample.height}"
    return None


class LabelRule(NamedTuple):
    """What the ids of a segmentation data set's label maps mean.

    Attributes:
        classes: names in the order of labels; None where the data set has none.
        meaning: (256,) label of each id: a class, or one that is ignored.
        allowed: (256,) whether an id may occur.
    """

    classes: tuple[str, ...] | None
    meaning: np.ndarray
    allowed: np.ndarray

    @classmethod
    def of(cls, dataset) -> LabelRule:
        """The rule of MMSegmentation's `LoadAnnotations`: the zero label first, the label map after it."""
        meaning = np.arange(256)
        classes = dataset.metainfo.get("classes")
        if classes is None:
            return cls(None, meaning, np.ones(256, dtype=bool))
        if len(classes) > _IGNORED:
            raise DataError(
                f"{type(dataset).__name__} has {len(classes)} classes: label maps are read with 8 bits, in which "
                f"{_IGNORED} is ignored, so there is room for {_IGNORED}"
            )
        if getattr(dataset, "reduce_zero_label", False):
            meaning = np.append(_IGNORED, meaning[:-1])
            meaning[-1] = _IGNORED
        renumbered = np.arange(256)
        for old, new in (getattr(dataset, "label_map", None) or {}).items():
            if 0 <= old <= 255:
                renumbered[old] = new & 255  # as 8 bits hold it
        meaning = renumbered[meaning]
        allowed = (meaning < len(classes)) | np.isin(meaning, [getattr(dataset, "ignore_index", _IGNORED), _IGNORED])
        return cls(tuple(classes), meaning, allowed)

    def stamp(self) -> str:
        """All of it, as text."""
        return f"{self.classes} {self.meaning.tolist()} {self.allowed.tolist()}"


def _count(sample: Sample, rule: LabelRule) -> np.ndarray | str:
    """How often each id occurs in a label map (256,), or what is wrong with the file."""
    path = sample.labels
    try:
        ids, turned = read_labels(path), is_turned(path)
        size = read_size(sample.image) if _can_be_looked_at(sample.image) else ids.shape[::-1]
    except PictureError as error:
        return str(error)
    if turned:
        return f"{path} has an EXIF orientation, which loaders of label maps do not follow: save it upright"
    if ids.shape != size[::-1]:
        return f"{path} is {ids.shape[1]}x{ids.shape[0]} pixels, its image {sample.image} {size[0]}x{size[1]}"
    found = np.unique(ids)
    strange = [one for one in found.tolist() if not 0 <= one <= 255 or not rule.allowed[one]]
    if strange:
        return f"{path} has ids outside the {len(rule.classes or ())} classes: {strange[:_SHOWN]}"
    return np.bincount(ids.ravel(), minlength=256)


def label_findings(found: Iterable[Sample], rule: LabelRule, where: str, pool) -> Iterator[str]:
    """Look at all label maps of a data set.

    Args:
        found: samples; those without a local label map do not count.
        rule: which ids may occur, and what they mean.
        where: name of the data set.
        pool: an executor.

    Yields:
        What is wrong with a file or with all of them; what is only worth a warning is a `Notice`.
    """
    labelled = [one for one in found if one.labels and _can_be_looked_at(one.labels)]
    if not labelled:
        return
    if not any(os.path.exists(one.labels) for one in labelled):
        yield f"{labelled[0].labels} is missing, as are all {len(labelled)} label maps{_others(labelled[0].labels)}"
        return
    if lossy := [one.labels for one in labelled if Path(one.labels).suffix.lower() in (".jpg", ".jpeg")]:
        yield Notice(
            f"{lossy[0]} and all in all {len(lossy)} label maps are JPEG files, which change ids: save them as PNG"
        )
    counts = np.zeros(256, dtype=np.int64)
    damaged = False
    for one in pool.map(lambda sample: _count(sample, rule), labelled):
        if isinstance(one, str):
            damaged = True
            yield one
        else:
            counts += one
    if not damaged and rule.classes:
        yield from _class_findings(counts, rule, where)


def _class_findings(counts: np.ndarray, rule: LabelRule, where: str) -> Iterator[str]:
    """Classes that occur nowhere, and what is ignored in their place."""
    classes = len(rule.classes)
    per_class = np.bincount(rule.meaning, counts, minlength=256)[:classes]
    ignored = [int(one) for one in np.flatnonzero((counts > 0) & (rule.meaning >= classes))]
    if not per_class.any():
        yield f"{where}: no pixel of its label maps has a class: all are {_listed(ignored)}, which is ignored"
        return
    unused = [f"{name!r} ({i})" for i, name in enumerate(rule.classes) if not per_class[i]]
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        share = counts[ignored].sum() / counts.sum()
        instead = f"; {_listed(ignored)} is ignored, {share:.1%} of the pixels" if ignored else ""
        hint = ": are the masks of 0 and 255? Save them as 0 and 1" if classes == 2 and ignored == [_IGNORED] else ""
        yield Notice(
            f"{where}: no pixel of its label maps has the class {', '.join(unused[:_SHOWN])}{more}{instead}{hint}"
        )


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:_SHOWN]))


def _others(path: str) -> str:
    """What is in the folder where a file is missing."""
    folder = Path(path).parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    names = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    if not names:
        return f": {folder} is empty"
    return f": {folder} has {len(names)} others, such as {names[0]} (see `seg_map_suffix`)"


def left_out_pictures(dataset) -> Iterator[str]:
    """Pictures in the folder of one of MMSegmentation's data sets whose names do not end as it asks for.

    Yields:
        A line if there are some: a `Notice`, unless there are no others.
    """
    suffix, prefix = getattr(dataset, "img_suffix", None), getattr(dataset, "data_prefix", None) or {}
    folder = prefix.get("img_path")
    if not suffix or not folder or getattr(dataset, "ann_file", None) or not os.path.isdir(folder):
        return
    files = [Path(root, name) for root, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    taken = [one for one in files if one.name.endswith(suffix)]
    if not taken:
        has = f"it has {len(files)} others, such as {min(files).name}" if files else "it has no file"
        yield f"no file in {folder} ends in {suffix!r} (`img_suffix`): {has}"
        return
    labels = prefix.get("seg_map_path")
    beside = bool(labels) and Path(folder).is_relative_to(labels)  # label maps are no pictures that were forgotten
    known = (suffix, dataset.seg_map_suffix) if beside else suffix
    others = [one for one in files if is_picture(one) and not one.name.endswith(known)]
    if others:
        yield Notice(
            f"{folder}: {len(others)} pictures do not end in {suffix!r} (`img_suffix`) and are left out, "
            f"such as {min(others).name}"
        )
