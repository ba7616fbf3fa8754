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

from .checks import OUT_OF_RANGE, kept

__all__ = ["available", "library"]

_ABI_VERSION = 2
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
        lib.vssm_each_once.restype = ctypes.c_int64
        lib.vssm_each_once.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
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
    if status := getattr(lib, f"vssm_{function}")((ctypes.c_int64 * len(args))(*args)):
        kind, message = _ERRORS[status]
        raise kind(message)


# By the status that a kernel returns.
_ERRORS = {
    1: (ValueError, OUT_OF_RANGE),
    2: (ValueError, "the CPU kernels do not take tensors of these sizes"),
    3: (MemoryError, "the CPU kernels could not get memory for their buffers"),
}
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


def each_once(tables: Tensor | None, row: int, tokens: int) -> bool:
    """Whether each path of `tables[row]` visits each token exactly once.

    It is looked up at every call, for about a hundredth of the scan's time: a table may lie in memory that others
    change.
    """
    if tables is None:
        return True
    _, paths, steps = tables.shape
    return steps == tokens and bool(library().vssm_each_once(_row(tables, row), paths, steps))


def _row(tables: Tensor | None, row: int) -> int:
    """Address of one row of tables."""
    return 0 if tables is None else tables.data_ptr() + row * tables.stride(0) * 4


def tile_length(d_state: int) -> int:
    """Steps between saved states: such that a tile's backward scratch stays in the first-level cache."""
    return 64 if d_state <= 4 else 32


