"""The error of checkpoints, and how text that comes from a file is shown in it."""

from collections.abc import Iterable, Mapping

from ..errors import InputError, printable

__all__ = ["CheckpointError", "listed", "shown", "where"]


class CheckpointError(InputError):
    """A file is no checkpoint, or one that does not fit the model; the message names the file or the keys."""


def shown(text: object, length: int = 120) -> str:
    """Text from a file on one line: control characters escaped, what is longer than `length` shortened."""
    return printable(text, length)


def listed(names: Iterable[object]) -> str:
    """The first five of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown(name) for name in names[:5]) + more


def where(source: object) -> str:
    """What a message calls the source of a checkpoint."""
    return "the state dict" if isinstance(source, Mapping) else shown(source, 1000)
