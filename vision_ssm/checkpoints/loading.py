"""Loading published checkpoints into models: recognised, converted, strict."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.nn as nn
from torch import Tensor

from .reading import CheckpointError, read, unwrap

__all__ = [
    "CheckpointError",
    "check_state_dict",
    "convert_state_dict",
    "converting",
    "load_checkpoint",
    "load_into",
    "rename",
]

Rule = tuple[str, str | Callable[[re.Match], str]]


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
        state_dict: names to tensors, in any layout that the model's family knows, with or without an envelope.
        model: the model that the tensors are for. One whose family defines no conversion, a network of one's own,
            takes the names as they are.
    """
    for cls in type(model).__mro__:
        if convert := getattr(sys.modules[cls.__module__], "checkpoint_filter_fn", None):
            return convert(unwrap(state_dict), model)
    return unwrap(state_dict)


def load_checkpoint(model: nn.Module, source: str | Path | Mapping, keep_head: bool = False) -> nn.Module:
    """Load an official checkpoint, or one of this package, into `model`.

    Args:
        model: a model of this package, or any other, for which the names are taken as they are.
        source: file (safetensors or PyTorch), URL, or a state dict.
        keep_head: leave the model's classifier as it is, for fine-tuning with other classes.

    Returns:
        The model.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; they are named, and the registered model
            that the checkpoint fits, if there is one.
        FileNotFoundError, ValueError: no file, or none that can be read. No code of the file is run.
    """
    state_dict = _converted(read(source), model, source)
    own = model.state_dict()
    if keep_head:
        heads = getattr(model, "heads", ("head.",))
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(heads)}
        state_dict |= {k: v for k, v in own.items() if k.startswith(heads)}
    check_state_dict(state_dict, own, model, source, _hint)
    model.load_state_dict(state_dict)
    return model


def load_into(model: nn.Module, path: str) -> None:
    """As `load_checkpoint`, for `pretrained=True`: another number of classes keeps the new head, and the first
    convolution is adapted to another number of input channels, as timm does."""
    from timm.models._manipulate import adapt_input_conv

    state_dict = _converted(read(path), model, path)
    own = model.state_dict()
    heads = [name for name in own if name.startswith(model.heads)]
    if model.num_classes == 0 or any(own[k].shape != state_dict[k].shape for k in heads if k in state_dict):
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(model.heads)} | {k: own[k] for k in heads}
    name = f"{model.pretrained_cfg['first_conv']}.weight"
    if name in state_dict and state_dict[name].shape[1] != model.in_chans:
        with suppress(NotImplementedError):  # no image of one or three channels: the check names what does not fit
            state_dict[name] = adapt_input_conv(model.in_chans, state_dict[name])
    check_state_dict(state_dict, own, model, path, _hint)
    model.load_state_dict(state_dict)


# What the conversions raise when names or shapes are not those that they rename and reshape.
_FOREIGN = (KeyError, IndexError, RuntimeError, TypeError, ValueError)


def _converted(content: Mapping, model: nn.Module, source) -> dict[str, Tensor]:
    with converting(source, model, _hint):
        return convert_state_dict(content, model)


@contextmanager
def converting(source, model: nn.Module, hint: Callable[[object], str] | None = None) -> Iterator[None]:
    """What goes wrong while names are converted is an error of the checkpoint; arguments as of `check_state_dict`.

    Raises:
        CheckpointError: the names or shapes are not those of a known layout.
    """
    try:
        yield
    except CheckpointError:
        raise
    except _FOREIGN as error:
        where = "the state dict" if isinstance(source, Mapping) else str(source)
        raise CheckpointError(
            f"{where} is no checkpoint of {type(model).__name__}: {type(error).__name__} {error} while its names "
            f"were converted{hint(source) if hint else ''}"
        ) from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_state_dict(
    state_dict: Mapping, own: Mapping, model: nn.Module, source, hint: Callable[[object], str] | None = None
) -> None:
    """Compare names and shapes of a state dict with the model's own.

    Args:
        state_dict, own: the loaded tensors and the model's.
        model, source: named in the message.
        hint: source to the end of the message, for what the checkpoint may be instead.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; they are named.
    """
    problems = []
    if missing := [name for name in own if name not in state_dict]:
        problems.append(f"missing: {_some(missing)}")
    if unexpected := [name for name in state_dict if name not in own]:
        problems.append(f"unexpected: {_some(unexpected)}")
    shapes = [
        f"{name} is {tuple(state_dict[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    if shapes:
        problems.append(f"other shapes: {_some(shapes)}")
    if not problems:
        return
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    raise CheckpointError(
        f"{where} does not fit {type(model).__name__}: {'; '.join(problems)}{hint(source) if hint else ''}"
    )


def _hint(source) -> str:
    fits = _fitting_models(source)
    return f"; it fits {' or '.join(fits)}" if fits else ""


def _fitting_models(source) -> list[str]:
    """Registered models that the checkpoint fits exactly, whatever its number of classes."""
    import timm

    from ..registry import model_names

    def body(state_dict: Mapping[str, Tensor], heads: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in state_dict.items() if not name.startswith(heads)}

    content, fits = read(source), []
    for name in model_names():
        candidate = timm.create_model(name, device="meta")
        try:
            converted = convert_state_dict(content, candidate)
        except _FOREIGN:
            continue
        if body(converted, candidate.heads) == body(candidate.state_dict(), candidate.heads):
            fits.append(name)
    return fits
