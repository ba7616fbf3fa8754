"""Loading published checkpoints into models: recognised, converted, strict."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.nn as nn
from torch import Tensor

from .checks import check_names, check_values, misfits
from .error import CheckpointError, shown, where
from .fitting import fitting_models
from .reading import no_tensors, read, unwrap

__all__ = ["convert_state_dict", "converting", "load_checkpoint", "load_into", "read_state_dict", "rename"]

Rule = tuple[str, str | Callable[[re.Match], str]]
_Conversion = Callable[[Mapping, nn.Module], dict[str, Tensor]]


def rename(state_dict: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Every rule (pattern, replacement) applied to every name, in order."""
    out = {}
    for name, value in state_dict.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def convert_state_dict(state_dict: Mapping, model: nn.Module) -> dict[str, Tensor]:
    """A published state dict (or whole checkpoint) in the names and shapes of `model`; one of our own unchanged.

    Args:
        state_dict: names to tensors, in any layout that the model's family knows, with or without an envelope. A prefix
            of all names that the model's have not ("model.", "net.backbone.") is taken off.
        model: the model that the tensors are for. One whose family defines no conversion, a network of one's own,
            takes the names as they are.
    """
    return _bare(unwrap(state_dict), model, _family_conversion(model))


def _family_conversion(model: nn.Module) -> _Conversion:
    for cls in type(model).__mro__:
        if convert := getattr(sys.modules.get(cls.__module__), "checkpoint_filter_fn", None):
            return convert
    return lambda state_dict, _: state_dict


def _bare(state_dict: dict[str, Tensor], model: nn.Module, convert: _Conversion) -> dict[str, Tensor]:
    """Converted as they are, or without a prefix of all names: the first form of which the model has any name."""
    own = model.state_dict()
    prefixes = [
        one for one in _prefixes(next(iter(state_dict), "")) if all(name.startswith(one) for name in state_dict)
    ]
    for prefix in ("", *prefixes):
        with suppress(*_FOREIGN):
            converted = convert(_below(prefix, state_dict), model)
            if own.keys() & converted.keys():
                return converted
    return convert(state_dict, model)


def read_state_dict(
    source: str | Path | Mapping,
    model: nn.Module,
    convert: _Conversion | None = None,
) -> dict[str, Tensor]:
    """The state dict of a checkpoint in a model's names, without a prefix of all its names that the model's have not.

    Args:
        source: as of `load_checkpoint`.
        model: the model that the tensors are for. Whether they fit is for `check_state_dict`.
        convert: gives published names the model's; by default the conversion of its family.

    Raises:
        CheckpointError: the source is no checkpoint, or its names or shapes are not those of a known layout.
        FileNotFoundError: no such file.
    """
    return _converted(read(source), source, model, convert)


def _converted(content: Mapping, source, model: nn.Module, convert: _Conversion | None = None) -> dict[str, Tensor]:
    state_dict = unwrap(content, source)
    with converting(source, model):
        return _bare(state_dict, model, convert or _family_conversion(model))


def load_checkpoint(model: nn.Module, source: str | Path | Mapping, keep_head: bool = False) -> nn.Module:
    """Load an official checkpoint, or one of this package, into `model`.

    A prefix that all names share ("model.", "net.backbone.") is no difference, and a model without a head
    (`num_classes=0`) takes a classifier's weights without the head's. Weights in float16, bfloat16 and float64 become
    the model's dtype.

    Args:
        model: a model of this package, or any other, for which the names are taken as they are.
        source: file (safetensors or PyTorch), URL, or a state dict.
        keep_head: leave the model's classifier as it is, for fine-tuning with other classes.

    Returns:
        The model.

    Raises:
        CheckpointError: keys are missing, unexpected, of another shape, of another kind of numbers (integers for
            weights) or not finite; they are named, and the registered model that the checkpoint fits, if there is one.
            Or the source is no checkpoint, or is damaged.
        FileNotFoundError: no such file. No code of a file is run.
    """
    headless = isinstance(getattr(model, "heads", None), tuple) and not _only(model.state_dict(), _heads(model))
    return _load(model, source, _keep_head if keep_head or headless else lambda state_dict, _: state_dict)


def load_into(model: nn.Module, source: str | Path | Mapping) -> None:
    """As `load_checkpoint`, for `pretrained=True`: another number of classes keeps the new head, and the first
    convolution is adapted to another number of input channels, as timm does."""
    _load(model, source, _as_timm)


