"""Files that are never seen half written."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["remove_unfinished", "write_atomically", "write_json"]


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


def write_json(path: str | Path, content: object) -> Path:
    """`content` as indented JSON."""
    return write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))
