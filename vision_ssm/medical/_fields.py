"""Fields of a plans file, which anybody may have written: each is of its kind, or an error that names it."""

from collections.abc import Mapping, Sequence

__all__ = ["mapping", "numbers", "per_axis", "whole"]

_LARGEST = 65536  # channels, voxels a side: anything above is a slip


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _refuse(name: str, value: object, expected: str) -> None:
    shown = repr(value)
    raise ValueError(f"{name} is {shown if len(shown) <= 60 else shown[:57] + '...'}: expected {expected}")


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
