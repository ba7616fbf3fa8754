"""Files that a command reads and writes, looked at before any work is done for them."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..files import written_over
from .ending import CommandError, printable

__all__ = ["check_input", "check_output", "check_weights_file", "make_folder"]


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a device or a socket"


def check_input(file: Path, what: str) -> Path:
    """`file`, if it is a regular file or a link to one: a pipe or a device may never end.

    Args:
        file: where it is.
        what: it is, "image", for the message.

    Raises:
        CommandError: there is none, or it is something else.
    """
    name = printable(file)
    try:
        mode = os.stat(file).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if file.is_symlink():
            raise CommandError(f"no {what} at {name}: it is a link to {printable(os.readlink(file))}") from error
        raise CommandError(f"no {what} at {name}") from error
    except OSError as error:
        raise CommandError(f"no {what} at {name}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise CommandError(f"no {what} at {name}, which is {_kind(mode)}: expected a file")
    return file


def check_weights_file(source: str) -> None:
    """Refuse a checkpoint that is not there before models and data are made ready for it; addresses are left alone.

    Raises:
        CommandError: as `check_input`.
    """
    if "://" not in source:
        check_input(Path(source), "checkpoint")


def check_output(file: Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse a result file that could not be written, or that would replace what is read.

    Args:
        file: to write.
        inputs: files that are read, and folders of such.

    Raises:
        CommandError: it is no place for a file, or an input.
    """
    name, folder = printable(file), file.parent
    try:
        if file.is_dir():
            raise CommandError(f"{name} is a folder: expected the name of a file")
        if not folder.is_dir():
            raise CommandError(f"no folder {printable(folder)} to write {printable(file.name)} to")
        if file.exists() and not file.is_file():  # replacing /dev/null would be worse than an error
            raise CommandError(f"{name} is {_kind(file.stat().st_mode)}: expected the name of a file")
    except OSError as error:
        raise CommandError(f"{name} cannot be written: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{name} cannot be written: the folder {printable(folder)} is read-only")
    if problem := written_over([file], _files(file, inputs)):
        raise CommandError(problem)


def _files(output: Path, inputs: Iterable[str | Path | None]) -> Iterator[Path]:
    """The files among inputs, and the output itself if it lies in a folder of such: but JSON, an earlier result."""
    for given in inputs:
        if given is None or "://" in str(given):
            continue
        if not os.path.isdir(given):
            yield Path(given)
        elif Path(os.path.realpath(given)) in Path(os.path.realpath(output)).parents and output.suffix != ".json":
            yield output


def make_folder(folder: Path) -> None:
    """Make a folder for results, if it is not there, and see that it can be written to.

    Raises:
        CommandError: it cannot be made, is a file, or is read-only.
    """
    name = printable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise CommandError(f"{name} cannot be a folder for results: {reason}") from error
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{name} is read-only: expected a folder for results")
