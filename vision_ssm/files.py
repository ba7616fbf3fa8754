"""Files that are never seen half written."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["json_text", "remove_unfinished", "write_atomically", "write_json"]


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it there in one step; returns `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # the suffix tells writers the format
    try:
        write(temporary)
        with open(temporary, "rb+") as file:  # on disk before the name points to it, even if the power fails
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def remove_unfinished(folder: str | Path, suffix: str) -> None:
    """Remove what `write_atomically` left in a folder of files with a suffix when its process was killed."""
    for path in Path(folder).glob(f".*-*{suffix}"):
        if re.match(r"\.\d+-", path.name):
            path.unlink(missing_ok=True)


def json_text(content: object) -> str:
    """`content` as indented JSON. NaN and infinities, which JSON does not have, are null."""
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def _finite(content: object) -> object:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: str | Path, content: object) -> Path:
    """`content` as `json_text`."""
    return write_atomically(path, lambda file: file.write_text(json_text(content) + "\n", encoding="utf-8"))
