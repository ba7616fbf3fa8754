"""What is wrong within a COCO file, and what MMDetection would leave out of it without a word."""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .checked import Notice

__all__ = ["annotation_findings", "image_ids"]

_SHOWN = 5
_OTHERS = {"segments_info", "caption"}  # of annotations in other formats: panoptic maps and captions have no boxes
_RUN_BITS = 35  # of a run's length below 2^32, five bits at a time
_SECTIONS = {"images": "image", "annotations": "annotation", "categories": "category"}


class _Tally(dict):
    """How many entries have a fault, and which is the first."""

    def add(self, fault: str, entry: Mapping) -> None:
        count, first = self.get(fault, (0, entry))
        self[fault] = count + 1, first

    def lines(self, path: str | Path, section: str) -> Iterator[str]:
        for fault, (count, first) in self.items():
            yield f"{path}: {count} {section} {fault}, the first is {_SECTIONS[section]} {first.get('id')}"

    def summary(self) -> str:
        return "; ".join(f"{count} {fault}, first {first.get('id')}" for fault, (count, first) in self.items())


def annotation_findings(
    path: str | Path,
    classes: Sequence[str] | None = None,
    category_ids: Sequence | None = None,
    masks: bool = False,
    measured: bool = False,
    least_side: int = 0,
) -> Iterator[str]:
    """Look through a COCO file.

    Args:
        path: a local file.
        classes: names of the config, in the order of labels. None compares no names.
        category_ids: the file's ids in the order of labels; by default those of `classes` in the file's order, as
            MMDetection takes them.
        masks: whether the segmentations are used.
        measured: the file is a metric's. What is measured must be there, and every mask is decoded.
        least_side: of pictures, in pixels; smaller ones are left out (`filter_cfg`).

    Yields:
        Lines that name the file; those of class `Notice` are worth a warning, all others make it unusable.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        yield f"{path} is no JSON: {'it is nested too deeply' if isinstance(error, RecursionError) else error}"
        return
    if isinstance(content, Mapping) and any(
        isinstance(one, Mapping) and _OTHERS & one.keys() for one in _listed(content.get("annotations"))[:1]
    ):
        return
    if faults := list(_layout_faults(path, content)) or list(_entry_faults(path, content)):
        yield from faults
        return
    yield from _text_ids(path, content)
    if classes is not None:
        wrong, notices = _name_faults(path, content, classes, category_ids)
        yield from wrong or notices
    yield from _small_pictures(path, content["images"], least_side)
    yield from _annotation_faults(path, content, classes, masks, measured)


def image_ids(path: str | Path) -> set:
    """Ids of the images of a COCO file without problems."""
    return {entry["id"] for entry in json.loads(Path(path).read_text(encoding="utf-8"))["images"]}


def _listed(value: object) -> list:
    return value if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < math.inf  # which NaN is not


def _is_id(value: object) -> bool:
    return isinstance(value, str) or _is_number(value)


def _layout_faults(path: str | Path, content: object) -> Iterator[str]:
    """Sections that are missing or of another kind."""
    if not isinstance(content, Mapping):
        kind = "a list, as results are" if isinstance(content, list) else f"a {type(content).__name__}"
        yield f"{path} is no COCO annotation file: it is {kind}; expected an object with {', '.join(_SECTIONS)}"
        return
    for name in _SECTIONS:
        if name not in content:
            if name != "annotations":  # a test set has none
                yield f"{path} is no COCO annotation file: it has no `{name}`"
        elif not isinstance(content[name], list) or not all(isinstance(entry, Mapping) for entry in content[name]):
            yield f"{path}: `{name}` is no list of objects"


def _entry_faults(path: str | Path, content: Mapping) -> Iterator[str]:
    """Ids that are missing or double, images without size or name, categories without name, references to nothing."""
    for name in _SECTIONS:
        tally, seen = _Tally(), set()
        for entry in content.get(name, ()):
            key = entry.get("id")
            if not _is_id(key):
                tally.add("have no `id` that is a number", entry)
            elif key in seen:
                tally.add("have an `id` that another one has too", entry)
            else:
                seen.add(key)
            if name == "images":
                for side in ("width", "height"):
                    if not _is_number(entry.get(side)) or entry[side] <= 0:
                        tally.add(f"have no `{side}` that is a number above 0", entry)
                if not isinstance(entry.get("file_name", entry.get("coco_url")), str):
                    tally.add("have no `file_name`", entry)
            elif name == "categories" and not isinstance(entry.get("name"), str):
                tally.add("have no `name`", entry)
        yield from tally.lines(path, name)
    for key, name in (("category_id", "categories"), ("image_id", "images")):
        ids = {entry["id"] for entry in content[name] if _is_id(entry.get("id"))}
        strange = [
            entry for entry in content.get("annotations", ()) if not _is_id(entry.get(key)) or entry[key] not in ids
        ]
        if strange:
            values = sorted({str(entry.get(key)) for entry in strange})[:_SHOWN]
            mixed = not {str(one) for one in ids}.isdisjoint(values)
            yield (
                f"{path}: {len(strange)} annotations have a {key} that the file does not list: {values}"
                f"{' (as text in one place, as a number in the other)' if mixed else ''}, "
                f"the first is annotation {strange[0].get('id')}"
            )


def _text_ids(path: str | Path, content: Mapping) -> Iterator[str]:
    for name in _SECTIONS:
        if text := [entry["id"] for entry in content.get(name, ()) if isinstance(entry["id"], str)]:
            yield Notice(
                f"{path}: {len(text)} of the {name} have an `id` that is text ({text[0]!r}): COCO's are numbers"
            )


def _small_pictures(path: str | Path, images: Sequence[Mapping], least_side: int) -> Iterator[str]:
    small = [entry for entry in images if min(entry["width"], entry["height"]) < least_side]
    if small:
        line = (
            f"{path}: {len(small)} of {len(images)} images are smaller than {least_side} pixels and are left out "
            f"(`filter_cfg`), the first is image {small[0]['id']}"
        )
        yield line if len(small) == len(images) else Notice(line)


def _name_faults(
    path: str | Path, content: Mapping, classes: Sequence[str], category_ids: Sequence | None
) -> tuple[list[str], list[str]]:
    """(what makes labels wrong, what is left out) when names of the config and of the file differ."""
    categories = content["categories"]
    names = [entry["name"] for entry in categories]
    wrong = []
    if missing := [name for name in classes if name not in names]:
        close = {name: _close(name, names) for name in missing}
        hints = [f"{name!r} (the file has {close[name]!r})" if close[name] else repr(name) for name in missing]
        more = f" and {len(hints) - _SHOWN} more" if len(hints) > _SHOWN else ""
        wrong.append(
            f"{path} has no category {', '.join(hints[:_SHOWN])}{more}, which the config's classes have: "
            f"give the file's names as `metainfo`; it has {names[: 2 * _SHOWN]}"
        )
    if double := sorted({name for name in classes if names.count(name) > 1}):
        wrong.append(f"{path} has several categories of one name: {double[:_SHOWN]}")
    if category_ids is None:
        labelled = [name for name in names if name in classes]
    else:
        by_id = {entry["id"]: entry["name"] for entry in categories}
        labelled = [by_id.get(one) for one in category_ids]
    if not wrong and labelled != list(classes):
        first = next(i for i, (ours, theirs) in enumerate(zip(classes, labelled, strict=False)) if ours != theirs)
        wrong.append(
            f"{path} lists its categories in another order than the config its classes: a {labelled[first]!r} would "
            f"get the label of {classes[first]!r}; give `metainfo` classes in the file's order: "
            f"{labelled[: 2 * _SHOWN]}{' ...' if len(labelled) > 2 * _SHOWN else ''}"
        )
    notices = []
    if others := [name for name in names if name not in classes]:
        ids = {entry["id"] for entry in categories if entry["name"] not in classes}
        lost = sum(entry["category_id"] in ids for entry in content.get("annotations", ()))
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        if lost:
            notices.append(
                Notice(
                    f"{path}: {lost} annotations of {', '.join(map(repr, others[:_SHOWN]))}{more} "
                    "are left out: the config has no such class"
                )
            )
    return wrong, notices


def _close(name: str, names: Iterable[str]) -> str | None:
    """The name that another one is a slip of."""
    folded = {other.casefold().strip(): other for other in names}
    found = difflib.get_close_matches(name.casefold().strip(), folded, n=1, cutoff=0.8)
    return folded[found[0]] if found else None


class _Sorted:
    """Annotations by what becomes of them.

    Attributes:
        broken: cannot be read.
        left_out: MMDetection drops them.
        trimmed: some of their polygons are dropped.
        beyond: boxes that end outside their picture.
        used: names of the categories of all others that are no crowds.
        crowds, relative: how many are crowds, and have boxes within 0 and 1.
    """

    def __init__(self, masks: bool, measured: bool):
        self.masks, self.measured = masks, measured
        self.broken, self.left_out, self.trimmed, self.beyond = _Tally(), _Tally(), _Tally(), _Tally()
        self.used: set[str] = set()
        self.crowds = self.relative = 0

    def add(self, entry: Mapping, image: Mapping, name: str) -> None:
        if fault := _box_fault(entry):
            self.broken.add(fault, entry)
            return
        self.relative += max(map(abs, entry["bbox"])) <= 1
        reason = _left_out(entry, image)
        if self.masks and (self.measured or reason is None):
            fault, trims = _mask_fault(entry.get("segmentation"), image)
            if fault and not (trims and (not self.measured or _is_polygon(entry["segmentation"][0]))):
                self.broken.add(fault, entry)  # COCO's evaluation takes a first polygon of four numbers for a box
                return
            if fault and any(map(_is_polygon, entry["segmentation"])):
                self.trimmed.add(fault, entry)
            else:
                reason = reason or fault
        if reason:
            self.left_out.add(reason, entry)
        elif entry.get("iscrowd"):
            self.crowds += 1
        else:
            self.used.add(name)
            if _is_beyond(entry["bbox"], image):
                self.beyond.add("have a box that ends outside its picture (boxes are x, y, width, height)", entry)

    def why_none_counts(self, total: int) -> str:
        why = [self.left_out.summary()] * bool(self.left_out) + [f"{self.crowds} are crowds"] * bool(self.crowds)
        if self.relative == total:
            why.append("boxes look relative, COCO's are in pixels")
        return "; ".join(why) or "all are of other categories than the classes"


def _annotation_faults(
    path: str | Path, content: Mapping, classes: Sequence[str] | None, masks: bool, measured: bool
) -> Iterator[str]:
    """Annotations that cannot be read, and those that do not count."""
    annotations = content.get("annotations", ())
    if not annotations:
        if measured:
            yield f"{path} has no annotation: there is nothing to measure"
        return
    images = {entry["id"]: entry for entry in content["images"]}
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    found, wanted = _Sorted(masks, measured), set(names.values() if classes is None else classes)
    for entry in annotations:
        name = names[entry["category_id"]]
        if name in wanted:
            found.add(entry, images[entry["image_id"]], name)
    if found.broken:
        yield from found.broken.lines(path, "annotations")
        return
    if not found.used:
        yield f"{path}: none of its {len(annotations)} annotations counts: {found.why_none_counts(len(annotations))}"
        return
    for line in found.left_out.lines(path, "annotations"):
        yield Notice(f"{line}: they do not count")
    for line in (*found.trimmed.lines(path, "annotations"), *found.beyond.lines(path, "annotations")):
        yield Notice(line)
    if classes is not None and (unused := [name for name in classes if name not in found.used]):
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        yield Notice(f"{path} has no annotation that counts of {', '.join(map(repr, unused[:_SHOWN]))}{more}")


def _box_fault(entry: Mapping) -> str | None:
    """Why an annotation cannot be read."""
    box, area = entry.get("bbox"), entry.get("area")
    if box is None:
        return "have no `bbox`"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return "have a `bbox` that is not four finite numbers"
    if area is None:
        return "have no `area`"
    return None if _is_number(area) else "have an `area` that is no finite number"


def _left_out(entry: Mapping, image: Mapping) -> str | None:
    """Why MMDetection drops an annotation (the conditions of its `CocoDataset`)."""
    x, y, width, height = entry["bbox"]
    if entry.get("ignore"):
        return "have `ignore` set"
    inside = min(x + width, image["width"]) > max(x, 0) and min(y + height, image["height"]) > max(y, 0)
    if width >= 1 and height >= 1 and not inside:
        return "have a box outside their picture"
    if width < 1 or height < 1:
        return "have a box of less than one pixel"
    return "have an area of 0 or less" if entry["area"] <= 0 else None


def _is_beyond(box: Sequence[float], image: Mapping) -> bool:
    """Whether a box ends outside its picture by more than rounding."""
    x, y, width, height = box
    return min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1


def _is_polygon(points: object) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0 and all(map(_is_number, points))


def _mask_fault(mask: object, image: Mapping) -> tuple[str | None, bool]:
    """(what is wrong with a segmentation, whether only polygons are left out for it)."""
    if not mask:
        return "have no `segmentation`, and masks are asked for", False
    if isinstance(mask, Mapping):
        return _run_length_fault(mask, image), False
    if not isinstance(mask, list) or not all(isinstance(one, list) for one in mask):
        return "have a `segmentation` that is neither a list of polygons nor a run-length code", False
    if not all(map(_is_polygon, mask)):
        return "have polygons that are not at least three pairs of finite numbers", True
    return None, False


def _run_length_fault(code: Mapping, image: Mapping) -> str | None:
    """What is wrong with a run-length code; its decoder in C trusts what it is given."""
    size, counts = code.get("size"), code.get("counts")
    if size != [image["height"], image["width"]]:
        return "have a run-length code whose `size` is not the height and width of their picture"
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not isinstance(counts, list) or not all(isinstance(one, int) and one >= 0 for one in counts):
        return "have a run-length code whose `counts` cannot be read"
    if sum(counts) != size[0] * size[1]:
        return "have a run-length code whose `counts` do not add up to their picture's pixels"
    return None


def _decompressed(text: str) -> list[int] | None:
    """Runs of COCO's compressed code: five bits a character, differences to the run before the last from the fourth."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= _RUN_BITS:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs
