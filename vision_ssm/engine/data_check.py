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

from .checked import Notice, checked_once, file_stamp
from .coco_check import annotation_findings, image_ids
from .order import DataError, Seeded
from .picture_check import LabelRule, Sample, label_findings, left_out_pictures, picture_problem, samples

__all__ = [
    "DataCheckHook",
    "check_dataset",
    "check_evaluator",
    "check_samples",
    "checked_once",
    "dataset_faults",
    "file_stamp",
    "leaves",
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
    infos = list(_infos(dataset))
    found, rule, coco = samples(infos), LabelRule.of(dataset), _coco_file(dataset)
    options = dict(classes=classes, masks=_wants_masks(dataset), least_side=_least_side(dataset))
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        stamps = [rule.stamp(), repr(options)]
        if coco:
            stamps += [file_stamp(coco), repr(dataset.cat_ids)]
        stamps += pool.map(Sample.fingerprint, found, chunksize=256)

        def problems() -> list[str]:
            if log:
                log(f"checking {len(found)} images and their annotations, once")
            lines = list(left_out_pictures(dataset))
            if coco:
                lines += annotation_findings(coco, category_ids=dataset.cat_ids, **options)
            elif classes and not getattr(dataset, "test_mode", False):
                lines += _object_findings(infos, tuple(classes), _name(dataset))
            problem = dict(zip(found, pool.map(picture_problem, found), strict=True))
            lines += filter(None, problem.values())
            good = [sample for sample in found if problem[sample] is None]
            return lines + list(label_findings(good, rule, _name(dataset), pool))

        checked_once(stamps, problems, warn)


def _object_findings(infos: list[dict], classes: tuple[str, ...], where: str) -> Iterator[str]:
    """Classes without a box in a detection set, of any format, as its own filters have left it."""
    if not any("instances" in info for info in infos):
        return
    boxes = [one for info in infos for one in info.get("instances", ()) if not one.get("ignore_flag")]
    labels = {one.get("bbox_label") for one in boxes}
    if not boxes:
        yield f"{where}: no box is left to learn from: do its names differ from the classes {list(classes[:_SHOWN])}?"
    elif unused := [name for i, name in enumerate(classes) if i not in labels]:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        yield Notice(f"{where}: no box has the class {', '.join(map(repr, unused[:_SHOWN]))}{more}")


def dataset_faults(config) -> str | None:
    """Why a data set could not be built: what is wrong with the files that its config names."""
    found = [line for leaf in _leaf_configs(config) for line in _file_findings(leaf) if not isinstance(line, Notice)]
    return "; ".join(found[:_SHOWN]) or None


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
        files = (path for _, path, _ in _coco_metrics(evaluator))
        lines = [line for path in files for line in annotation_findings(path) if not isinstance(line, Notice)]
        if lines:
            raise DataError("; ".join(lines[:_SHOWN])) from error
        raise


def _coco_metrics(evaluator) -> Iterator[tuple[bool, str, bool]]:
    """(whether masks count, COCO file, whether anything is measured) of the metrics of a config."""
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        path = metric.get("ann_file") if isinstance(metric, Mapping) else None
        if isinstance(path, str) and path.endswith(".json") and os.path.isfile(path):
            kinds = metric.get("metric", "bbox")
            yield "segm" in ([kinds] if isinstance(kinds, str) else kinds), path, not metric.get("format_only", False)


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
    for masks, path, asked in metrics:

        def problems(path=path, masks=masks, asked=asked) -> list[str]:
            found = list(annotation_findings(path, classes, masks=masks, measured=asked))
            if all(isinstance(one, Notice) for one in found):
                found += _image_findings(path, image_ids(path), measured)
            return found

        checked_once(
            [file_stamp(path), repr((classes, masks, asked)), repr(sorted(map(str, measured)))], problems, warn
        )


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
                message = [str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"]
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
