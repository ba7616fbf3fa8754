"""Folders that one process writes to."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["held"]

_LOCK = "run.lock"
_held: set[Path] = set()  # by this process, which the system's locks do not keep from itself


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
