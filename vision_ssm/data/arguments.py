"""What the command lines `tools/prepare_*.py` have in common: arguments, their checks, progress."""

import argparse
import sys
from pathlib import Path

from ..command_line import CommandError, Parser, check_output, location, threads
from .layout import Progress

__all__ = ["check_arguments", "new_parser", "progress"]


def new_parser(title: str, default: str | None = None, reads: str = "read") -> argparse.ArgumentParser:
    """A parser with `--jobs` and `--json`, and the set's folder as `root` where there is a default.

    Args:
        title: the help's first line.
        default: folder that is checked if none is named.
        reads: what the threads do.
    """
    parser = Parser(description=title)
    if default is not None:
        parser.add_argument(
            "root", nargs="?", type=location, default=Path(default), help=f"the set's folder ({default})"
        )
    parser.add_argument("--jobs", type=threads, help=f"threads that {reads}")
    parser.add_argument("--json", type=location, metavar="FILE", help="write the whole report")
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the parser's message where a file could not be written."""
    for file in (args.json, getattr(args, "output", None)):
        if file:
            try:
                check_output(file)
            except CommandError as error:
                parser.error(str(error))


def progress(verb: str, of: str = "", every: int = 1) -> Progress:
    """Writes "checked 3 of 20 cases" on one line of the terminal.

    Args:
        verb: what has been done, "checked".
        of: to what, "cases".
        every: steps from one number to the next.
    """

    def show(done: int, number: int) -> None:
        if done % every == 0 or done == number:
            line = f"\r{verb} {done:,} of {number:,} {of}".rstrip()
            print(line, end="" if done < number else "\n", file=sys.stderr, flush=True)

    return show
