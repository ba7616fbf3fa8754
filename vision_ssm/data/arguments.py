"""What the command lines `tools/prepare_*.py` have in common: arguments, their checks, progress."""

import argparse
import sys
from pathlib import Path

from ..command_line import CommandError, Parser, check_output, location, threads
from ..files import written_over
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


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace, root: Path, *inputs: str | Path) -> None:
    """End with the parser's message where a file cannot be written.

    Args:
        parser, args: of the command.
        root: the set's folder, whose sub-folders hold what is read: nothing in them is written over.
        inputs: other files that are read.
    """
    files = [file for file in (args.json, getattr(args, "output", None)) if file]
    if len({file.resolve() for file in files}) < len(files):
        parser.error(f"--json and --output are both {files[0]}: expected two files")
    try:
        for file in files:
            check_output(file)
    except CommandError as error:
        parser.error(str(error))
    for file in files:
        if file.suffix != ".json":
            parser.error(f"{file} is to be a JSON file: expected a name that ends in .json")
    held = (path for folder in root.glob("*/") for path in folder.rglob("*"))
    if problem := written_over(files, (path for group in (inputs, held) for path in group)):
        parser.error(problem)


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
