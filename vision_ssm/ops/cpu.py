"""Binding of the compiled CPU kernels (`kernels/cpu`): loading the library and filling its argument structs.

The library has a plain C interface and links neither Python nor PyTorch; it borrows PyTorch's thread pool through
the C symbol that libtorch exports (2.10 and later) and has a small pool of its own for older versions.
"""

import ctypes
import functools
import importlib.metadata
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from .checks import OUT_OF_RANGE
from .visits import visits

__all__ = ["available", "library"]

_ABI_VERSION = 1
STATES_DIM = 6  # dimensions of the states kept for the backward pass
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_NAMES = {"darwin": "libvision_ssm_cpu.dylib", "win32": "libvision_ssm_cpu.dll"}


def _candidates():
    name = _NAMES.get(sys.platform, "libvision_ssm_cpu.so")
    if path := os.environ.get("VISION_SSM_CPU_LIBRARY"):
        yield Path(path)
    yield Path(__file__).parents[1] / "_native" / name
    try:  # an editable install keeps the compiled file apart from the sources
        files = importlib.metadata.files("vision-ssm") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == name:
            yield Path(file.locate())


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None where they were not built or do not fit this version of the package."""
    for path in _candidates():
        if not path.is_file():
            continue
        try:
            lib = ctypes.CDLL(str(path))
            abi = lib.vssm_abi_version()
        except (OSError, AttributeError):
            continue
        if abi != _ABI_VERSION:
            continue
        lib.vssm_isa.restype = ctypes.c_char_p
        lib.vssm_scan_parts.restype = ctypes.c_int64
        for name in ("scan_forward", "scan_backward", "conv_forward", "conv_backward"):
            function = getattr(lib, f"vssm_{name}")
            function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        lib.torch_threads = _borrow_torch_threads(lib)
        return lib
    return None


def _borrow_torch_threads(lib: ctypes.CDLL) -> bool:
    try:
        torch_library = ctypes.CDLL(str(next(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))))
        lib.vssm_use_torch_threads(torch_library.torch_parallel_for)
    except (OSError, AttributeError, StopIteration):
        return False
    return True


def available() -> bool:
    """Whether the compiled kernels can be used on this machine."""
    return library() is not None


def _call(function: str, args: list[int]) -> None:
    lib = library()
    if not lib.torch_threads:
        lib.vssm_set_threads(ctypes.c_int64(torch.get_num_threads()))
    if getattr(lib, f"vssm_{function}")((ctypes.c_int64 * len(args))(*args)):
        raise ValueError(OUT_OF_RANGE)


_ABSENT = (0,) * 7


# The C struct of a tensor is (address, dtype, strides by batch, path, group, token, last dimension). One function for
# each of the layouts that occur, without loops: they run a dozen times an operator call.
def _tokens(x: Tensor | None, shared: bool = False) -> tuple[int, ...]:
    """(batch, path, token, last); `shared` by all paths."""
    if x is None:
        return _ABSENT
    batch, path, token, last = x.stride()
    return x.data_ptr(), _DTYPES[x.dtype], batch, 0 if shared else path, 0, token, last


def _grouped(x: Tensor) -> tuple[int, ...]:
    """(batch, path, token, group, last)"""
    batch, path, token, group, last = x.stride()
    return x.data_ptr(), _DTYPES[x.dtype], batch, path, group, token, last


def _channels(x: Tensor | None) -> tuple[int, ...]:
    """(path, channel)"""
    if x is None:
        return _ABSENT
    path, channel = x.stride()
    return x.data_ptr(), _DTYPES[x.dtype], 0, path, 0, 0, channel


def _by_channel(x: Tensor | None) -> tuple[int, ...]:
    """(path, channel, state or rank or tap)"""
    if x is None:
        return _ABSENT
    path, channel, inner = x.stride()
    return x.data_ptr(), _DTYPES[x.dtype], 0, path, 0, inner, channel


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def storable(x: Tensor | None) -> Tensor | None:
    """`x` in a dtype that the kernels read (float32 or bfloat16)."""
    return x if x is None or x.dtype in _DTYPES else x.float()


def exact(tables: Tensor | None, tokens: int, row: int) -> bool:
    """Whether each path of `tables[row]` visits all tokens exactly once."""
    return visits(tables, row, tokens).exactly(tokens)


def tile_length(d_state: int) -> int:
    """Steps between saved states: such that a tile's backward scratch stays in the first-level cache."""
    return 64 if d_state <= 4 else 32


