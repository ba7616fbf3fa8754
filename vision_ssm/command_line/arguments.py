"""Types of arguments: what is outside their range is refused before anything is done with it."""

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .ending import printable

__all__ = ["Parser", "location", "nonempty", "number", "threads", "whole"]

_LARGEST = 2**31 - 1


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments as every other bad input is: in one line, without the usage; the status is 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)} (see {self.prog} --help)\n")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 50 else f"{text[:47]!r}..."


def whole(least: int = 1, most: int = _LARGEST) -> Callable[[str], int]:
    """Argument type: a whole number in a range, its ends included."""
    expected = f"a whole number from {least}" + (f" to {most}" if most != _LARGEST else "")

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {_shown(text)}")
        return int(text)

    return read


def number(above: float = 0.0, most: float = math.inf, least: float | None = None) -> Callable[[str], float]:
    """Argument type: a finite number above one (or from `least` on), up to another."""
    expected = f"a number above {above:g}" if least is None else f"a number from {least:g}"
    expected += f" to {most:g}" if most < math.inf else ""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        low_enough = value > above if least is None else value >= least
        if not (math.isfinite(value) and low_enough and value <= most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {_shown(text)}")
        return value

    return read


def threads(text: str) -> int:
    """Argument type: a number of threads or processes, up to a few for each CPU of this machine."""
    return whole(1, max(64, 4 * (os.cpu_count() or 1)))(text)


def nonempty(value: str) -> str:
    """Argument type: any text but none, which an unset variable of a shell gives."""
    if not value:
        raise argparse.ArgumentTypeError("expected a value, got an empty text (is a variable of the shell unset?)")
    if "\0" in value:  # no name of a file or of anything else has it
        raise argparse.ArgumentTypeError(f"expected no zero byte, got {_shown(value)}")
    return value


def location(value: str) -> Path:
    """Argument type: the path of a file or folder, which need not exist."""
    return Path(nonempty(value))
