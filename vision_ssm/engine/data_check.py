"""Every image and annotation of a data set, looked at before a training that would meet a bad one hours later."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch.distributed as dist
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import BaseLoop

from ..errors import InputError
from .checked import Notice, checked_once, file_stamp
from .coco_check import annotation_findings, image_ids
from .order import DataError, Seeded
from .picture_check import LabelRule, Sample, label_findings, left_out_pictures, picture_problem

__all__ = [
    "DataCheckHook",
    "check_dataset",
    "check_evaluator",
    "check_samples",
    "checked_once",
    "dataset_faults",
    "file_stamp",
    "leaves",
    "metric_configs",
    "naming_annotations",
]

_SHOWN = 5
Log = Callable[[str], object]


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


def check_dataset(dataset, log: Log | None = None, warn: Log | None = None) -> None:
    """Decode every image and label map of a data set, in threads; what was found good is not read again.

    Args:
        dataset: of MMSegmentation, MMDetection, or any with their `get_data_info`, also inside wrappers; one that has
            a method `check(log)` looks at its files itself. Others are not checked, nor are remote files and formats
            that Pillow does not know.
        log: called with a line before the work starts.
        warn: called with what stops nothing but is worth a warning: classes that never occur, annotations that
            MMDetection leaves out, pictures with another suffix. By default nobody is told.

    Raises:
        DataError: files are missing, do not decode, differ in size from their annotation or have ids outside the
            classes; no pixel or box is left to learn from; or a COCO file contradicts itself, the config's classes or
            their order. The first few are named.
    """
    for leaf in leaves(dataset):
        if hasattr(leaf, "check"):
            leaf.check(log)
        elif hasattr(leaf, "get_data_info") and hasattr(leaf, "metainfo"):
            _check_leaf(leaf, log, warn)


def _name(dataset) -> str:
    prefix = getattr(dataset, "data_prefix", None) or {}
    places = (prefix.get("seg_map_path"), getattr(dataset, "ann_file", None), getattr(dataset, "data_root", None))
    return next((place for place in places if isinstance(place, str) and place), type(dataset).__name__)


def _coco_file(dataset) -> str | None:
    """The local COCO file of a data set that reads one."""
    path = getattr(dataset, "ann_file", "")
    is_coco = isinstance(path, str) and path.endswith(".json") and hasattr(dataset, "cat_ids")
    return path if is_coco and os.path.isfile(path) else None


def _wants_masks(dataset) -> bool:
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", ())
    return any(getattr(step, "with_mask", False) for step in steps)


def _least_side(dataset) -> int:
    filters = getattr(dataset, "filter_cfg", None) or {}
    return 0 if getattr(dataset, "test_mode", False) else filters.get("min_size", 0)


def _check_leaf(dataset, log: Log | None, warn: Log | None) -> None:
    classes = dataset.metainfo.get("classes")
    if isinstance(classes, str):
        raise DataError(
            f"the classes of {_name(dataset)} are the text {classes!r}: expected a tuple, as ({classes!r},)"
        )
    if not len(dataset):
        raise DataError(f"{getattr(dataset, 'data_root', type(dataset).__name__)} holds no sample")
    content, coco = _Content(dataset), _coco_file(dataset)
    rule = LabelRule.of(dataset) if content.maps else None
    options = dict(classes=classes, masks=_wants_masks(dataset), least_side=_least_side(dataset))
    left_out, learns = list(left_out_pictures(dataset)), not getattr(dataset, "test_mode", False)
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        stamps = [rule.stamp() if rule else "", repr((options, learns, sorted(map(str, content.labels)))), *left_out]
        if coco:
            stamps += [file_stamp(coco), repr(dataset.cat_ids)]
        stamps += pool.map(Sample.fingerprint, [*content.pictures, *content.maps], chunksize=256)

        def problems() -> list[str]:
            if log:
                log(f"checking {len(content.pictures)} images and their annotations, once")
            lines = list(left_out)
            if coco:
                lines += annotation_findings(coco, category_ids=dataset.cat_ids, **options)
            if classes and content.has_boxes and learns and not (coco and lines):
                lines += _box_findings(content, tuple(classes), _name(dataset))
            wrong = dict(zip(content.pictures, pool.map(picture_problem, content.pictures), strict=True))
            lines += filter(None, wrong.values())
            good = [one for one in content.maps if not wrong.get(one._replace(labels=None))]
            return lines + (list(label_findings(good, rule, _name(dataset), pool)) if rule else [])

        checked_once(stamps, problems, warn)


class _Content:
    """What a data set holds, gathered in one pass: all of it at once may be more than the memory takes.

    Attributes:
        pictures: every picture, and for detection sets the label maps beside them, whose values have other meanings.
        maps: every label map of a segmentation set, with its picture.
        has_boxes: whether it is a detection set.
        labels: of the boxes that are not ignored.
    """

    def __init__(self, dataset):
        pictures, maps = {}, {}
        self.has_boxes, self.labels = False, set()
        for info in _infos(dataset):
            if "instances" in info:
                self.has_boxes = True
                self.labels |= {one.get("bbox_label") for one in info["instances"] if not one.get("ignore_flag")}
            image, labels = info.get("img_path"), info.get("seg_map_path")
            if not isinstance(image, str):
                continue
            sample = Sample(image, labels, info.get("width"), info.get("height"))
            pictures[sample._replace(labels=None)] = None
            if labels and "instances" in info:
                pictures[sample._replace(image=labels, labels=None)] = None
            elif labels:
                maps[sample] = None
        self.pictures, self.maps = list(pictures), list(maps)


def _box_findings(content: _Content, classes: tuple[str, ...], where: str) -> Iterator[str]:
    """Classes without a box in a detection set of any format, as its own filters have left it."""
    if not content.labels:
        yield f"{where}: no box is left to learn from: do its names differ from the classes {list(classes[:_SHOWN])}?"
    elif unused := [name for i, name in enumerate(classes) if i not in content.labels]:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        yield Notice(f"{where}: no box has the class {', '.join(map(repr, unused[:_SHOWN]))}{more}")


def dataset_faults(config) -> str | None:
    """Why a data set could not be built: what is wrong with the files that its config names."""
    found = [line for leaf in _leaf_configs(config) for line in _file_findings(leaf) if not isinstance(line, Notice)]
    return "; ".join(list(dict.fromkeys(found))[:_SHOWN]) or None


def _leaf_configs(config) -> Iterator[Mapping]:
    if isinstance(config, (list, tuple)):
        for one in config:
            yield from _leaf_configs(one)
    elif isinstance(config, Mapping) and ("datasets" in config or "dataset" in config):
        yield from _leaf_configs(config.get("datasets", config.get("dataset")))
    elif isinstance(config, Mapping) and "type" in config:
        yield config


def _file_findings(config: Mapping) -> Iterator[str]:
    try:
        dataset = DATASETS.build({**config, "lazy_init": True, "pipeline": []})  # nothing is read
    except Exception:  # the arguments are wrong, which is another error
        return
    path = getattr(dataset, "ann_file", "")
    if hasattr(dataset, "COCOAPI") and isinstance(path, str) and os.path.isfile(path):
        masks = any(isinstance(step, Mapping) and step.get("with_mask") for step in config.get("pipeline", ()))
        classes = dataset.metainfo.get("classes")
        yield from annotation_findings(path, classes, masks=masks, least_side=_least_side(dataset))
    else:
        yield from left_out_pictures(dataset)


@contextlib.contextmanager
def naming_annotations(evaluator) -> Iterator[None]:
    """Turn whatever goes wrong where metrics are built into what is wrong with the COCO files that the config names.

    Raises:
        DataError: there is something wrong with one; otherwise the error stays.
    """
    try:
        yield
    except Exception as error:
        files = (metric["ann_file"] for metric in _coco_metrics(evaluator))
        lines = [line for path in files for line in annotation_findings(path) if not isinstance(line, Notice)]
        if lines:
            raise DataError("; ".join(lines[:_SHOWN])) from error
        raise


def metric_configs(evaluator) -> Iterator[Mapping]:
    """The metrics of a config's evaluator, which is one, a list, or MMDetection's of several data sets."""
    if isinstance(evaluator, Mapping):
        evaluator = evaluator.get("metrics", [evaluator])
    for one in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if isinstance(one, Mapping) and "metrics" not in one:
            yield one


def _coco_metrics(evaluator) -> Iterator[Mapping]:
    """The metrics of a config that read a COCO file, which is there."""
    for metric in metric_configs(evaluator):
        path = metric.get("ann_file")
        if isinstance(path, str) and path.endswith(".json") and os.path.isfile(path):
            yield metric


def check_evaluator(evaluator, dataset, warn: Log | None = None) -> None:
    """Look through the COCO files of a config's metrics.

    Args:
        evaluator: the config's entry: a metric, or several.
        dataset: what they measure, built; its classes and images are compared with the file's.
        warn: see `check_dataset`.

    Raises:
        DataError: a file cannot be measured on, or is not of these images.
    """
    metrics = list(_coco_metrics(evaluator))
    if not metrics:
        return
    measured = {
        info.get("img_id") for leaf in leaves(dataset) if hasattr(leaf, "get_data_info") for info in _infos(leaf)
    }
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    for metric in metrics:
        path, kinds = metric["ann_file"], metric.get("metric", "bbox")
        options = dict(
            classes=None if metric.get("sort_categories") else classes,  # then the file's order does not count
            masks="segm" in ([kinds] if isinstance(kinds, str) else kinds),
            measured=not metric.get("format_only", False),
        )

        def problems(path=path, options=options) -> list[str]:
            found = list(annotation_findings(path, **options))
            if all(isinstance(one, Notice) for one in found):
                found += _image_findings(path, image_ids(path), measured)
            return found

        checked_once([file_stamp(path), repr(options), repr(sorted(map(str, measured)))], problems, warn)


def _infos(dataset) -> Iterator[dict]:
    return (dataset.get_data_info(i) for i in range(len(dataset)))


def _image_findings(path: str, ids: set, measured: set) -> Iterator[str]:
    """Images that a metric's file and the data set do not share."""
    if unknown := measured - ids:
        yield f"{path}, which a metric reads, has none of the image {min(map(str, unknown))} and {len(unknown)} in all"
    elif missing := ids - measured:
        yield Notice(
            f"{path}, which a metric reads, has {len(missing)} images that are not tested and count as missed, "
            f"such as {min(map(str, missing))}"
        )


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
            check([info for leaf in found for info in _infos(leaf)])


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Checks the data before the first step, or before a test; `default_hooks = dict(data_check=None)`: off.

    One process looks for all, however many machines there are: they are taken to share the data's folder. Data sets
    that look at their files themselves do so before a training; a test of theirs meets each when its turn comes.
    """

    def before_run(self, runner) -> None:
        """Look at the data."""
        message = [None]
        if is_main_process():
            try:
                self._look(runner)
            except Exception as error:  # whatever it is, the other processes are waiting
                message = [str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"]
        if get_world_size() > 1:  # a cold disk may take longer than NCCL waits
            dist.broadcast_object_list(message, group=dist.new_group(backend="gloo", timeout=timedelta(hours=12)))
        if message[0]:
            raise DataError(message[0])

    @staticmethod
    def _look(runner) -> None:
        told = set()

        def warn(line: str) -> None:
            if line not in told:  # a validation's data set and its metric say the same
                told.add(line)
                runner.logger.warning(line)

        for part, loop in (("train", runner._train_loop), ("val", runner._val_loop), ("test", runner._test_loop)):
            if not isinstance(loop, BaseLoop):
                continue
            dataset = loop.dataloader.dataset
            for leaf in leaves(dataset):
                if part != "test" or not hasattr(leaf, "check"):
                    check_dataset(leaf, runner.logger.info, warn)
            if part != "train":
                check_evaluator(runner.cfg.get(f"{part}_evaluator") or (), dataset, warn)
