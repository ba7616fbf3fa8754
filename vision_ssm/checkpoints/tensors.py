"""What the names in PyTorch's files mean: tensors over storages, NumPy's numbers, plain containers."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .error import CheckpointError
from .pickles import Inert, Meaning, NumberKind, as_dict, as_set

__all__ = ["NAMES", "Storage", "StorageKind", "Unusable"]

# Values of a file that are views of fewer ones (`expand`), in bytes: what is made of them must stay small.
_MOST_EXPANDED = 2**26


class StorageKind(Inert):
    """The class of a storage, by the dtype of its entries."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: torch.dtype):
        super().__init__(f"torch.{name}")
        self.dtype = dtype


class Storage(Inert):
    """The bytes of a storage, as a tensor, and what its entries are."""

    __slots__ = ("data", "dtype")

    def __init__(self, data: Tensor, dtype: torch.dtype):
        super().__init__("torch.storage")
        self.data, self.dtype = data, dtype


class Unusable(Inert):
    """A tensor of a form that no weights of a model have: sparse, quantised, without data."""

    __slots__ = ()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_, dtype: torch.dtype | None = None) -> Tensor:
    """A view of a storage, all of which lies in it."""
    whole = [offset, *size, *stride]
    if not isinstance(storage, Storage) or any(type(one) is not int or not 0 <= one < 2**62 for one in whole):
        raise CheckpointError("a tensor in it is damaged")
    dtype = storage.dtype if dtype is None else dtype
    held, count = storage.data.numel() // dtype.itemsize, math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else offset
    if last >= held + (not count) or len(size) > 32:
        raise CheckpointError("a tensor in it reaches beyond its data")
    if count > held and count * dtype.itemsize > _MOST_EXPANDED:
        raise CheckpointError(f"a tensor in it has {count} entries, of which {held} are stored")
    return storage.data[: held * dtype.itemsize].view(dtype).as_strided(size, stride, offset)


def _plain_view(*arguments) -> Tensor | Unusable:
    """`_rebuild_tensor_v2`: storage, offset, size, stride, requires_grad, hooks and how entries are to be read."""
    if len(arguments) > 6 and arguments[6]:
        return Unusable("conjugate or negative view of a tensor")
    return _tensor(*arguments)


def _typed_view(storage, offset, size, stride, requires_grad, hooks, dtype, *_) -> Tensor:
    """`_rebuild_tensor_v3`, of dtypes that have no storage class."""
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError("a tensor in it is damaged")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _of_subclass(function, kind, arguments, *_) -> Any:
    """A tensor of a subclass, as the plain tensor that it is made from."""
    if isinstance(function, Meaning) and type(arguments) is tuple:
        return function.call(*arguments)
    return Inert(kind.kind if isinstance(kind, Inert) else "tensor")


def _number(kind, data) -> float | Inert:
    """A NumPy number, as Python's."""
    if isinstance(kind, NumberKind) and kind.code in _NUMBERS and type(data) is bytes:
        return np.frombuffer(data, "<" + kind.code).item()
    return Inert("numpy.generic")


_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_DTYPES = {name: kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
    "UntypedStorage": torch.uint8,
}
_UNUSABLE = {
    "_rebuild_sparse_tensor": "sparse tensor",
    "_rebuild_sparse_csr_tensor": "sparse tensor",
    "_rebuild_qtensor": "quantised tensor",
    "_rebuild_nested_tensor": "nested tensor",
    "_rebuild_meta_tensor_no_storage": "tensor without data",
    "_rebuild_wrapper_subclass": "tensor without data",
    "_rebuild_device_tensor_from_numpy": "tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "tensor of another device",
}


def _functions() -> dict[tuple[str, str], Callable]:
    functions: dict[tuple[str, str], Callable] = {
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _plain_view,
        ("torch._utils", "_rebuild_tensor_v3"): _typed_view,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
        ("torch._tensor", "_rebuild_from_type_v2"): _of_subclass,
        ("torch", "Size"): lambda sizes=(): tuple(sizes),
        ("torch", "device"): lambda kind, index=None: torch.device(kind, *([] if index is None else [index])),
        ("collections", "OrderedDict"): lambda items=(): as_dict(items),
        ("collections", "defaultdict"): lambda factory=None, items=(): as_dict(items),
        ("numpy", "dtype"): lambda code, *_: NumberKind(code),
        ("numpy.core.multiarray", "scalar"): _number,
        ("numpy._core.multiarray", "scalar"): _number,
        ("_codecs", "encode"): lambda text, encoding="latin1": text.encode("latin1"),
    }
    for module in ("builtins", "__builtin__"):
        functions[module, "set"] = lambda items=(): as_set(items)
        functions[module, "frozenset"] = lambda items=(): frozenset(as_set(items))
        functions[module, "dict"] = lambda items=(): as_dict(items)
        functions[module, "complex"] = lambda real=0.0, imag=0.0: complex(real, imag)
    for name, kind in _UNUSABLE.items():
        functions["torch._utils", name] = lambda *_, kind=kind: Unusable(kind)
    return functions


NAMES: Mapping[tuple[str, str], Any] = {
    **{names: Meaning(".".join(names), function) for names, function in _functions().items()},
    **{("torch", name): kind for name, kind in _DTYPES.items()},
    **{("torch", name): StorageKind(name, dtype) for name, dtype in _STORAGES.items()},
    ("torch.storage", "UntypedStorage"): StorageKind("UntypedStorage", torch.uint8),
}
