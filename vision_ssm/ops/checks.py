"""Argument checks of the operators: a sentence that names the argument, before any kernel runs.

They run inside the operators themselves, so that TorchScript, exported programs and raw calls pass through them too.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "OUT_OF_RANGE",
    "check",
    "check_backward",
    "check_conv",
    "check_conv_backward",
    "check_entries",
    "kept",
    "named",
]

OUT_OF_RANGE = "`tables` holds a token that is out of range: entries are -1 (none) or a token of the grid"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MOST_TOKENS = 2**31 - 1  # tables hold int32


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


def _check_tables(tables: Tensor, shape: tuple, meaning: str, first: str, device: torch.device) -> None:
    """Shape, dtype and device of token tables; their entries are checked by whoever reads them."""
    if tables.dtype != torch.int32:
        raise TypeError(f"`tables` is {tables.dtype}: expected torch.int32")
    if tables.dim() != len(shape) + 1 or tables.shape[:-1] != shape or tables.shape[-1] == 0:
        raise ValueError(f"`tables` is {tuple(tables.shape)}: expected {meaning}")
    if tables.layout != torch.strided or not tables.is_contiguous():
        raise ValueError("`tables` is not contiguous")
    if tables.device != device:
        raise ValueError(f"`tables` is on {tables.device}: expected {device}, the device of `{first}`")


def _check_tensors(named: dict[str, Tensor | None], device: torch.device) -> None:
    for name, x in named.items():
        if x is None:
            continue
        if x.dtype not in _FLOATS:
            hint = " (complex A is not supported)" if x.is_complex() else ""
            raise TypeError(f"`{name}` is {x.dtype}: expected a floating-point tensor of 16 to 64 bits{hint}")
        if x.device != device:
            first = next(iter(named))
            raise ValueError(f"`{name}` is on {x.device}: expected {device}, the device of `{first}`")
        if x.layout != torch.strided:
            raise TypeError(f"`{name}` has the layout {x.layout}: expected a dense tensor")


def _check_length(name: str, tokens: int) -> None:
    """Of a known length: a program for any would be bound to this range."""
    if isinstance(tokens, int) and not torch.compiler.is_compiling() and tokens > _MOST_TOKENS:
        raise ValueError(f"`{name}` has {tokens} tokens: expected at most {_MOST_TOKENS}")


def _check_sizes(u: Tensor, A: Tensor) -> None:
    if u.dim() != 4:
        raise ValueError(f"`u` is {tuple(u.shape)}: expected (batch, paths or 1, tokens, channels)")
    if A.dim() != 3:
        raise ValueError(f"`A` is {tuple(A.shape)}: expected (paths, channels, d_state)")
    if u.shape[2] == 0:
        raise ValueError("`u` has length 0: expected at least one token")
    if 0 in A.shape:
        raise ValueError(f"`A` is {tuple(A.shape)}: expected at least one path, one channel and one state")
    if u.shape[1] not in (1, A.shape[0]):
        raise ValueError(f"`u` has {u.shape[1]} sequences: expected 1 or {A.shape[0]}, the number of paths")
    _check_length("u", u.shape[2])


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
        _check_length("out_tokens", out_tokens)
        _check_tables(tables, (2, paths), f"(2, paths, steps) with {paths} paths", "u", u.device)
    elif out_tokens != tokens:
        raise ValueError(f"`out_tokens` is {out_tokens}: expected {tokens}, the input's, without `tables`")
    if z is not None:
        outputs = 1 if merge or (z.dim() == 4 and z.shape[1] == 1) else paths
        _shape("z", z, (batch, outputs, out_tokens, channels), "(batch, paths or 1, out_tokens, channels)")


def check_backward(
    dy, d_last_state, u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, states, ungated, merge: bool
) -> None:
    """Checks the arguments of `vision_ssm::selective_scan_backward`; raises as `check` does.

    `states` are looked at by the backend that reads them.
    """
    if dy.dim() != 4:
        raise ValueError(f"`dy` is {tuple(dy.shape)}: expected (batch, paths or 1, out_tokens, channels)")
    check(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, dy.shape[2], merge)
    _check_tensors({"u": u, "dy": dy, "d_last_state": d_last_state, "states": states, "ungated": ungated}, u.device)
    batch, channels = u.shape[0], u.shape[3]
    paths, _, d_state = A.shape
    shape = batch, 1 if merge else paths, dy.shape[2], channels
    _shape("dy", dy, shape, "(batch, paths or 1, out_tokens, channels)")
    if d_last_state is not None:
        _shape("d_last_state", d_last_state, (batch, paths, channels, d_state), "(batch, paths, channels, d_state)")
    if z is not None and ungated.numel() != 0:
        _shape("ungated", ungated, shape, "the shape of `dy`")


def kept(states: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a forward pass of this backend left `states`, which then are of this shape: without a gradient in view
    none are kept, and those of other backends have other dimensions.

    Raises:
        ValueError, TypeError: they are not what it leaves.
    """
    if states.numel() == 0 or states.dim() != len(shape):
        return False
    _shape("states", states, shape, "what the forward pass kept")
    if states.dtype != torch.float32:
        raise TypeError(f"`states` is {states.dtype}: expected torch.float32")
    if not states.is_contiguous():
        raise ValueError("`states` is not contiguous")
    return True


def check_conv(x, weight, bias, tables, mirrored: list[int]) -> None:
    """Checks the arguments of the operator `vision_ssm::causal_conv1d`; raises as `check` does."""
    if x.dim() != 4 or weight.dim() != 3:
        raise ValueError(
            f"`x` is {tuple(x.shape)} and `weight` {tuple(weight.shape)}: "
            "expected (batch, paths or 1, tokens, channels) and (paths, channels, width)"
        )
    _check_tensors({"x": x, "weight": weight, "bias": bias}, x.device)
    paths, channels, width = weight.shape
    if 0 in weight.shape:
        raise ValueError(f"`weight` is {(paths, channels, width)}: expected at least one path, channel and tap")
    if x.shape[3] != channels or x.shape[1] not in (1, paths):
        raise ValueError(f"`x` is {tuple(x.shape)}: expected (batch, 1 or {paths}, tokens, {channels})")
    if x.shape[2] == 0:
        raise ValueError(f"`x` is {tuple(x.shape)}: expected at least one token")
    _check_length("x", x.shape[2])
    if bias is not None and tuple(bias.shape) != (paths, channels):
        raise ValueError(f"`bias` is {tuple(bias.shape)}: expected {(paths, channels)}")
    if len(mirrored) != paths:
        raise ValueError(f"`mirrored` has {len(mirrored)} entries: expected one for each of {paths} paths")
    if tables is not None:
        _check_tables(tables, (paths,), f"a contiguous ({paths}, steps)", "x", x.device)


def check_conv_backward(dy, x, weight, bias, tables, mirrored: list[int]) -> None:
    """Checks the arguments of `vision_ssm::causal_conv1d_backward`; raises as `check` does."""
    check_conv(x, weight, bias, tables, mirrored)
    _check_tensors({"x": x, "dy": dy}, x.device)
    steps = x.shape[2] if tables is None else tables.shape[1]
    shape = x.shape[0], weight.shape[0], steps, weight.shape[1]
    _shape("dy", dy, shape, "(batch, paths, steps, channels)")


def check_entries(tables: Tensor | None, *tokens: int) -> None:
    """Entries of token tables, for the plain backends; the kernels check theirs."""
    if tables is not None and tables.device.type == "cpu":
        for row, limit in zip(tables, tokens, strict=False):
            if row.min() < -1 or row.max() >= limit:
                raise ValueError(OUT_OF_RANGE)
