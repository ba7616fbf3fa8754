"""What the commands print and write: tables, JSON, result files. Rich is imported only where it is used."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import CommandError, printable
from ..files import json_text, write_atomically

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "CommandError",
    "close_matches",
    "print_json",
    "print_table",
    "rich_console",
    "warn",
    "write",
]

_PIPE_WIDTH = 160


def warn(message: str) -> None:
    """Tell the user of something that does not stop the command."""
    print(f"vision-ssm: warning: {printable(message)}", file=sys.stderr)


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
        made.add_row(*("\n".join(map(printable, cell.split("\n"))) for cell in row))
    if title:  # not the table's own, which would be wrapped to its width
        console.print(printable(title), soft_wrap=True)
    console.print(made)
    console.print()


def print_json(value: Any) -> None:
    """Print `value` as `json_text`."""
    print(json_text(value))


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        write_atomically(path, lambda file: file.write_bytes(content))
    except OSError as error:
        raise CommandError(f"{printable(path)} cannot be written: {error.strerror or error}") from error
