"""Configs in YAML and JSON are data: nothing that they name is imported or called while they are read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from mmengine.fileio import JsonHandler, YamlHandler
from mmengine.fileio.handlers import file_handlers

__all__ = ["reading_data"]

_MOST_TEXT = 4 << 20
_MOST_VALUES = 200_000
_MOST_READ = 100  # MMEngine reads each file twice


class _Loader(yaml.SafeLoader):
    """Plain values, and the tuples that MMEngine writes."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node)))


class _Data:
    """What a file may hold, and on which files it may build.

    Args:
        path: of the first file.
        trusted: folder of the configs that are code and may be built on.
    """

    def __init__(self, path: Path, trusted: Path):
        self._folders, self._trusted, self._read = [path.absolute().parent], trusted.resolve(), 0

    def parsed(self, text: str | bytes, parse) -> dict:
        """The content of a file.

        Raises:
            ValueError: it is too large, no mapping, or asks for code to be run.
        """
        self._read += 1
        if self._read > _MOST_READ:
            raise ValueError("it builds on itself, or on too many files")
        if len(text) > _MOST_TEXT:
            raise ValueError(f"it is longer than {_MOST_TEXT >> 20} MiB: expected a config")
        try:
            content = parse(text)
        except yaml.constructor.ConstructorError as error:
            begin = "a YAML config is data, without tags that make objects: " if "tag" in error.problem else ""
            raise ValueError(f"{begin}{error.problem}, line {error.problem_mark.line + 1}") from error
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise ValueError("expected keys with their values, as `model: ...`")
        _count(content)
        if "custom_imports" in content:
            raise ValueError("`custom_imports` runs code, and this config is data: write it as a .py config")
        bases = content.get("_base_", [])
        for base in bases if isinstance(bases, Sequence) and not isinstance(bases, str) else [bases]:
            self._check_base(base)
        return content

    def _check_base(self, base) -> None:
        if not isinstance(base, str):
            raise ValueError(f"`_base_` is {base!r}: expected names of files")
        _, mark, name = base.rpartition("::")
        if mark and not Path(name).is_absolute() and ".." not in Path(name).parts:  # of an installed package
            return
        found = [folder / base for folder in self._folders]  # MMEngine takes the one beside the file, whichever that is
        places = [path for path in found if path.exists()] or found
        if base.endswith(".py") and any(self._trusted not in path.resolve().parents for path in places):
            raise ValueError(f"`_base_` names {base}, which is code, and this config is data: write it as a .py config")
        self._folders += [path.parent for path in found if path.parent not in self._folders]


def _count(content: dict) -> None:
    """Refuse what grows beyond measure where anchors are followed, as MMEngine does."""
    count, left = 0, [content]
    while left:
        node = left.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES} values")
        if isinstance(node, Mapping):
            left += node.values()
        elif isinstance(node, (list, tuple, set)):
            left += node


class _Yaml(YamlHandler):
    def __init__(self, data: _Data):
        self._data = data

    def load_from_fileobj(self, file, **kwargs) -> dict:
        return self._data.parsed(file.read(), lambda text: yaml.load(text, _Loader))


class _Json(JsonHandler):
    def __init__(self, data: _Data):
        self._data = data

    def load_from_fileobj(self, file) -> dict:
        return self._data.parsed(file.read(), json.loads)


@contextmanager
def reading_data(path: Path, trusted: Path) -> Iterator[None]:
    """Within, MMEngine reads YAML and JSON files as data; its own reader calls what a tag of YAML names.

    Args:
        path: of the config that is read.
        trusted: folder of the .py configs that such a file may build on; of others it may not, since they are code.
    """
    data = _Data(path, trusted)
    ours = dict(yaml=_Yaml(data), yml=_Yaml(data), json=_Json(data))
    before = {name: file_handlers[name] for name in ours}
    file_handlers.update(ours)
    try:
        yield
    finally:
        file_handlers.update(before)
