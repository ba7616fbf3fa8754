"""What `train` and `test` share: launchers, changes to the config."""

import argparse
import ast

from ..command_line import CommandError, location

__all__ = ["add_shared_arguments"]


def _value(text: str):
    """A value as MMEngine reads it: a Python literal, or text; "a,b" and "[a,b]" are lists of such."""
    words = {"true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
        return list(value) if isinstance(value, tuple) and not text.startswith("(") else value
    except (ValueError, SyntaxError):
        pass
    if text[:1] + text[-1:] in ("[]", "()"):
        parts = [_value(part.strip()) for part in text[1:-1].split(",")]
        return tuple(parts) if text[0] == "(" else parts
    return [_value(part.strip()) for part in text.split(",")] if "," in text else text


class _Options(argparse.Action):
    """`key=value` pairs."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for pair in values:
            key, equals, text = pair.partition("=")
            if not equals or not key:
                raise CommandError(f"--cfg-options {pair}: expected key=value")
            try:
                options[key] = _value(text)
            except (RecursionError, MemoryError) as error:
                raise CommandError(f"--cfg-options {key}: the value is nested too deep") from error
        setattr(namespace, self.dest, options)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of both commands."""
    parser.add_argument(
        "--work-dir", type=location, metavar="DIR", help="logs and checkpoints (default: runs/<name of the config>)"
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