def states_shape(batch: int, paths: int, steps: int, groups: int, channels: int, d_state: int) -> tuple[int]:
    """Shape of the states kept for the backward pass, (batch, paths, groups, tiles, channels, states) padded to whole
    vectors. It is flat: as a dimension of its own, the number of tiles would be fixed by an export where it is 1."""
    padded = 1 if d_state == 1 else -(-d_state // 4) * 4
    tiles = -(-steps // tile_length(d_state))
    return (batch * paths * groups * tiles * padded * (-(-channels // groups // 16) * 16),)


def _scan_args(
    u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, y, softplus, merge, ungated, last_state, states, exact_read,
    exact_write,
):  # fmt: skip
    batch, shared, in_tokens, channels = u.shape
    paths, _, d_state = A.shape
    groups = B.shape[3]
    out_tokens = y.shape[2]
    steps = in_tokens if tables is None else tables.shape[2]
    return [
        batch, paths, groups, channels // groups, d_state, 0 if dt_weight is None else dt.shape[-1],
        steps, in_tokens, out_tokens, tile_length(d_state), softplus, merge, exact_read, exact_write,
        _row(tables, 0), _row(tables, 1),
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


def _float32(function, like: Tensor, *shape: int) -> Tensor:
    """A new float32 tensor on the device of `like`, whatever PyTorch's defaults are."""
    return function(shape, dtype=torch.float32, device=like.device)


def scan_forward(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge, save):
    """(y, last_state, states, ungated) of `vision_ssm::selective_scan`; the last two are empty unless `save`."""
    dtype = u.dtype
    u, dt, A, B, C, D, z, dt_bias, dt_weight = map(storable, (u, dt, A, B, C, D, z, dt_bias, dt_weight))
    batch, _, _, channels = u.shape
    paths, _, d_state = A.shape
    steps = u.shape[2] if tables is None else tables.shape[2]
    shape = batch, 1 if merge else paths, out_tokens, channels
    exact = each_once(tables, 1, out_tokens)
    new = torch.empty if exact else torch.zeros
    direct = u.dtype == torch.float32 and z is None
    y = (new if direct else torch.empty)(shape, dtype=u.dtype, device=u.device)
    ungated = _float32(new, u, *shape) if save and z is not None else None
    last_state = _float32(torch.empty, u, batch, paths, channels, d_state)
    states = None
    if save:
        states = _float32(torch.empty, u, *states_shape(batch, paths, steps, B.shape[3], channels, d_state))
    inputs = u, dt, A, B, C, D, z, dt_bias, dt_weight, tables
    _call("scan_forward", _scan_args(*inputs, y, softplus, merge, ungated, last_state, states, False, exact))
    states, ungated = (_float32(torch.empty, u, 0) if x is None else x for x in (states, ungated))
    return y.to(dtype), last_state, states, ungated


def scan_backward(dy, d_last_state, u, dt, A, B, C, D, dt_bias, dt_weight, tables, states, softplus, merge):
    """Gradients of (u, dt, A, B, C, D, dt_bias, dt_weight) from that of the ungated output, in float32."""
    u, dt, A, B, C, D, dt_bias, dt_weight, dy = map(storable, (u, dt, A, B, C, D, dt_bias, dt_weight, dy))
    if dy.stride(-1) == 0:  # the gradient of a sum: one number, which the kernels would gather lane by lane
        dy = dy.contiguous()
    batch, sequences, tokens, channels = u.shape
    paths, _, d_state = A.shape
    groups, rank = B.shape[3], dt.shape[-1]
    steps = tokens if tables is None else tables.shape[2]
    if not kept(states, states_shape(batch, paths, steps, groups, channels, d_state)):
        args = u, dt, A, B, C, D, None, dt_bias, dt_weight, tables, dy.shape[2], softplus, merge
        _, _, states, _ = scan_forward(*args, True)
    parts = library().vssm_scan_parts(*map(ctypes.c_int64, (batch, groups, channels // groups)))
    exact = each_once(tables, 0, tokens)
    empty, new = (functools.partial(_float32, f, u) for f in (torch.empty, torch.empty if exact else torch.zeros))
    du = new(batch, sequences, tokens, channels)
    d_dt = new(*(() if dt_weight is None else (parts * groups,)), batch, paths, tokens, rank)
    dB, dC = (new(parts, batch, paths, tokens, groups, d_state) for _ in range(2))
    dA = empty(batch, paths, channels, d_state)
    dD, d_bias = (empty(batch, paths, channels) for _ in range(2))
    d_weight = None if dt_weight is None else empty(batch, paths, channels, rank)
    if d_last_state is not None:
        d_last_state = d_last_state.float().contiguous()
    inputs = u, dt, A, B, C, D, None, dt_bias, dt_weight, tables
    _call(
        "scan_backward",
        [
            *_scan_args(*inputs, dy, softplus, merge, None, None, states, exact, False),
            *_tokens(dy, merge),
            _address(d_last_state),
            *_tokens(du, sequences == 1),
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
    """The struct and, to be kept until the call, an array that it points to."""
    paths, channels, width = weight.shape
    steps = x.shape[2] if tables is None else tables.shape[1]
    flags = (ctypes.c_int64 * paths)(*map(bool, mirrored))
    return [
        x.shape[0], paths, channels, width, steps, x.shape[2], silu, _address(tables), ctypes.addressof(flags),
        *_tokens(x, x.shape[1] == 1),
        *_by_channel(weight),
        *_channels(bias),
        *_tokens(y),
    ], flags  # fmt: skip


def path_major(like: Tensor, batch: int, paths: int, *shape: int) -> Tensor:
    """An empty (batch, paths, ...) tensor, each path contiguous over the whole batch, for matrix products."""
    return like.new_empty((paths, batch, *shape)).transpose(0, 1)


def conv_forward(x, weight, bias, tables, mirrored, silu):
    """y of `vision_ssm::causal_conv1d`."""
    dtype = x.dtype
    x, weight, bias = map(storable, (x, weight, bias))
    paths, channels, _ = weight.shape
    y = path_major(x, x.shape[0], paths, x.shape[2] if tables is None else tables.shape[1], channels)
    args, _flags = _conv_args(x, weight, bias, tables, mirrored, silu, y)
    _call("conv_forward", args)
    return y.to(dtype)


def conv_backward(dy, x, weight, bias, tables, mirrored, silu):
    """Gradients of (x, weight, bias), in float32."""
    x, weight, bias, dy = map(storable, (x, weight, bias, dy))
    batch, inputs, tokens, channels = x.shape
    paths, _, width = weight.shape
    dx = _float32(torch.zeros, x, batch, inputs, tokens, channels)
    d_weight, d_bias = (_float32(torch.empty, x, batch, paths, *size, channels) for size in ((width,), ()))
    args, _flags = _conv_args(x, weight, bias, tables, mirrored, silu, dy)
    _call(
        "conv_backward",
        [*args, *_tokens(dy), *_tokens(dx, inputs == 1), _address(d_weight), _address(d_bias)],
    )
    return dx, d_weight.sum(0).transpose(1, 2), d_bias.sum(0)
