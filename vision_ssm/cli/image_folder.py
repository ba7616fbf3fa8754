"""A folder with one sub-folder of images a class, and files that say which class is which."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from timm.utils.misc import natural_key
from torch.utils.data import Dataset

from ..command_line import CommandError
from ..pictures import PictureError, is_picture, read_image

__all__ = ["ImageFolder", "class_names"]

_SHOWN = 5


def class_names(path: Path, num_classes: int) -> list[str]:
    """Names of a model's classes in their order, from a text file with one a line or a JSON object of indices by name.

    Raises:
        CommandError: it is neither, has a name twice, or an index that the model does not have.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} cannot be read as names of classes: {error}") from error
    if isinstance(content, dict):
        indices = list(content.values())
        if not all(isinstance(one, int) for one in indices) or sorted(indices) != list(range(len(indices))):
            raise CommandError(f"{path} has other values than the indices 0 to {len(indices) - 1}, each of them once")
        content = sorted(content, key=content.get)
    if not isinstance(content, list) or not all(isinstance(one, str) for one in content):
        raise CommandError(f"{path} holds no names: expected a list, or an object of indices by name")
    if len(content) > num_classes:
        raise CommandError(f"{path} has {len(content)} labels, the model {num_classes} classes")
    return content


class ImageFolder(Dataset):
    """Images of sub-folders, each of which is a class with all that lies below it.

    Args:
        folder: of the sub-folders. Hidden files and folders do not count.
        names: sub-folders in the order of the classes, more or less than there are. By default they are sorted as
            people count: "class2" before "class10".

    Attributes:
        classes: index of each sub-folder's class, in the order of the folders.
        files: path and class of each image.
        notes: what a user should know: files that are no images, folders without one, an order that others sort
            otherwise.
        transform: from a Pillow image to what a sample is.

    Raises:
        CommandError: there are no images, images outside of sub-folders, or folders that `names` does not have.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None):
        inside = sorted((one for one in folder.iterdir() if not one.name.startswith(".")), key=_by_number)
        folders = [one for one in inside if one.is_dir()]
        if any(is_picture(one) for one in inside if not one.is_dir()):
            raise CommandError(f"{folder} has images outside of sub-folders: expected one sub-folder a class")
        self.transform: Callable | None = None
        self.classes = _indices(folder, [one.name for one in folders], names)
        found = {one.name: _files(one) for one in folders}
        self.files = [(path, self.classes[name]) for name, paths in found.items() for path in paths if is_picture(path)]
        if not self.files:
            raise CommandError(f"no images in sub-folders of {folder}")
        others = [path for paths in found.values() for path in paths if not is_picture(path)]
        self.notes = [*_left_out(others), *_empty(folder, {name: len(paths) for name, paths in found.items()})]
        if names is None and list(self.classes) != sorted(self.classes):
            self.notes.append(
                f"the classes are the folders of {folder} in natural order ({', '.join(list(self.classes)[:3])}, ...); "
                "a model trained with them in alphabetical order needs --class-map"
            )

    def keep(self, count: int) -> None:
        """Keep some of the images, spread evenly."""
        count = min(count, len(self.files))
        self.files = [self.files[i * len(self.files) // count] for i in range(count)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """An image and its class; -1 - index for one that cannot be read, since errors of workers lose their class."""
        path, target = self.files[index]
        try:
            image = read_image(path)
        except PictureError:
            image, target = Image.new("RGB", (1, 1)), -1 - index
        return self.transform(image), target


def _by_number(path: Path) -> list:
    return natural_key(path.name)


def _files(folder: Path) -> list[Path]:
    """All files below a folder that are not hidden; a link to nothing is one too."""
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: natural_key(str(path)))


def _indices(folder: Path, folders: list[str], names: Sequence[str] | None) -> dict[str, int]:
    if names is None:
        return {name: i for i, name in enumerate(folders)}
    known = {name: i for i, name in enumerate(names)}
    if len(known) != len(names):
        double = next(name for name, count in Counter(names).items() if count > 1)
        raise CommandError(f"the class map has {double!r} twice: expected each folder once")
    if unknown := [name for name in folders if name not in known]:
        raise CommandError(f"the class map has no {unknown[0]!r}, a folder of {folder}")
    return {name: known[name] for name in folders}


def _left_out(others: list[Path]) -> list[str]:
    if not others:
        return []
    kinds = Counter(path.suffix.lower() or "no suffix" for path in others).most_common(_SHOWN)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds)
    return [f"{len(others)} files are left out, whose suffixes are none of images ({shown}), such as {others[0]}"]


def _empty(folder: Path, counts: dict[str, int]) -> list[str]:
    empty = [name for name, count in counts.items() if not count]
    return [f"{len(empty)} folders of {folder} are empty, such as {empty[0]}: they are classes"] if empty else []
