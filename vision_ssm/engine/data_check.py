"""Every image and annotation of a data set, looked at before a training that would meet a bad one hours later."""

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from ..files import write_json
from .order import DataError, Seeded

__all__ = ["DataCheckHook", "check_dataset"]

_VERSION = 1  # of the checks: to be raised when they find more
_SHOWN = 5


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vision_ssm" / "checked"


def _image_problem(path: str, width: int | None, height: int | None) -> str | None:
    """What is wrong with an image file; decoded at a fraction of its resolution where the format allows."""
    try:
        with Image.open(path) as image:
            size = image.size
            image.draft("RGB", (max(size[0] // 8, 1), max(size[1] // 8, 1)))
            image.load()
    except FileNotFoundError:
        return f"{path} is missing"
    except Exception as error:
        return f"{path} does not decode: {error}"
    if width is not None and height is not None and size != (width, height):
        return f"{path} is {size[0]}x{size[1]} pixels, its annotation says {width}x{height}"
    return None


def _map_problem(path: str, image: str, allowed: np.ndarray) -> str | None:
    """What is wrong with a label map; `allowed` (256,) says which ids it may hold."""
    try:
        with Image.open(path) as labels:
            ids = np.asarray(labels)
        with Image.open(image) as picture:
            size = picture.size
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except Exception as error:
        return f"{path} does not decode: {error}"
    if ids.ndim != 2:
        return f"{path} has {ids.shape[-1]} channels: expected one, of class ids"
    if ids.shape != size[::-1]:
        return f"{path} is {ids.shape[1]}x{ids.shape[0]} pixels, its image {image} {size[0]}x{size[1]}"
    if ids.max(initial=0) > 255 or not allowed[ids].all():
        found = sorted(set(np.unique(ids).tolist()) - set(np.flatnonzero(allowed).tolist()))
        return f"{path} has ids outside the {int(allowed[:255].sum())} classes: {found[:_SHOWN]}"
    return None


def _problem(info: dict, allowed: np.ndarray | None) -> str | None:
    if "img_path" not in info:
        return None
    problem = _image_problem(info["img_path"], info.get("width"), info.get("height"))
    if problem is None and info.get("seg_map_path") and allowed is not None:
        problem = _map_problem(info["seg_map_path"], info["img_path"], allowed)
    return problem


def _allowed_ids(dataset) -> np.ndarray | None:
    """Which ids a segmentation data set's label maps may hold: its classes and what is ignored."""
    classes = dataset.metainfo.get("classes")
    if classes is None or getattr(dataset, "label_map", None) is not None:
        return None
    allowed = np.zeros(256, dtype=bool)
    allowed[: len(classes) + bool(getattr(dataset, "reduce_zero_label", False))] = True
    allowed[getattr(dataset, "ignore_index", 255)] = allowed[255] = True
    return allowed


def _stamp(infos: list[dict], allowed: np.ndarray | None) -> Path:
    """The file that says that exactly these files were found good."""
    digest = hashlib.sha256(repr((_VERSION, None if allowed is None else allowed.tobytes())).encode())
    for info in infos:
        for path in (info.get("img_path"), info.get("seg_map_path")):
            if path and os.path.exists(path):
                stat = os.stat(path)
                digest.update(f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return _cache() / f"{digest.hexdigest()}.json"


def check_dataset(dataset, log=None) -> None:
    """Decode every image and label map of a data set, in threads; one that was found good is not read again.

    Args:
        dataset: of MMSegmentation, MMDetection, or any with their `get_data_info`; others are not checked.
        log: called with a line before the work starts.

    Raises:
        DataError: files are missing, do not decode, differ in size from their annotation or have ids outside the
            classes; the first few are named.
    """
    dataset = dataset.dataset if isinstance(dataset, Seeded) else dataset
    if not hasattr(dataset, "get_data_info") or not hasattr(dataset, "metainfo"):
        return
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    if not infos:
        raise DataError(f"{getattr(dataset, 'data_root', type(dataset).__name__)} holds no sample")
    allowed = _allowed_ids(dataset)
    stamp = _stamp(infos, allowed)
    if stamp.is_file():
        return
    if log:
        log(f"checking {len(infos)} images and their annotations, once")
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        problems = [p for p in pool.map(lambda info: _problem(info, allowed), infos) if p]
    if problems:
        more = f" (and {len(problems) - _SHOWN} more files)" if len(problems) > _SHOWN else ""
        raise DataError("; ".join(problems[:_SHOWN]) + more)
    with contextlib.suppress(OSError):  # no cache folder: the next run checks again
        write_json(stamp, dict(samples=len(infos), first=str(infos[0].get("img_path"))))


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Checks the training and validation data before the first step; `default_hooks = dict(data_check=None)`: off."""

    def before_run(self, runner) -> None:
        """Look at the data, in the first process for all."""
        if not hasattr(runner._train_loop, "dataloader"):  # a test
            return
        message = [None]
        if is_main_process():
            try:
                for loop in (runner.train_loop, runner.val_loop):
                    if loop is not None:
                        check_dataset(loop.dataloader.dataset, runner.logger.info)
            except DataError as error:
                message = [str(error)]
        broadcast_object_list(message)
        if message[0]:
            raise DataError(message[0])