def _load(model: nn.Module, source, adapt: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]) -> nn.Module:
    content, own = read(source), model.state_dict()
    try:
        state_dict = adapt(_converted(content, source, model), model)
        check_names(state_dict, own, model, source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_advice(content, model)}") from error
    check_values(state_dict, own, source)
    model.load_state_dict(state_dict)
    return model


def _keep_head(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    heads = _heads(model)
    return _without(state_dict, heads) | _only(model.state_dict(), heads)


def _as_timm(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    from timm.models._manipulate import adapt_input_conv

    heads = _only(model.state_dict(), model.heads)
    if model.num_classes == 0 or any(heads[k].shape != state_dict[k].shape for k in heads if k in state_dict):
        state_dict = _keep_head(state_dict, model)
    name = f"{model.pretrained_cfg['first_conv']}.weight"
    if name in state_dict and state_dict[name].ndim == 4 and state_dict[name].shape[1] != model.in_chans:
        with suppress(NotImplementedError):  # no image of one or three channels: the check names what does not fit
            state_dict[name] = adapt_input_conv(model.in_chans, state_dict[name])
    return state_dict


# What the conversions raise when names or shapes are not those that they rename and reshape.
_FOREIGN = (KeyError, IndexError, RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError)


@contextmanager
def converting(source, model: nn.Module) -> Iterator[None]:
    """What goes wrong while names are converted is an error of the checkpoint; arguments as of `check_state_dict`.

    Raises:
        CheckpointError: the names or shapes are not those of a known layout.
    """
    try:
        yield
    except CheckpointError:
        raise
    except _FOREIGN as error:
        raise CheckpointError(
            f"{where(source)} does not fit {type(model).__name__}: its names or shapes are not those of a known layout"
        ) from error


# Names by their beginnings


def _heads(model: nn.Module) -> tuple[str, ...]:
    heads = getattr(model, "heads", None)
    return heads if isinstance(heads, tuple) else ("head.",)  # in other models `heads` may be a module


def _only(state_dict: Mapping[str, Tensor], beginnings: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict.items() if name.startswith(beginnings)}


def _without(state_dict: Mapping[str, Tensor], beginnings: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict.items() if not name.startswith(beginnings)}


def _below(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def _prefixes(name: str) -> list[str]:
    """The beginnings of a name that end with a dot: "a.b.c" has "a." and "a.b."; the first three."""
    ends = [i + 1 for i, letter in enumerate(name) if letter == "."]
    return [name[:end] for end in ends[:3]]


# What the user may do


def _advice(content: Mapping, model: nn.Module) -> str:
    """The end of a message: another model, the head, or a prefix for which the checkpoint fits."""
    try:
        state_dict = unwrap(content)
    except CheckpointError:
        return ""  # of which the message speaks already
    fits = fitting_models(state_dict, convert_state_dict)
    return "".join(
        (
            no_tensors(content),
            _head_advice(state_dict, model),
            _prefix_advice(state_dict, model),
            f"; it fits {' or '.join(fits)}" if fits else "",
        )
    )


def _head_advice(state_dict: Mapping[str, Tensor], model: nn.Module) -> str:
    own = model.state_dict()
    with suppress(*_FOREIGN):
        converted = read_state_dict(state_dict, model)
        if not misfits(_keep_head(converted, model), own):
            return "; all but the head fits: `keep_head=True` leaves the model's as it is"
    return ""


def _prefix_advice(state_dict: Mapping[str, Tensor], model: nn.Module) -> str:
    """The prefix below which most of the model's names are, where other names stand beside them."""
    own = model.state_dict()
    counts: dict[str, int] = {}
    for name in state_dict:
        for prefix in _prefixes(name):
            counts[prefix] = counts.get(prefix, 0) + 1
    best, found = "", max(len(own) // 2, len(own.keys() & state_dict.keys()))
    for prefix in sorted(counts, key=counts.__getitem__, reverse=True)[:8]:
        with suppress(*_FOREIGN):
            known = len(own.keys() & _family_conversion(model)(_below(prefix, state_dict), model).keys())
            if known > found:
                best, found = prefix, known
    if not best:
        return ""
    return (
        f"; below the prefix {shown(best)!r} are {found} of the model's {len(own)} names: "
        f"give those alone, without the prefix, as a state dict"
    )
