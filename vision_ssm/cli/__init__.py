"""The command line: `vision-ssm COMMAND ...`.

A command is a module with `NAME`, `HELP`, `add_arguments(parser)` and `run(args) -> exit status`.
"""

import argparse
import importlib
from collections.abc import Sequence
from typing import NoReturn

from ..command_line import CommandError, run_command

__all__ = ["main"]

_COMMANDS = (
    "list_models",
    "info",
    "predict",
    "convert",
    "evaluate",
    "train",
    "test",
    "train_digits",
    "nnunet_plans",
    "benchmark",
)


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments as every other bad input is: in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = _Parser(
        prog="vision-ssm",
        description="The zoo of vision state-space models: what is in it, and what it does with images.",
        epilog="example: vision-ssm list 'vmamba_*'",
    )
    parser.add_argument("--version", action="version", version=f"vision-ssm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        command = importlib.import_module(f"{__name__}.{name}")
        subparser = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps an example of several lines as it is
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status of `run_command`: 0, 2 for bad input, 70 for a fault of the package."""

    def command() -> int:
        args = _parser().parse_args(argv)
        return args.run(args)

    return run_command("vision-ssm", command)
