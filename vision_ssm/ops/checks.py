"""Argument checks of the operators: a sentence that names the argument, before any kernel runs."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["OUT_OF_RANGE", "check", "check_entries", "check_tables", "named"]

OUT_OF_RANGE = "`tables` holds a token that is out of range: entries are -1 (none) or a token of the grid"


@contextlib.contextmanager
def named(names: dict[str, str]) -> Iterator[None]:
    """Errors raised inside name the caller's arguments: {name here: name there}."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        for here, there in names.items():
            text = text.replace(f"`{here}`", f"`{there}`")
        raise type(error)(text) from None


def _shape(name: str, x: Tensor, expected: tuple, meaning: str) -> None:
    if tuple(x.shape) != expected:
        raise ValueError(f"`{name}` is {tuple(x.shape)}: expected {meaning} = {expected}")


def check_tables(tables: Tensor, paths: int, device: torch.device) -> None:
    """Shape, dtype and device of token tables; their entries are checked where they are built and by the kernels."""
    if tables.dtype != torch.int32:
        raise TypeError(f"`tables` is {tables.dtype}: expected torch.int32")
    if tables.dim() != 3 or tables.shape[:2] != (2, paths) or tables.shape[2] == 0:
        raise ValueError(f"`tables` is {tuple(tables.shape)}: expected (2, paths, steps) with {paths} paths")
    if not tables.is_contiguous():
        raise ValueError("`tables` is not contiguous")
    if tables.device != device:
        raise ValueError(f"`tables` is on {tables.device}: expected {device}, the device of `u`")


def _check_tensors(named: dict[str, Tensor | None], device: torch.device) -> None:
    for name, x in named.items():
        if x is None:
            continue
        if not x.is_floating_point():
            hint = " (complex A is not supported)" if x.is_complex() else ""
            raise TypeError(f"`{name}` is {x.dtype}: expected a floating-point tensor{hint}")
        if x.device != device:
            raise ValueError(f"`{name}` is on {x.device}: expected {device}, the device of `u`")


def _check_sizes(u: Tensor, A: Tensor) -> None:
    if u.dim() != 4:
        raise ValueError(f"`u` is {tuple(u.shape)}: expected (batch, paths or 1, tokens, channels)")
    if A.dim() != 3:
        raise ValueError(f"`A` is {tuple(A.shape)}: expected (paths, channels, d_state)")
    if u.shape[2] == 0:
        raise ValueError("`u` has length 0: expected at least one token")
    if 0 in A.shape:
        raise ValueError(f"`A` is {tuple(A.shape)}: expected at least one channel and one state")
    if u.shape[1] not in (1, A.shape[0]):
        raise ValueError(f"`u` has {u.shape[1]} sequences: expected 1 or {A.shape[0]}, the number of paths")


def _check_step_sizes(dt: Tensor, dt_weight: Tensor | None, batch: int, paths: int, tokens: int, channels: int) -> None:
    if dt_weight is None:
        _shape("dt", dt, (batch, paths, tokens, channels), "(batch, paths, tokens, channels)")
        return
    if dt.dim() != 4 or dt.shape[3] == 0:
        raise ValueError(f"`dt` is {tuple(dt.shape)}: expected (batch, paths, tokens, rank)")
    rank = dt.shape[3]
    _shape("dt", dt, (batch, paths, tokens, rank), "(batch, paths, tokens, rank)")
    _shape("dt_weight", dt_weight, (paths, channels, rank), "(paths, channels, rank)")


def check(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens: int, merge: bool) -> None:
    """Checks the arguments of the operator `vision_ssm::selective_scan`, under the names of `scan_tokens`.

    Raises:
        ValueError: a shape or device that does not fit, or a length of zero.
        TypeError: a dtype that is not floating point (int32 for tables).
    """
    named = {"u": u, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias, "dt_weight": dt_weight}
    _check_tensors(named, u.device)
    _check_sizes(u, A)
    batch, _, tokens, channels = u.shape
    paths, _, d_state = A.shape
    _shape("A", A, (paths, channels, d_state), "(paths, channels, d_state)")
    _check_step_sizes(dt, dt_weight, batch, paths, tokens, channels)
    if B.dim() != 5:
        raise ValueError(f"`B` is {tuple(B.shape)}: expected (batch, paths, tokens, groups, d_state)")
    groups = B.shape[3]
    if groups == 0 or channels % groups:
        raise ValueError(f"`B` has {groups} groups: expected a divisor of {channels}, the number of channels")
    for name, x in (("B", B), ("C", C)):
        _shape(name, x, (batch, paths, tokens, groups, d_state), "(batch, paths, tokens, groups, d_state)")
    for name, x in (("D", D), ("dt_bias", dt_bias)):
        if x is not None:
            _shape(name, x, (paths, channels), "(paths, channels)")
    if out_tokens <= 0:
        raise ValueError(f"`out_tokens` is {out_tokens}: expected at least one token")
    if tables is not None:
        check_tables(tables, paths, u.device)
    elif out_tokens != tokens:
        raise ValueError(f"`out_tokens` is {out_tokens}: expected {tokens}, the input's, without `tables`")
    if z is not None:
        outputs = 1 if merge or (z.dim() == 4 and z.shape[1] == 1) else paths
        _shape("z", z, (batch, outputs, out_tokens, channels), "(batch, paths or 1, out_tokens, channels)")


def check_entries(tables: Tensor | None, *tokens: int) -> None:
    """Entries of token tables, for the plain backends; the kernels check theirs."""
    if tables is not None and tables.device.type == "cpu":
        for row, limit in zip(tables, tokens, strict=False):
            if row.min() < -1 or row.max() >= limit:
                raise ValueError(OUT_OF_RANGE)
