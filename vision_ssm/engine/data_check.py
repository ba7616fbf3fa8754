"""Every image and annotation of a data set, looked at before a training that would meet a bad one hours later."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.distributed as dist
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from ..files import write_json
from .order import DataError, Seeded

__all__ = ["DataCheckHook", "check_dataset", "check_samples", "checked_once", "file_stamp", "leaves"]

_VERSION = 3  # of the checks: to be raised when they find more
_SHOWN = 5
_ORIENTATION = 0x0112  # EXIF; from 5 on width and height change places, as they do in what mmcv reads


class _Sample(NamedTuple):
    """Where a sample lies, and the size that its annotation says it has."""

    image: str
    labels: str | None
    width: int | None
    height: int | None

    def fingerprint(self) -> str:
        """Changes when a file does."""
        return " ".join([f"{self.width}x{self.height}", *map(file_stamp, filter(None, (self.image, self.labels)))])


def file_stamp(path: str | Path) -> str:
    """Changes when a file does."""
    try:
        stat = os.stat(path)
        return f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}"
    except OSError:
        return f"{path} missing"


def _size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)


def _readable(path: str) -> bool:
    """Whether the file is one that can be looked at here: local, and of a format that Pillow knows."""
    return "://" not in path and Path(path).suffix.lower() in Image.registered_extensions()


def _image_problem(sample: _Sample) -> str | None:
    """What is wrong with an image file; decoded at a fraction of its resolution where the format allows."""
    with Image.open(sample.image) as image:
        size = _size(image)
        image.draft("RGB", (max(size[0] // 8, 1), max(size[1] // 8, 1)))
        image.load()
    if sample.width is not None and sample.height is not None and size != (sample.width, sample.height):
        return f"{sample.image} is {size[0]}x{size[1]} pixels, its annotation says {sample.width}x{sample.height}"
    return None


def _labels_problem(sample: _Sample, allowed: np.ndarray) -> str | None:
    """What is wrong with a label map; `allowed` (256,) says which ids it may hold."""
    with Image.open(sample.labels) as labels:
        ids = np.asarray(labels).astype(np.int64)
    with Image.open(sample.image) as picture:
        size = _size(picture)
    if ids.ndim != 2:
        return f"{sample.labels} has {ids.shape[-1]} channels: expected one, of class ids"
    if ids.shape != size[::-1]:
        return f"{sample.labels} is {ids.shape[1]}x{ids.shape[0]} pixels, its image {sample.image} {size[0]}x{size[1]}"
    if ids.max(initial=0) > 255 or not allowed[ids].all():
        found = sorted(set(np.unique(ids).tolist()) - set(np.flatnonzero(allowed).tolist()))
        return f"{sample.labels} has ids outside the {int(allowed[:255].sum())} classes: {found[:_SHOWN]}"
    return None


def _problem(sample: _Sample, allowed: np.ndarray | None) -> str | None:
    path = sample.image
    try:
        problem = _image_problem(sample) if _readable(path) else None
        if problem is None and sample.labels and allowed is not None and _readable(sample.labels):
            path = sample.labels
            problem = _labels_problem(sample, allowed)
        return problem
    except FileNotFoundError:
        return f"{path} is missing"
    except Exception as error:
        return f"{path} does not decode: {error}"


def _allowed_ids(dataset) -> np.ndarray | None:
    """Which ids a segmentation data set's label maps may hold: its classes and what is ignored."""
    classes = dataset.metainfo.get("classes")
    if classes is None or len(classes) > 254 or getattr(dataset, "label_map", None) is not None:
        return None
    allowed = np.zeros(256, dtype=bool)
    allowed[: len(classes) + bool(getattr(dataset, "reduce_zero_label", False))] = True
    allowed[getattr(dataset, "ignore_index", 255)] = allowed[255] = True
    return allowed


