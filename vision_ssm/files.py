"""Files that are never seen half written, and folders that one process writes to."""

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["held", "remove_unfinished", "write_atomically", "write_json"]

_LOCK = "run.lock"
_held: set[Path] = set()  # by this process, which the system's locks do not keep from itself


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


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Keep a folder for this process. The system lets go of it when the process ends, however it ends.

    On file systems without locks, other processes are not seen.

    Raises:
        BlockingIOError: another process has it; the message has the folder and the process.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / _LOCK
    if path in _held:
        raise BlockingIOError(f"{folder} is in use by another run of this process")
    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                who = ascii(file.read(200).strip())[1:-1] or "another process"
                raise BlockingIOError(f"{folder} is in use by {who}: expected a folder of this run alone") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
