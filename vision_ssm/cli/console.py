"""What the commands share: errors, tables, JSON, result files. Rich is imported only where it is used."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically, written_over

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "CommandError",
    "check_output",
    "close_matches",
    "positive",
    "print_json",
    "print_table",
    "rich_console",
    "warn",
    "write",
]

_PIPE_WIDTH = 160


class CommandError(Exception):
    """Bad input of the user, told in one line: `main` prints it and exits with 2."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


def warn(message: str) -> None:
    """Tell the user of something that does not stop the command."""
    print(f"vision-ssm: warning: {message}", file=sys.stderr)


def positive(text: str) -> int:
    """Argument type: a whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def close_matches(name: str, names: Iterable[str]) -> str:
    """The end of an error message on a name that is none of `names`: those that may have been meant."""
    matches = difflib.get_close_matches(name.lower(), list(names), cutoff=0.4)
    return f"did you mean {' or '.join(matches)}?" if matches else "`vision-ssm list` shows all"


def rich_console(stderr: bool = False) -> Console:
    """A console that prints text as it is: labels and paths are no markup.

    Raises:
        CommandError: rich, an optional dependency, is missing.
    """
    try:
        from rich import console
    except ImportError as error:
        raise CommandError('this command needs rich: pip install "vision-ssm[cli]"') from error
    made = console.Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not made.is_terminal:  # rich takes a pipe for 80 columns, and would break names
        made.width = max(made.width, _PIPE_WIDTH)
    return made


def print_table(
    console: Console, rows: Iterable[Sequence[str]], columns: Sequence[str] = (), title: str | None = None
) -> None:
    """Print rows of text: numbers to the right, and for no columns names beside their values."""
    from rich import box, table

    made = table.Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_header=bool(columns))
    rows = [list(row) for row in rows]
    for i, column in enumerate(columns or ["", ""]):
        number = bool(columns) and all(row[i][:1].isdigit() or row[i] == "-" for row in rows)
        made.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        made.add_row(*row)
    if title:  # not the table's own, which would be wrapped to its width
        console.print(title, soft_wrap=True)
    console.print(made)
    console.print()


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    print(json.dumps(value, indent=2))


def check_output(path: Path, *inputs: str | Path) -> None:
    """Refuse a result file that could not be written, or is one of the inputs, before any work is done for it."""
    if problem := written_over([path], inputs):
        raise CommandError(problem)
    if path.is_dir():
        raise CommandError(f"{path} is a folder: expected the name of a file")
    if not path.parent.is_dir():
        raise CommandError(f"no folder {path.parent} to write {path.name} to")


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        write_atomically(path, lambda file: file.write_bytes(content))
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror or error}") from error