def _annotation_problems(path: str) -> Iterator[str]:
    """What is wrong within a COCO file. MMDetection leaves out what refers to no category, without a word."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    for key, known in (("category_id", content.get("categories", ())), ("image_id", content.get("images", ()))):
        ids = {entry["id"] for entry in known}
        strange = [entry for entry in content.get("annotations", ()) if entry.get(key) not in ids]
        if strange:
            values = sorted({str(entry.get(key)) for entry in strange})[:_SHOWN]
            first = f"the first is annotation {strange[0].get('id')}"
            yield f"{path}: {len(strange)} annotations have a {key} that the file does not list: {values}, {first}"


def leaves(dataset) -> Iterable:
    """The data sets inside wrappers (repeated, concatenated, balanced)."""
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            yield from leaves(inner)
    elif isinstance(dataset, Seeded) or (
        "dataset" in getattr(dataset, "__dict__", ()) and not hasattr(dataset, "load_data_list")
    ):
        yield from leaves(dataset.dataset)
    else:
        yield dataset


def _samples(dataset) -> list[_Sample]:
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    found = (
        _Sample(info["img_path"], info.get("seg_map_path"), info.get("width"), info.get("height"))
        for info in infos
        if isinstance(info.get("img_path"), str)
    )
    return list(dict.fromkeys(found))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vision_ssm" / "checked"


def check_dataset(dataset, log: Callable[[str], object] | None = None) -> None:
    """Decode every image and label map of a data set, in threads; what was found good is not read again.

    Args:
        dataset: of MMSegmentation, MMDetection, or any with their `get_data_info`, also inside wrappers; one that has
            a method `check(log)` looks at its files itself. Others are not checked, nor are remote files and formats
            that Pillow does not know.
        log: called with a line before the work starts.

    Raises:
        DataError: files are missing, do not decode, differ in size from their annotation or have ids outside the
            classes, or a COCO file contradicts itself; the first few are named.
    """
    for leaf in leaves(dataset):
        if hasattr(leaf, "check"):
            leaf.check(log)
        elif hasattr(leaf, "get_data_info") and hasattr(leaf, "metainfo"):
            _check_leaf(leaf, log)


def checked_once(stamps: Iterable[str], problems: Callable[[], list[str]]) -> None:
    """Look for problems unless files in the same state were found good before.

    Args:
        stamps: all that the result depends on (`file_stamp`).
        problems: looks.

    Raises:
        DataError: there are any; the first few are told.
    """
    digest = hashlib.sha256(repr(_VERSION).encode())
    for line in stamps:
        digest.update(line.encode() + b"\n")
    stamp = _cache() / f"{digest.hexdigest()}.json"
    if stamp.is_file():
        return
    if found := problems():
        more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
        raise DataError("; ".join(found[:_SHOWN]) + more)
    with contextlib.suppress(OSError):  # no cache folder: the next run checks again
        write_json(stamp, dict(checked=True))


def _check_leaf(dataset, log: Callable[[str], object] | None) -> None:
    samples, allowed = _samples(dataset), _allowed_ids(dataset)
    if not len(dataset):
        raise DataError(f"{getattr(dataset, 'data_root', type(dataset).__name__)} holds no sample")
    annotations = getattr(dataset, "ann_file", "")
    is_coco = isinstance(annotations, str) and annotations.endswith(".json") and hasattr(dataset, "cat_ids")
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        stamps = [repr(None if allowed is None else allowed.tobytes())]
        if is_coco:
            stamps.append(file_stamp(annotations))
        stamps += pool.map(_Sample.fingerprint, samples, chunksize=256)

        def problems() -> list[str]:
            if log:
                log(f"checking {len(samples)} images and their annotations, once")
            found = list(_annotation_problems(annotations)) if is_coco and os.path.isfile(annotations) else []
            return found + list(filter(None, pool.map(lambda sample: _problem(sample, allowed), samples)))

        checked_once(stamps, problems)


def check_samples(loop) -> None:
    """Tell metrics that have a method `check_samples` what a validation or test is about to measure.

    Args:
        loop: MMEngine's, built; `get_data_info` of its data sets, also inside wrappers, describes the samples.

    Raises:
        DataError: a metric's, about samples that it cannot tell apart.
    """
    for metric in getattr(getattr(loop, "evaluator", None), "metrics", ()):
        if check := getattr(metric, "check_samples", None):
            found = [leaf for leaf in leaves(loop.dataloader.dataset) if hasattr(leaf, "get_data_info")]
            check([leaf.get_data_info(i) for leaf in found for i in range(len(leaf))])


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Checks the training and validation data before the first step; `default_hooks = dict(data_check=None)`: off.

    One process looks for all, however many machines there are: they are taken to share the data's folder.
    """

    def before_run(self, runner) -> None:
        """Look at the data."""
        if not hasattr(runner._train_loop, "dataloader"):  # a test
            return
        message = [None]
        if is_main_process():
            try:
                for loop in (runner.train_loop, runner.val_loop):
                    if loop is not None:
                        check_dataset(loop.dataloader.dataset, runner.logger.info)
            except Exception as error:  # whatever it is, the other processes are waiting
                message = [str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"]
        if get_world_size() > 1:  # a cold disk may take longer than NCCL waits
            dist.broadcast_object_list(message, group=dist.new_group(backend="gloo", timeout=timedelta(hours=12)))
        if message[0]:
            raise DataError(message[0])
