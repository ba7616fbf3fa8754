"""MONAI's transforms in configs: `dict(type="Spacingd", keys=["image"], pixdim=(1.5, 1.5, 2.0))`."""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from monai import transforms as monai_transforms
from monai.transforms import Compose, LoadImaged, MapTransform, Transform
from monai.utils import convert_to_dst_type

from ..engine import ConfigError
from .reader import FileReader

__all__ = ["IDS", "CheckImaged", "MapLabelsd", "build_transforms", "mapped_labels"]

IDS = 1 << 16  # that label files may hold where a map follows: 0 and on
_READERS = (None, "NibabelReader", "PILReader")  # what `FileReader` stands in for
_BETWEEN = ("linear", "bilinear", "bicubic", "trilinear", "area")  # modes that make values between two ids
# Steps after which a voxel cannot be found in its file: MONAI notes turns, crops and resampling in the affine, but none
# of these.
_NO_WAY_BACK = (
    "AsChannelLastd", "CuCIMd", "CutMixd", "FromMetaTensord", "GridDistortiond", "GridPatchd", "GridSplitd", "Lambdad",
    "MixUpd", "Rand2DElasticd", "Rand3DElasticd", "RandCuCIMd", "RandGridDistortiond", "RandGridPatchd",
    "RandLambdad", "RandSmoothDeformd", "RandTorchIOd", "RandTorchVisiond", "SplitDimd", "SqueezeDimd", "ToCupyd",
    "ToNumpyd", "ToPILd", "TorchIOd", "TorchVisiond", "Transposed",
)  # fmt: skip


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


def _loaders(keys: str | Sequence[str], reader: str | None = None, **arguments) -> list[Transform]:
    """`LoadImaged` with this package's reader, of images and of label maps by themselves."""
    if reader not in _READERS:
        raise ValueError(f"`reader` is {reader}: leave it out, nibabel and Pillow read all files")
    if strange := [key for key in arguments if key not in inspect.signature(LoadImaged).parameters]:
        raise ValueError(f"it has no argument {', '.join(strange)}")
    keys = [keys] if isinstance(keys, str) else list(keys)
    loaders = []
    for labels in (False, True):
        if some := [key for key in keys if (key == "label") == labels]:
            loader = LoadImaged(some, **arguments)
            loader._loader.readers = [FileReader(labels)]
            loaders.append(loader)
    return loaders


def _build(config: Mapping) -> list[Transform]:
    """The step of a config; two, where it loads images and label maps."""
    arguments = dict(config)
    name = arguments.pop("type", None)
    kind = getattr(monai_transforms, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        known = [key for key, value in vars(monai_transforms).items() if isinstance(value, type)]
        close = difflib.get_close_matches(str(name), known, n=3)
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"no transform {name!r} in monai.transforms{hint}")
    if issubclass(kind, Compose) and "transforms" in arguments:  # OneOf, SomeOf, ...
        arguments["transforms"] = [step for one in arguments["transforms"] for step in _build(one)]
    try:
        return _loaders(**arguments) if issubclass(kind, LoadImaged) else [kind(**arguments)]
    except ConfigError:
        raise
    except Exception as error:  # a transform checks its arguments in its own way, and may need another package
        reason = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(f"transform {name}: {reason[0]}") from error


def _loaded(steps: Sequence[Transform], key: str) -> int:
    """The number of steps after which there is an image or a label map."""
    for number, step in enumerate(steps, 1):
        if isinstance(step, LoadImaged) and key in step.keys:
            return number
    raise ConfigError(f"no LoadImaged of {key!r} among the transforms")


def _flat(steps: Sequence[Transform]) -> Iterator[Transform]:
    """The steps, those inside others (`OneOf`, ...) too."""
    for step in steps:
        if isinstance(step, Compose):
            yield from _flat(step.transforms)
        else:
            yield step


def _between(mode: object) -> bool:
    """Whether an interpolation gives values between those of two voxels; its spline order or its name."""
    mode = str(getattr(mode, "value", mode)).lower()
    return mode in _BETWEEN or (mode.isdecimal() and int(mode) > 0)


def _check_labels_stay_ids(step: Transform) -> None:
    """Refuse what interpolates label maps: between two ids lies the id of another class."""
    keys, modes = tuple(getattr(step, "keys", ())), getattr(step, "mode", None)
    if "label" not in keys:
        return
    name = type(step).__name__
    if name == "RandSimulateLowResolutiond":
        raise ConfigError(f"transform {name} blurs the label map: its `keys` are those of images")
    modes = [modes] * len(keys) if isinstance(modes, (str, int)) or modes is None else list(modes)
    if len(modes) == len(keys) and _between(mode := modes[keys.index("label")]):
        good = ["nearest" if key == "label" else "bilinear" for key in keys]
        raise ConfigError(
            f"transform {name} interpolates the label map (mode {getattr(mode, 'value', mode)}), which makes ids that "
            f"nobody drew: give it mode={good}, for {', '.join(keys)}"
        )


def _check_way_back(step: Transform) -> None:
    """Refuse what predictions cannot be brought back through to the grid of the file."""
    if (name := type(step).__name__) in _NO_WAY_BACK:
        raise ConfigError(
            f"transform {name} leaves no trace in the affine, so predictions cannot be brought back to the file: "
            "in tests leave it out (MONAI's Orientationd, Spacingd, Flipd, Rotate90d, Resized, crops and pads can be)"
        )


def build_transforms(
    configs: Sequence[Mapping], label_map: Mapping[int, int] | None = None, test_mode: bool = False
) -> Compose:
    """A pipeline of MONAI's transforms.

    Args:
        configs: for each its class in `monai.transforms` as `type`, and its arguments.
        label_map: replaces the ids of "label" as soon as it is loaded (see `MapLabelsd`).
        test_mode: look at every "image" as soon as it is loaded (see `CheckImaged`), and refuse steps that predictions
            cannot be brought back through.

    Raises:
        ConfigError: no such transform (close names are given), arguments that it does not take, or one that
            interpolates label maps.
    """
    steps = [step for config in configs for step in _build(config)]
    for step in _flat(steps):
        _check_labels_stay_ids(step)
        if test_mode:
            _check_way_back(step)
    if label_map:
        steps.insert(_loaded(steps, "label"), MapLabelsd(["label"], label_map))
    if test_mode:
        steps.insert(_loaded(steps, "image"), CheckImaged(["image"]))
    return Compose(steps)


def mapped_labels(ids: np.ndarray, label_map: Mapping[int, int] | None) -> np.ndarray:
    """Ids of a label file as ids of the classes."""
    if not label_map:
        return ids
    return MapLabelsd(["label"], label_map).map(torch.from_numpy(ids.astype(np.int64))).numpy()