def states_shape(batch: int, paths: int, steps: int, groups: int, channels: int, d_state: int) -> tuple[int, ...]:
    """Shape of the states kept for the backward pass, padded to whole vectors."""
    padded = 1 if d_state == 1 else -(-d_state // 4) * 4
    tiles = -(-steps // tile_length(d_state))
    return batch, paths, groups, tiles, padded, -(-channels // groups // 16) * 16


def _scan_args(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, y, softplus, merge, ungated, last_state, states):
    batch, shared, in_tokens, channels = u.shape
    paths, _, d_state = A.shape
    groups = B.shape[3]
    out_tokens = y.shape[2]
    steps = in_tokens if tables is None else tables.shape[2]
    return [
        batch, paths, groups, channels // groups, d_state, 0 if dt_weight is None else dt.shape[-1],
        steps, in_tokens, out_tokens, tile_length(d_state), softplus, merge,
        exact(tables, in_tokens, 0), exact(tables, out_tokens, 1),
        0 if tables is None else tables.data_ptr(),
        0 if tables is None else tables.data_ptr() + tables.stride(0) * 4,
        *_tokens(u, shared == 1),
        *_tokens(dt),
        *_by_channel(A),
        *_grouped(B),
        *_grouped(C),
        *_channels(D),
        *_channels(dt_bias),
        *_by_channel(dt_weight),
        *_tokens(z, z is not None and z.shape[1] == 1),
        *_tokens(y, merge),
        *_tokens(ungated, merge),
        _address(last_state), _address(states),
    ]  # fmt: skip


def scan_forward(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge, save):
    """(y, last_state, states, ungated) of `vision_ssm::selective_scan`; the last two are empty unless `save`."""
    dtype = u.dtype
    u, dt, A, B, C, D, z, dt_bias, dt_weight = map(storable, (u, dt, A, B, C, D, z, dt_bias, dt_weight))
    batch, _, _, channels = u.shape
    paths, _, d_state = A.shape
    steps = u.shape[2] if tables is None else tables.shape[2]
    shape = batch, 1 if merge else paths, out_tokens, channels
    direct = u.dtype == torch.float32 and z is None
    y = (u.new_empty if not direct or exact(tables, out_tokens, 1) else u.new_zeros)(shape)
    keep = save and z is not None
    ungated = None
    if keep:
        new = torch.empty if exact(tables, out_tokens, 1) else torch.zeros
        ungated = new(shape, dtype=torch.float32)
    last_state = torch.empty(batch, paths, channels, d_state)
    states = torch.empty(states_shape(batch, paths, steps, B.shape[3], channels, d_state)) if save else None
    _call(
        "scan_forward",
        _scan_args(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, y, softplus, merge, ungated, last_state, states),
    )
    empty = torch.empty(0)
    return y.to(dtype), last_state, empty if states is None else states, torch.empty(0) if ungated is None else ungated


def scan_backward(dy, d_last_state, u, dt, A, B, C, D, dt_bias, dt_weight, tables, states, softplus, merge):
    """Gradients of (u, dt, A, B, C, D, dt_bias, dt_weight) from that of the ungated output, in float32."""
    u, dt, A, B, C, D, dt_bias, dt_weight, dy = map(storable, (u, dt, A, B, C, D, dt_bias, dt_weight, dy))
    if dy.stride(-1) == 0:  # the gradient of a sum: one number, which the kernels would gather lane by lane
        dy = dy.contiguous()
    batch, inputs, tokens, channels = u.shape
    paths, _, d_state = A.shape
    groups, rank = B.shape[3], dt.shape[-1]
    parts = library().vssm_scan_parts(*map(ctypes.c_int64, (batch, groups, channels // groups)))
    new = torch.empty if exact(tables, tokens, 0) else torch.zeros
    du = new(batch, inputs, tokens, channels)
    d_dt = new(*(() if dt_weight is None else (parts * groups,)), batch, paths, tokens, rank)
    dB, dC = (new(parts, batch, paths, tokens, groups, d_state) for _ in range(2))
    dA = torch.empty(batch, paths, channels, d_state)
    dD, d_bias = (torch.empty(batch, paths, channels) for _ in range(2))
    d_weight = None if dt_weight is None else torch.empty(batch, paths, channels, rank)
    if d_last_state is not None:
        d_last_state = d_last_state.float().contiguous()
    args = _scan_args(u, dt, A, B, C, D, None, dt_bias, dt_weight, tables, dy, softplus, merge, None, None, states)
    _call(
        "scan_backward",
        [
            *args,
            *_tokens(dy, merge),
            _address(d_last_state),
            *_tokens(du, inputs == 1),
            *map(_address, (d_dt, dB, dC, dA, dD, d_bias, d_weight)),
        ],
    )
    first = lambda x: x[0] if len(x) == 1 else x.sum(0)  # noqa: E731
    return (
        du,
        d_dt if dt_weight is None else first(d_dt),
        *map(first, (dA, dB, dC, dD, d_bias)),
        None if d_weight is None else first(d_weight),
    )


def _conv_args(x, weight, bias, tables, mirrored, silu, y):
    paths, channels, width = weight.shape
    steps = x.shape[2] if tables is None else tables.shape[1]
    return [
        x.shape[0], paths, channels, width, steps, x.shape[2], silu, _address(tables), _address(mirrored),
        *_tokens(x, x.shape[1] == 1),
        *_by_channel(weight),
        *_channels(bias),
        *_tokens(y),
    ]  # fmt: skip


def path_major(like: Tensor, batch: int, paths: int, *shape: int) -> Tensor:
    """An empty (batch, paths, ...) tensor, each path contiguous over the whole batch, for matrix products."""
    return like.new_empty(paths, batch, *shape).transpose(0, 1)


def _flags(mirrored: list[int]) -> Tensor:
    return torch.tensor(mirrored, dtype=torch.int64)


def conv_forward(x, weight, bias, tables, mirrored, silu):
    """y of `vision_ssm::causal_conv1d`."""
    dtype = x.dtype
    x, weight, bias = map(storable, (x, weight, bias))
    paths, channels, _ = weight.shape
    y = path_major(x, x.shape[0], paths, x.shape[2] if tables is None else tables.shape[1], channels)
    flags = _flags(mirrored)
    _call("conv_forward", _conv_args(x, weight, bias, tables, flags, silu, y))
    return y.to(dtype)


def conv_backward(dy, x, weight, bias, tables, mirrored, silu):
    """Gradients of (x, weight, bias), in float32."""
    x, weight, bias, dy = map(storable, (x, weight, bias, dy))
    batch, inputs, tokens, channels = x.shape
    paths, _, width = weight.shape
    dx = torch.zeros(batch, inputs, tokens, channels)
    d_weight, d_bias = torch.empty(batch, paths, width, channels), torch.empty(batch, paths, channels)
    flags = _flags(mirrored)
    args = _conv_args(x, weight, bias, tables, flags, silu, dy)
    _call(
        "conv_backward",
        [*args, *_tokens(dy), *_tokens(dx, inputs == 1), _address(d_weight), _address(d_bias)],
    )
    return dx, d_weight.sum(0).transpose(1, 2), d_bias.sum(0)
