"""Check of COCO 2017's detection set: 118,287 and 5,000 images, 80 categories."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .archives import Archive
from .layout import Missing, Progress, Report, Wrong, each, find_root, open_image, sizes

__all__ = ["ARCHIVES", "Coco", "Split", "check_coco"]

# The MD5s are those that PaddleDetection checks (ppdet/utils/download.py).
ARCHIVES = (
    Archive("http://images.cocodataset.org/zips/train2017.zip", ("train2017",), md5="cced6f7f71b7629ddf16f17bbcfab6b2"),
    Archive("http://images.cocodataset.org/zips/val2017.zip", ("val2017",), md5="442b8da7639aecaf257c1dceb8ba8c80"),
    Archive(
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        ("annotations",),
        md5="f4bbac642086de4f52a3fdda2de5fa2c",
    ),
)


@dataclass(frozen=True)
class Split:
    """Numbers of images and of annotations."""

    images: int
    annotations: int


@dataclass(frozen=True)
class Coco:
    """What is expected; the numbers of annotations are those of github.com/cocodataset/cocoapi/issues/117."""

    train: Split = Split(118_287, 860_001)
    val: Split = Split(5_000, 36_781)
    categories: int = 80


def _read(path: Path, name: str) -> tuple[dict[str, list[dict[str, Any]]] | None, Wrong | None]:
    """The lists of an annotation file, or what is wrong with it."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return None, Wrong(name, f"is no JSON: {error}", "COCO's instances")
    for key in ("images", "annotations", "categories"):
        records = content.get(key) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(
            isinstance(r, dict) and isinstance(r.get("id"), int) for r in records
        ):
            return None, Wrong(name, f"has no list of {key} with whole ids", "COCO's instances")
    return content, None


def _dangling(name: str, annotations: list[dict[str, Any]], key: str, ids: set[Any]) -> list[Wrong]:
    """The annotations whose `key` names none of the ids, as one finding."""
    bad = [a["id"] for a in annotations if not isinstance(a.get(key), int) or a[key] not in ids]
    if not bad:
        return []
    first = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    return [Wrong(name, f"{len(bad):,} annotations of an unknown {key} (annotation {first})", "none")]


def _check_records(name: str, content: dict[str, list[dict[str, Any]]], split: Split, categories: int) -> list[Wrong]:
    """What is wrong with the records themselves."""
    wrong = []
    numbers = dict(images=split.images, annotations=split.annotations, categories=categories)
    for key, number in numbers.items():
        records = content[key]
        if len(records) != number:
            wrong.append(Wrong(name, f"{len(records):,} {key}", f"{number:,}"))
        if twice := len(records) - len({r["id"] for r in records}):
            wrong.append(Wrong(name, f"{twice:,} ids of {key} that others have", "an id for each"))
    for key, of in (("image_id", "images"), ("category_id", "categories")):
        wrong += _dangling(name, content["annotations"], key, {r["id"] for r in content[of]})
    return wrong


def _decode(root: Path, where: str, record: dict[str, Any]) -> list[Wrong]:
    """What is wrong with the pixels of an image."""
    name = f"{where}/{record['file_name']}"
    image, bad = open_image(root / name, name)
    if image is None:
        return [bad] if bad else []
    stated = record.get("width"), record.get("height")
    if image.size == stated:
        return []
    return [Wrong(name, "{} x {} pixels".format(*image.size), "{} x {}, as in its record".format(*stated))]


def _check_split(root: Path, report: Report, split: str, expected: Coco) -> list[dict[str, Any]]:
    """Add a split's findings to the report; returns the records of the images that are there."""
    where, name = f"{split}2017", f"annotations/instances_{split}2017.json"
    numbers: Split = getattr(expected, split)
    found = sizes(root / where, ".jpg")
    report.found[f"images in {where}"] = len(found)
    report.wrong += [
        Wrong(f"{where}/{file}", "is empty", "an image") for file, size in sorted(found.items()) if not size
    ]
    content, bad = None, None
    if (root / name).is_file():
        content, bad = _read(root / name, name)
    else:
        report.lack("annotations", [Path(name).name])
    if bad:
        report.wrong.append(bad)
    if content is None:  # without names, only the number of images can be checked
        if len(found) < numbers.images:
            report.missing.append(Missing(where, numbers.images - len(found)))
        return []
    report.found[f"annotations in {name}"] = len(content["annotations"])
    report.wrong += _check_records(name, content, numbers, expected.categories)
    nameless = sum(not isinstance(r.get("file_name"), str) for r in content["images"])
    if nameless:
        report.wrong.append(Wrong(name, f"{nameless:,} images without file_name", "none"))
    records = [r for r in content["images"] if isinstance(r.get("file_name"), str)]
    report.lack(where, {r["file_name"] for r in records} - found.keys())
    if others := len(found.keys() - {r["file_name"] for r in records}):
        report.notes.append(f"{others:,} images in {where} have no record in {name}: nothing reads them")
    return [r for r in records if found.get(r["file_name"])]


def check_coco(
    root: str | Path,
    decode: bool = False,
    jobs: int | None = None,
    splits: Sequence[str] = ("train", "val"),
    expected: Coco | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a folder of COCO 2017: the annotation files, and every image that they name.

    The training split's annotations are read whole, which takes about 20 seconds and 4 GB of memory.

    Args:
        root: the folder that holds `train2017`, `val2017` and `annotations`.
        decode: also decode every image, which takes far longer, and compare its size with the record's.
        jobs: threads that decode.
        splits: "train", "val" or both.
        expected: what a complete set holds.
        progress: called with the numbers of images decoded and to decode.

    Raises:
        LayoutError: there is no such folder, or it lies above or below the set's.
        ValueError: there is no such split.
    """
    if unknown := set(splits) - {"train", "val"}:
        raise ValueError(f"splits must be of train and val, got {', '.join(sorted(unknown))}")
    folder = find_root(root, [f"{split}2017" for split in splits] + ["annotations"])
    report = Report(str(root))
    for split in splits:
        records = _check_split(folder, report, split, expected or Coco())
        if decode:
            report.wrong += each(partial(_decode, folder, f"{split}2017"), records, jobs, progress)
            report.found[f"images of {split}2017 decoded"] = len(records)
    return report
