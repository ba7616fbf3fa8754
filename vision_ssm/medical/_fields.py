"""Fields of a plans file, which anybody may have written: each is of its kind, or an error that names it."""

from collections.abc import Mapping, Sequence

from ..errors import printable

__all__ = ["entries", "mapping", "numbers", "per_axis", "whole"]

_LARGEST = 65536  # channels, voxels a side: anything above is a slip


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _refuse(name: str, value: object, expected: str) -> None:
    raise ValueError(f"{name} is {printable(repr(value), 60)}: expected {expected}")


def mapping(value: object, name: str) -> Mapping:
    """`value`, if it has keys, all of them text.

    Raises:
        ValueError: it has none; so do all functions here.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        _refuse(name, value, "keys with their values")
    return value


def whole(value: object, name: str, least: int = 1) -> int:
    """`value`, if it is a whole number of a sensible size."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        _refuse(name, value, f"a whole number from {least} to {_LARGEST}")
    return value


def entries(value: object, name: str, count: int | None = None) -> Sequence:
    """`value`, if it is a list with an entry for each stage: `count`, or 1 to 64."""
    if not _is_list(value) or not (0 < len(value) <= 64 if count is None else len(value) == count):
        stages = "stage" if count is None else f"of {count} stages"
        _refuse(name, value, f"a list, an entry for each {stages}")
    return value


def numbers(value: object, name: str, least: int = 1, most: int = 64) -> tuple[int, ...]:
    """A list of whole numbers, neither empty nor longer than `most`."""
    if not _is_list(value) or not 0 < len(value) <= most:
        _refuse(name, value, f"a list of 1 to {most} whole numbers")
    return tuple(whole(one, f"{name}[{i}]", least) for i, one in enumerate(value))


def per_axis(value: object, name: str, dims: int | None = None) -> int | tuple[int, ...]:
    """A whole number for all axes, or one for each."""
    if not _is_list(value):
        return whole(value, name)
    if dims is not None and len(value) != dims:
        _refuse(name, value, f"{dims} whole numbers")
    return numbers(value, name, most=3)
