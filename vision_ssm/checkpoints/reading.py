"""Reading checkpoint files without running any code from them."""

import collections
import pickle
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["CheckpointError", "read", "unwrap"]


class CheckpointError(InputError):
    """A file is no checkpoint, or one that does not fit the model; the message names the file or the keys."""


class _Placeholder:
    """Stands in for any object of a class that is not allowed: takes every construction and keeps nothing."""

    dump_patches = False  # asked for by torch.load's older format

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def __hash__(self):
        return id(self)

    def append(self, value):
        pass

    def extend(self, values):
        pass


class _Kind:
    """Of a NumPy number: a name as "f8", without NumPy's own code being called."""

    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        if state[1] == ">":
            self.name = None


def _bytes(text, encoding) -> bytes:
    return text.encode("latin1")


def _number(kind, data):
    """A NumPy number, as Python's."""
    if kind.name in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        return np.frombuffer(data, "<" + kind.name).item()
    return _Placeholder()


# What a checkpoint may name: tensors, plain containers, NumPy's numbers. All else becomes an inert `_Placeholder`.
_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("builtins", "set"): set,
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("_codecs", "encode"): _bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        return _ALLOWED.get((module, name), _Placeholder)


def _inert_load(file, **kwargs):
    return _Unpickler(file, **kwargs).load()


_INERT_PICKLE = types.SimpleNamespace(Unpickler=_Unpickler, load=_inert_load, __name__="inert_pickle")

_ENVELOPES = (
    "model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema", "ema_model", "module", "network_weights",
)  # fmt: skip
# What PyTorch's wrappers for several GPUs and for compilation put before every name.
_WRAPPERS = ("module.", "_orig_mod.")


def _first_line(error: Exception) -> str:
    """What went wrong; pickle reports the end of a text file as its line number."""
    lines = str(error).splitlines()
    return (
        lines[0] if lines and not lines[0].isdecimal() else f"it is damaged or no checkpoint ({type(error).__name__})"
    )


def read(source: str | Path | Mapping) -> Mapping:
    """The content of a checkpoint: a safetensors or PyTorch file, by path or URL; a mapping is returned as it is.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is no checkpoint, or is damaged.
    """
    if isinstance(source, Mapping):
        return source
    if str(source).startswith(("http://", "https://")):
        from timm.models._hub import download_cached_file

        source = download_cached_file(str(source), progress=False)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # it holds more than tensors: a config object, say
            content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT_PICKLE)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a checkpoint with a state dict")
    return content


def unwrap(content: Mapping) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: out of its envelope, without wrappers' prefixes and anything but tensors.

    Weights come before their moving average ("model" before "model_ema"): that is how the published files are meant.
    """
    for key in _ENVELOPES:
        inner = content.get(key)
        if isinstance(inner, Mapping):
            return unwrap(inner)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    network = {name: value for name, value in tensors.items() if name.startswith("network.")}
    if network and all(name.startswith("loss") for name in tensors.keys() - network):  # of a segmentor in training
        return unwrap({name.removeprefix("network."): value for name, value in network.items()})
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return unwrap({name.removeprefix(prefix): value for name, value in tensors.items()})
    return tensors
