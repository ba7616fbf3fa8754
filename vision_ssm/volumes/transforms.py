"""MONAI's transforms in configs: `dict(type="Spacingd", keys=["image"], pixdim=(1.5, 1.5, 2.0))`."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai import transforms as monai_transforms
from monai.transforms import Compose, LoadImaged, MapTransform, Transform
from monai.utils import convert_to_dst_type

from ..engine import ConfigError

__all__ = ["IDS", "CheckImaged", "MapLabelsd", "build_transforms", "mapped_labels"]

IDS = 1 << 16  # that label files may hold where a map follows: 0 and on


class MapLabelsd(MapTransform):
    """Class ids of a label map replaced: ids without an entry become background.

    Args:
        keys: of the label maps, of ids 0 to 65535.
        label_map: id in the files to id of the class.
    """

    def __init__(self, keys: Sequence[str], label_map: Mapping[int, int]):
        super().__init__(keys)
        self.label_map = {int(old): int(new) for old, new in label_map.items()}
        size = max(self.label_map) + 1
        self.table = torch.zeros(size + 1, dtype=torch.int64)  # the last entry is for ids beyond
        for old, new in self.label_map.items():
            self.table[old] = new

    def __call__(self, data: Mapping) -> dict:
        """Map the labels; the tensors keep their geometry."""
        out = dict(data)
        for key in self.keys:
            ids = out[key]
            out[key] = convert_to_dst_type(self.map(ids.as_tensor()), ids)[0]
        return out

    def map(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids of the classes, int64."""
        return self.table[ids.long().clamp(0, len(self.table) - 1)]


class CheckImaged(MapTransform):
    """Refuses images with voxels that are not finite, before a step clips or crops them."""

    def __call__(self, data: Mapping) -> dict:
        """Look at the images; they stay what they are.

        Raises:
            ValueError: there are such voxels.
        """
        for key in self.keys:
            if count := int((~torch.isfinite(data[key].as_tensor())).sum()):
                raise ValueError(f"{count} voxels are not finite")
        return dict(data)


def _build(config: Mapping) -> Transform:
    arguments = dict(config)
    name = arguments.pop("type", None)
    kind = getattr(monai_transforms, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        known = [key for key, value in vars(monai_transforms).items() if isinstance(value, type)]
        close = difflib.get_close_matches(str(name), known, n=3)
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"no transform {name!r} in monai.transforms{hint}")
    if issubclass(kind, Compose) and "transforms" in arguments:  # OneOf, SomeOf, ...
        arguments["transforms"] = [_build(one) for one in arguments["transforms"]]
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"transform {name}: {error}") from error


def _loaded(steps: Sequence[Transform], key: str) -> int:
    """The number of steps after which there is an image or a label map."""
    for number, step in enumerate(steps, 1):
        if isinstance(step, LoadImaged) and key in step.keys:
            return number
    raise ConfigError(f"no LoadImaged of {key!r} among the transforms")


def build_transforms(
    configs: Sequence[Mapping], label_map: Mapping[int, int] | None = None, check_images: bool = False
) -> Compose:
    """A pipeline of MONAI's transforms.

    Args:
        configs: for each its class in `monai.transforms` as `type`, and its arguments.
        label_map: replaces the ids of "label" as soon as it is loaded (see `MapLabelsd`).
        check_images: look at every "image" as soon as it is loaded (see `CheckImaged`).

    Raises:
        ConfigError: no such transform (close names are given), or arguments that it does not take.
    """
    steps = [_build(config) for config in configs]
    if label_map:
        steps.insert(_loaded(steps, "label"), MapLabelsd(["label"], label_map))
    if check_images:
        steps.insert(_loaded(steps, "image"), CheckImaged(["image"]))
    return Compose(steps)


def mapped_labels(ids: np.ndarray, label_map: Mapping[int, int] | None) -> np.ndarray:
    """Ids of a label file as ids of the classes."""
    if not label_map:
        return ids
    return MapLabelsd(["label"], label_map).map(torch.from_numpy(ids.astype(np.int64))).numpy()
