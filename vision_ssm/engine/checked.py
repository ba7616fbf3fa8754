"""Files that were looked at before and found good are not looked at again."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import write_json
from .order import DataError

__all__ = ["Notice", "checked_once", "file_stamp"]

_VERSION = 4  # of the checks: to be raised when they find more
_SHOWN = 5


class Notice(str):
    """A finding that stops nothing, but is worth a warning."""


def file_stamp(path: str | Path) -> str:
    """Changes when a file does."""
    try:
        stat = os.stat(path)
        return f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}"
    except OSError:
        return f"{path} missing"


def checked_once(
    stamps: Iterable[str], problems: Callable[[], list[str]], warn: Callable[[str], object] | None = None
) -> None:
    """Look for problems unless files in the same state were found good before.

    Args:
        stamps: all that the result depends on (`file_stamp`).
        problems: looks; what it finds of class `Notice` is no problem.
        warn: called with every notice, also with those of an earlier look.

    Raises:
        DataError: there are problems; the first few are told.
    """
    digest = hashlib.sha256(repr(_VERSION).encode())
    for line in stamps:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    stamp = _cache() / f"{digest.hexdigest()}.json"
    notices = _remembered(stamp)
    if notices is None:
        found = problems()
        notices = [one for one in found if isinstance(one, Notice)]
        if wrong := [one for one in found if not isinstance(one, Notice)]:
            more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
            raise DataError("; ".join(wrong[:_SHOWN]) + more)
        with contextlib.suppress(OSError):  # no cache folder: the next run checks again
            write_json(stamp, dict(notices=notices))
    for notice in notices if warn else ():
        warn(notice)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vision_ssm" / "checked"


def _remembered(stamp: Path) -> list[str] | None:
    """Notices of an earlier look that found no problem; None where there was none."""
    try:
        notices = json.loads(stamp.read_text(encoding="utf-8"))["notices"]
        return [str(one) for one in notices]
    except (OSError, ValueError, KeyError, TypeError):
        return None
