"""Files that are never seen half written, and never written over what was read."""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["json_text", "remove_unfinished", "write_atomically", "write_json", "written_over"]


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it there in one step; returns `path`.

    Raises:
        OSError: it cannot be written; it names `path`, also where PyTorch says of a full disk what it expected to find.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # the suffix tells writers the format
    try:
        write(temporary)
        with open(temporary, "rb+") as file:  # on disk before the name points to it, even if the power fails
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except RuntimeError as error:
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "it cannot be written whole: is the disk full?", str(path)) from error
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


def written_over(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> str | None:
    """Says which output is a file that is read, under whatever name: by a link, `..`, or in capitals.

    Args:
        outputs: that are about to be written.
        inputs: looked through only where an output is there already.

    Returns:
        A sentence, or None if no output is an input.
    """
    there = {identity: path for path in outputs for identity in _identities(path)}
    if not there:
        return None
    for path in inputs:
        for identity in _identities(path):
            if identity in there:
                same = "" if os.path.abspath(path) == os.path.abspath(there[identity]) else f" ({path})"
                return f"{there[identity]} would be written over, which is read{same}: choose another place"
    return None


def _identities(path: str | Path) -> Iterator[tuple[int, int]]:
    """Device and number of a regular file, if there is one; of the file that a link leads to."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return
    if stat.S_ISREG(found.st_mode):
        yield found.st_dev, found.st_ino
