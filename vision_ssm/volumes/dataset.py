"""Volumes listed in a decathlon-style JSON file, through MONAI's transforms."""

import difflib
import hashlib
import json
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from mmengine.registry import DATASETS
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.data.utils import pickle_hashing, to_affine_nd
from torch import Tensor

from ..data.layout import Wrong
from ..data.volume_checks import checked_grid, checked_labels
from ..data.volume_files import Grid
from ..engine import ConfigError, DataError
from ..engine.data_check import file_stamp
from .case import Case, label_dtype, prediction_names
from .check import check_volumes, told
from .transforms import IDS, build_transforms, mapped_labels

__all__ = ["VolumeDataset"]

_T = TypeVar("_T")
_VERSION = 2  # of what files are read as: to be raised when that changes


def _content(path: Path) -> object:
    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"no list of volumes {path}" + (": it is no regular file" if path.exists() else ""))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the list of volumes {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON file: {error}") from error


def _listed(data_list: str | Mapping, split: str, root: Path) -> tuple[list[dict], list[str]]:
    """Paths of a split: `image`, one or several for channels, and `label` where there is one; all files of the list."""
    where, content = "`data_list`", data_list
    if isinstance(data_list, str):
        where = root / Path(data_list).expanduser()
        root, content = where.parent, _content(where)
    if not isinstance(content, Mapping) or not isinstance(content.get(split), list):
        found = [key for key, value in content.items() if isinstance(value, list)] if hasattr(content, "items") else []
        raise DataError(f"{where} has no list {split!r}" + (f", only {', '.join(found)}" if found else ""))
    if not content[split]:
        raise DataError(f"{where}: its list {split!r} is empty")
    items = [_item(entry, f"{where}, {split!r}, entry {i}", root) for i, entry in enumerate(content[split])]
    files = [str(where)] if isinstance(data_list, str) else []
    for name, entries in content.items():
        if name != split and isinstance(entries, list):
            with suppress(DataError):  # something else than a split
                files += [path for entry in entries for path in _paths(_item(entry, name, root))]
    return items, [path for item in items for path in _paths(item)] + files


def _item(entry, where: str, root: Path) -> dict:
    entry = {"image": entry} if isinstance(entry, str) else entry
    image = entry.get("image") if isinstance(entry, dict) else None
    images = [image] if isinstance(image, str) else image
    if not images or not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise DataError(f"{where}: expected an `image` (a path, or one for each channel) and a `label`")
    paths = [str(root / Path(one).expanduser()) for one in images]
    item = {"image": paths if isinstance(image, list) else paths[0]}
    if "label" in entry:
        if not isinstance(entry["label"], str) or not entry["label"]:
            raise DataError(f"{where}: its `label` is {entry['label']!r}, expected a path, or no `label` at all")
        item["label"] = str(root / Path(entry["label"]).expanduser())
    elif close := difflib.get_close_matches("label", [key for key in entry if key != "image"], n=1):
        raise DataError(f"{where}: expected a `label`, found {close[0]!r}")
    return item


@DATASETS.register_module()
class VolumeDataset(torch.utils.data.Dataset):
    """Volumes (or pictures) and their label maps.

    For training a sample is `image` (channels, *size), float32, and `label` (1, *size), int64, as the transforms leave
    them; where a transform makes several crops, both have an axis of crops before these. For tests it is `image`
    (1, channels, *size) and its `case`; the transforms see "image" alone, and the truth stays on the file's grid.

    What is random in the transforms follows from NumPy's generator when a sample is drawn, which the engine seeds by
    the sample's position in the run.

    Args:
        data_root: folder of the set.
        data_list: JSON file in `data_root`, with paths relative to the file's own folder; or what such a file holds,
            with paths relative to `data_root`: lists of `{"image": path, "label": path}` by split. For several
            channels in several files `image` is a list.
        split: "training", "validation", "test" or whatever the list has.
        transforms: of MONAI, by class name and arguments (see `build_transforms`), over "image" and "label".
        classes: names, the background's first.
        label_map: ids in the files (0 to 65535) to ids of classes. 0 stays background; any other id that the files
            hold needs an entry, `{5: 0}` if it is to become background.
        test_mode: whole volumes, for evaluation.
        cache_rate: fraction of the volumes that is kept in memory as it is before the first random transform; for
            each process of a run.
        cache_dir: folder that all volumes are kept in instead, for more than memory holds.
        cache_workers: threads that fill the memory.
        ignore_label: id in the label files (1 to 65535, of no class) of voxels that neither losses nor metrics count.
            In samples of training they are -1.

    Raises:
        DataError: the list is missing, is no such list, or has no such split.
        ConfigError: transforms or `label_map` cannot be used.
    """

    def __init__(
        self,
        data_root: str,
        data_list: str | Mapping,
        split: str,
        transforms: Sequence[Mapping],
        classes: Sequence[str],
        label_map: Mapping[int, int] | None = None,
        test_mode: bool = False,
        cache_rate: float = 0.0,
        cache_dir: str | None = None,
        cache_workers: int = 4,
        ignore_label: int | None = None,
    ):
        self.data_root, self.split, self.test_mode = Path(data_root).expanduser(), split, test_mode
        self.metainfo = dict(classes=tuple(classes))
        self.label_map = _label_map(label_map or {}, len(classes), ignore_label)
        if test_mode and (cache_rate or cache_dir):
            raise ConfigError("`cache_rate` and `cache_dir` are for training: in tests each volume is read once")
        if not 0 <= cache_rate <= 1:
            raise ConfigError(f"`cache_rate` is {cache_rate}: expected a fraction from 0 to 1")
        self.transform = build_transforms(transforms, None if test_mode else self.label_map, test_mode)
        self.items, self._files = _listed(data_list, split, self.data_root)
        self.predictions = prediction_names([_images(item)[0] for item in self.items])
        if not test_mode and (without := [item["image"] for item in self.items if "label" not in item]):
            raise DataError(f"{self.data_root}, {split!r}: {without[0]} has no `label` to train with")
        self.cache_rate, self.cache_workers, self.cached = cache_rate, cache_workers, False
        inputs = [{"image": item["image"]} if test_mode else item for item in self.items]
        if cache_dir is None:
            self.source = Dataset(inputs, self.transform)
        else:
            self.source = self._on_disk(inputs, Path(cache_dir).expanduser(), transforms)

    def _on_disk(self, inputs: list[dict], folder: Path, transforms: Sequence[Mapping]) -> PersistentDataset:
        """Another folder for other transforms or ids; another file when one of the data changes."""
        known = [_VERSION, [dict(one) for one in transforms], sorted(self.label_map.items())]
        recipe = hashlib.sha256(repr(known).encode())
        inputs = [item | {"stamp": " ".join(map(file_stamp, _paths(item)))} for item in inputs]
        return PersistentDataset(inputs, self.transform, folder / recipe.hexdigest()[:16], hash_func=pickle_hashing)

    def full_init(self) -> None:
        """Nothing: MMEngine's wrappers (repeated, concatenated) ask for the list, which was read at the start."""

    def fill_cache(self) -> None:
        """Put what `cache_rate` says into memory; before workers start, which then share it.

        Raises:
            DataError: a volume cannot be loaded or transformed.
        """
        if self.cached or not self.cache_rate or isinstance(self.source, PersistentDataset):
            return
        try:
            self.source = CacheDataset(
                self.source.data,
                self.transform,
                cache_rate=self.cache_rate,
                num_workers=self.cache_workers,
                progress=False,
            )
        except RuntimeError:
            for index in range(len(self)):  # one after the other, until the one that fails is named
                self[index]
            raise
        self.cached = True

    def __len__(self) -> int:
        return len(self.items)

    def get_data_info(self, index: int) -> dict:
        """The files of a sample, `img_path` and `seg_map_path`, and the name of its `prediction`."""
        item = self.items[index]
        images = ", ".join(_images(item))
        return dict(img_path=images, seg_map_path=item.get("label"), prediction=self.predictions[index])

    def input_files(self) -> list[str]:
        """All files that the list names, those of other splits too, and the list itself."""
        return self._files

    def __getitem__(self, index: int) -> dict:
        self.transform.set_random_state(seed=int(np.random.randint(1 << 32, dtype=np.uint64)))
        if self.test_mode:
            return self._whole(index)
        data = self._transformed(index)
        if not isinstance(data, list):
            return self._sample(data, index)
        crops = [self._sample(crop, index) for crop in data]
        return {key: torch.stack([crop[key] for crop in crops]) for key in crops[0]}

    def _sample(self, data: dict, index: int) -> dict:
        image = _plain(data["image"]).float()
        return dict(image=image, label=self._ids(_plain(data["label"]), image, index))

    def _ids(self, label: Tensor, image: Tensor, index: int) -> Tensor:
        """A label map after the transforms, int64, which any of them may have spoilt."""
        ids, classes = label.long(), len(self.metainfo["classes"])
        if label.shape != (1, *image.shape[1:]):
            what = f"the shape {tuple(label.shape)}, its image {tuple(image.shape)}"
        elif not torch.equal(ids.to(label.dtype), label):
            what = "values that are no whole numbers"
        elif ids.numel() and not min([0, *self.label_map.values()]) <= ids.min() <= ids.max() < classes:
            what = f"ids from {ids.min()} to {ids.max()}, for {classes} classes"
        else:
            return ids
        raise DataError(f"{self.items[index]['label']}: after the transforms it has {what}: is one of them for images?")

    def _transformed(self, index: int) -> dict | list[dict]:
        try:
            return self.source[index]
        except (RuntimeError, EOFError) as error:  # MONAI's, around the one that says what is wrong
            if isinstance(self.source, PersistentDataset) and _drop_cut_files(self.source.cache_dir):
                return self._transformed(index)
            info = self.get_data_info(index)
            names = info["img_path"] if self.test_mode else f"{info['img_path']} with {info['seg_map_path']}"
            raise DataError(f"{names}: {_reason(error)}") from error

    def _whole(self, index: int) -> dict:
        """A volume of a test; the engine looks at files before a training alone, so that this one is looked at here."""
        item = self.items[index]
        images = _images(item)
        grids = [_sound(*checked_grid(path)) for path in images]
        data = self._transformed(index)
        image = data["image"] if isinstance(data, Mapping) else None
        if not isinstance(image, MetaTensor) or image.ndim - 1 != len(grids[0].shape):
            raise ConfigError("`transforms` of a test: expected steps that keep an image one, its axes and its affine")
        original = image.meta["original_affine"]
        truth, ignored = self._truth(item["label"], grids[0]) if "label" in item else (None, None)
        case = Case(
            image=images[0],
            affine=torch.as_tensor(to_affine_nd(3, image.affine), dtype=torch.float64),
            original_affine=torch.as_tensor(to_affine_nd(3, original), dtype=torch.float64),
            original_shape=tuple(int(n) for n in image.meta["spatial_shape"]),
            truth=truth,
            ignored=ignored,
            prediction=self.predictions[index],
        )
        return dict(image=_plain(image).float()[None], case=case)

    def _truth(self, label: str, image: Grid) -> tuple[Tensor, Tensor | None]:
        """Ids of the classes of a label map that fits its image, and what is ignored of it."""
        found = _sound(*checked_labels(label, image, self._allowed()))
        ids = torch.from_numpy(mapped_labels(found, self.label_map).astype(np.int64))
        ignored = ids < 0
        truth = ids.clamp_(0).to(label_dtype(len(self.metainfo["classes"])))
        return truth, ignored if ignored.any() else None

    def _allowed(self) -> Collection[int]:
        """Ids that label files may hold."""
        return {0, *self.label_map} if self.label_map else range(len(self.metainfo["classes"]))

    def check(self, log: Callable[[str], object] | None = None) -> None:
        """Look at every file, once (see `check_volumes`); of a test, take the first volume through the transforms.

        Raises:
            DataError: files are not as they should be; they are named.
            ConfigError: the transforms of a test lose an image's geometry.
        """
        check_volumes(self.items, self._allowed(), () if self.test_mode else self.transform.transforms, log)
        if self.test_mode:  # now, and not after hours of training
            self._whole(0)


def _label_map(label_map: Mapping[int, int], classes: int, ignore_label: int | None) -> dict[int, int]:
    """Ids in files to ids of classes, and to -1 what is ignored; empty if they are the same."""
    found = {int(old): int(new) for old, new in label_map.items()}
    if beyond := sorted(new for new in found.values() if not 0 <= new < classes):
        raise ConfigError(f"`label_map` leads to {beyond}, beyond the {classes} classes")
    if beyond := sorted(old for old in found if not 0 <= old < IDS):
        raise ConfigError(f"`label_map` has {beyond}: ids in files are 0 to {IDS - 1}")
    if ignore_label is None:
        return found
    found = found or {i: i for i in range(classes)}
    if ignore_label in found or not 0 < ignore_label < IDS:
        raise ConfigError(f"`ignore_label` is {ignore_label}: expected an id up to {IDS - 1} that is of no class")
    return found | {int(ignore_label): -1}


def _images(item: dict) -> list[str]:
    return [item["image"]] if isinstance(item["image"], str) else item["image"]


def _paths(item: dict) -> list[str]:
    return [*_images(item), *([item["label"]] if "label" in item else [])]


def _drop_cut_files(folder: Path) -> list[Path]:
    """Remove what a kill cut: MONAI moves files into the folder, from another file system by copying."""
    cut = [path for path in folder.glob("*.pt") if not zipfile.is_zipfile(path)]  # an archive ends with its contents
    for path in cut:
        path.unlink(missing_ok=True)
    return cut


def _sound(found: _T, wrong: list[Wrong]) -> _T:
    """What a file holds, unless something is wrong with it."""
    if wrong:
        raise DataError("; ".join(map(told, wrong)))
    return found


def _plain(value: Tensor) -> Tensor:
    return value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)


def _reason(error: BaseException) -> str:
    """What went wrong in a transform, which MONAI wraps in others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
