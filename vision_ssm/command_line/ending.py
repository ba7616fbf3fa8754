"""How a command ends: with a status, and with one line where something went wrong."""

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable

from ..errors import InputError, printable

__all__ = ["CommandError", "printable", "run_command"]

_TRACEBACK = "VISION_SSM_TRACEBACK"
# Optional dependencies by the extra that brings them.
_EXTRAS = {
    "rich": "cli",
    "matplotlib": "demo",
    "sklearn": "demo",
    "nibabel": "medical",
    "monai": "medical",
    "mmengine": "openmmlab",
    "mmcv": "openmmlab",
    "mmseg": "openmmlab",
    "mmdet": "openmmlab",
}


class CommandError(InputError):
    """Bad input of a command, told in one line."""


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command; whatever goes wrong is one line on stderr and a status.

    Args:
        program: what the line begins with, before "error:".
        command: does the work and returns its status.

    Returns:
        The command's status; 2 for bad input and for what the system refuses (a file, memory, a full disk); 70 for an
        error in this package, whose traceback VISION_SSM_TRACEBACK=1 shows; 130 when interrupted; 141 where the reader
        of the output went away.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # nor one that a log cannot hold a reason for a traceback
    begin = f"{program}: " if program else ""
    try:
        try:
            status = command()
        except SystemExit:  # of argparse, after its help
            _flush()
            raise
        _flush()
        return status
    except BrokenPipeError:
        _discard_output()
        return 141
    except KeyboardInterrupt:
        _tell(f"{begin}interrupted")
        return 130
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            _tell(traceback.format_exc())
        message = _bad_input(error)
        if message is None:
            what = " ".join(f"{type(error).__name__}: {error}".splitlines())
            _tell(
                f"{begin}internal error: {printable(what)}: this is a fault of Vision SSM, please report it; "
                f"{_TRACEBACK}=1 shows where it happened"
            )
        else:
            _tell(f"{begin}error: {printable(' '.join(message.splitlines()))}")
        _discard_if_unwritable()
        return 70 if message is None else 2


def _bad_input(error: Exception) -> str | None:
    """The sentence for what the user gave or the system refused; None for an error of this package."""
    if isinstance(error, InputError):
        return str(error) or type(error).__name__
    if isinstance(error, ImportError) and not (error.name or "").startswith("vision_ssm"):
        return _missing(error)
    if isinstance(error, OSError):
        return _refused(error)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        around = error.object[max(error.start - 30, 0) : error.end + 30]
        return f"a name is no UTF-8, as a text file needs it: rename the file or folder at {printable(around)!r}"
    what = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in what or type(error).__name__ == "OutOfMemoryError":
        return f"there is not enough memory: {what.splitlines()[0] if what else 'ask for less at a time'}"
    return None


def _missing(error: ImportError) -> str:
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    cure = f": install vision-ssm[{extra}]" if extra and "vision-ssm[" not in str(error) else ""
    return f"{error}{cure}"


def _refused(error: OSError) -> str:
    """What the system says of a file; errors of networks and of full disks name none."""
    reason = error.strerror or str(error) or type(error).__name__
    if "Traceback" in reason:  # of a process that loads data, as text
        reason = re.sub(r"^\w+: (\[Errno \d+\] )?", "", reason.rstrip().splitlines()[-1])
    names = (name for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    return ": ".join([*(printable(os.fsdecode(name)) for name in names), reason])


def _flush() -> None:
    """Write what is printed: a full disk or a closed pipe shows only then."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard_output()
            raise CommandError(f"the output cannot be written: {error.strerror}") from error


def _discard_output() -> None:
    """Let Python end without a second attempt to write what nobody takes."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed already, or no file of the system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _discard_if_unwritable() -> None:
    try:
        _flush()
    except (BrokenPipeError, CommandError):
        _discard_output()


def _tell(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # there may be nobody to tell
        print(line, file=sys.stderr, flush=True)
