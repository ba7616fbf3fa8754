"""What `train` and `test` share: launchers, changes to the config, errors in one line."""

import argparse
import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from .console import CommandError

__all__ = ["add_shared_arguments", "running"]


class _Options(argparse.Action):
    """`key=value` pairs; a value is a Python literal, or the text that it is."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for pair in values:
            key, equals, text = pair.partition("=")
            if not equals or not key:
                raise CommandError(f"--cfg-options {pair}: expected key=value")
            try:
                options[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                words = {"true": True, "false": False, "none": None}
                options[key] = words.get(text.lower(), text)
        setattr(namespace, self.dest, options)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of both commands."""
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="logs and checkpoints (default: runs/<name of the config>)"
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="who starts the processes: nobody, torchrun, srun",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=_Options, metavar="KEY=VALUE", help="changes: train_dataloader.batch_size=8"
    )
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)


@contextmanager
def running() -> Iterator[ModuleType]:
    """The engine; its errors on bad input are the command's.

    Raises:
        CommandError: an extra is missing, or the input is bad.
    """
    try:
        from .. import engine
        from ..checkpoints import CheckpointError
    except ImportError as error:
        raise CommandError(str(error)) from error
    bad_input = (FileNotFoundError, CheckpointError, engine.ConfigError, engine.DataError)
    try:
        yield engine
    except bad_input as error:
        # An error from a loader's process comes with that process's traceback; the last line is the message.
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        message = lines[-1].rpartition("DataError: ")[2] if isinstance(error, engine.DataError) else " ".join(lines)
        raise CommandError(message) from error
