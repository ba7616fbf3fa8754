"""Reading checkpoints: files and addresses as data, and the state dict inside."""

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .download import download
from .error import CheckpointError, listed, shown, where
from .pickles import Inert, check_nesting
from .safetensors_files import read_safetensors
from .tensors import Unusable
from .torch_files import read_torch_file

__all__ = ["no_tensors", "read", "unwrap"]

_ENVELOPES = (
    "model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema", "ema_model", "ema_state_dict", "ema",
    "module", "network_weights", "network", "net", "weights", "params", "params_ema",
)  # fmt: skip
# What PyTorch's wrappers for several GPUs, averages, compilation and recomputing put into names; counters of averages.
_WRAPPER = "module."
_INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_COUNTERS = ("n_averaged", "steps")
_MOST_LAYERS = 8  # of envelopes and wrappers around a state dict
_LONGEST_NAME = 1000


def read(source: str | Path | Mapping) -> Mapping:
    """The content of a checkpoint: a safetensors or PyTorch file, by path or URL; a mapping is returned as it is.

    What comes from a file is data: tensors on the CPU and plain values. Anything else in it is an inert object.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is no checkpoint, or is damaged; or it cannot be downloaded.
    """
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, (str, Path)):
        raise CheckpointError(f"a checkpoint is a path, a URL or a state dict, not a {type(source).__name__}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(source)):
        path = download(str(source))
        try:
            return _read_file(path, str(source))
        except CheckpointError:
            path.unlink(missing_ok=True)  # what cannot be read is fetched again
            raise
    return _read_file(_file(source), str(source))


def _file(source: str | Path) -> Path:
    if not str(source):
        raise CheckpointError("the path of the checkpoint is empty")
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        link = ": a link to a file that is not there" if path.is_symlink() else ""
        raise FileNotFoundError(f"no checkpoint at {where(path)}{link}") from None
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero byte
        raise CheckpointError(f"{where(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        raise FileNotFoundError(f"no checkpoint at {where(path)}: it is a folder")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{where(path)} is no regular file: expected a checkpoint")
    return path


def _read_file(path: Path, name: str) -> Mapping:
    try:
        with open(path, "rb") as file:
            begin = file.read(9)
        if begin[8:] == b"{" or path.suffix == ".safetensors":
            return read_safetensors(path)
        content = read_torch_file(path)
        check_nesting(content)
    except CheckpointError as error:
        raise CheckpointError(f"{where(name)} cannot be read as a checkpoint: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{where(name)} cannot be read as a checkpoint: {error.strerror or error}") from error
    except Exception as error:
        raise CheckpointError(
            f"{where(name)} cannot be read as a checkpoint: it is damaged or no checkpoint"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where(name)} holds a {_kind(content)}: expected a checkpoint with a state dict")
    return content


def unwrap(content: Mapping, source: object = None) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: out of its envelope, without wrappers' prefixes and anything but tensors.

    Weights come before their moving average ("model" before "model_ema"): that is how the published files are meant.

    Args:
        content: of a checkpoint.
        source: the file that errors name.

    Raises:
        CheckpointError: a name is no text, or a tensor is of a form that no weights have (sparse, quantised).
    """
    tensors = {name: value for name, value in _state_dict(content).items() if isinstance(value, (Tensor, Unusable))}
    for name, value in tensors.items():
        if problem := _problem(name, value):
            raise CheckpointError(f"{where(content if source is None else source)} cannot be loaded: {problem}")
    for part in _INNER_WRAPPERS:
        tensors = {name.replace(part, ""): value for name, value in tensors.items()}
    for _ in range(_MOST_LAYERS):
        prefix = _wrapper(tensors)
        if not prefix:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return tensors


def _problem(name: Any, value: Tensor | Unusable) -> str:
    if not isinstance(name, str):
        return f"the name {shown(name)} of a tensor is of type {type(name).__name__}, expected text"
    if len(name) > _LONGEST_NAME:
        return f"the name {shown(name)} of a tensor has {len(name)} characters"
    if isinstance(value, Unusable) or value.layout != torch.strided or value.is_quantized or value.is_nested:
        return f"{shown(name)} is a {_kind(value)}, expected a dense tensor of floating-point numbers"
    return ""


def _wrapper(tensors: Mapping[str, Tensor]) -> str:
    """What stands before every name of a wrapped model; or before a network's in a segmentor, beside its losses'."""
    for prefix, beside in (("network.", "loss"), (_WRAPPER, _COUNTERS)):
        inside = [name for name in tensors if name.startswith(prefix)]
        if inside and all(name.startswith(beside) for name in tensors if not name.startswith(prefix)):
            return prefix
    return ""


def _state_dict(content: Mapping, layers: int = _MOST_LAYERS) -> Mapping:
    """The innermost mapping of an envelope: of the first that has tensors, if any has."""
    inner = [content[key] for key in _ENVELOPES if isinstance(content.get(key), Mapping)]
    if not inner or not layers:
        return content
    found = [_state_dict(one, layers - 1) for one in inner]
    return next(
        (one for one in found if any(isinstance(value, (Tensor, Unusable)) for value in one.values())), found[0]
    )


def no_tensors(content: Mapping) -> str:
    """What the state dict in a checkpoint holds in the place of tensors, as the end of a message; "" for nothing."""
    others = {name: value for name, value in _state_dict(content).items() if not isinstance(value, Tensor)}
    return "; no tensors: " + listed(f"{name} ({_kind(value)})" for name, value in others.items()) if others else ""


def _kind(value: Any) -> str:
    if isinstance(value, Inert):
        return shown(value.kind.rpartition(".")[2])
    if isinstance(value, Tensor):
        forms = {"quantised": value.is_quantized, "nested": value.is_nested, "sparse": value.layout != torch.strided}
        return next((f"{form} tensor" for form, is_one in forms.items() if is_one), "tensor")
    return type(value).__name__
