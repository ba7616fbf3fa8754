"""Does a state dict fit a model: names, shapes, kinds of numbers, finite values."""

from collections.abc import Callable, Mapping

import torch
import torch.nn as nn
from torch import Tensor

from .error import CheckpointError, listed, shown, where

__all__ = ["check_names", "check_state_dict", "check_values", "misfits"]

_REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_state_dict(
    state_dict: Mapping, own: Mapping, model: nn.Module, source, hint: Callable[[object], str] | None = None
) -> None:
    """Compare a state dict with the model's own: names, shapes, kinds of numbers; and its values are finite.

    Args:
        state_dict, own: the loaded tensors and the model's.
        model, source: named in the message.
        hint: source to the end of the message on names and shapes, for what the user may do.

    Raises:
        CheckpointError: keys are missing, unexpected, of another shape, of another kind of numbers or not finite; they
            are named.
    """
    check_names(state_dict, own, model, source, hint)
    check_values(state_dict, own, source)


def check_names(
    state_dict: Mapping, own: Mapping, model: nn.Module, source, hint: Callable[[object], str] | None = None
) -> None:
    """The first half of `check_state_dict`: names and shapes."""
    if problems := misfits(state_dict, own):
        way_on = hint(source) if hint else ""
        raise CheckpointError(f"{where(source)} does not fit {type(model).__name__}: {problems}{way_on}")


def misfits(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Where names and shapes of a state dict are not the model's own; "" if they are."""
    problems = []
    if missing := [name for name in own if name not in state_dict]:
        problems.append(f"missing: {listed(missing)}")
    if unexpected := [name for name in state_dict if name not in own]:
        problems.append(f"unexpected: {listed(unexpected)}")
    shapes = [
        f"{name} is {tuple(state_dict[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    if shapes:
        problems.append(f"other shapes: {listed(shapes)}")
    return "; ".join(problems)


def check_values(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], source) -> None:
    """The second half of `check_state_dict`: of tensors of the right names and shapes, kinds and values.

    Weights are float64, float32, float16 or bfloat16, whatever the model's are. Counters and tables are whole numbers,
    in any dtype. A value that is infinite or no number, or that becomes so in the model's dtype, stands where the
    model's own has such values and nowhere else.
    """
    for name, like in own.items():
        if problem := _problem(state_dict[name], like):
            raise CheckpointError(f"{where(source)} cannot be loaded: {shown(name)} {problem}")


def _problem(value: Tensor, like: Tensor) -> str:
    kind, expected = (str(one.dtype).removeprefix("torch.") for one in (value, like))
    if value.is_meta:
        return "" if like.is_meta else "has no data (it is on the device 'meta')"
    if like.dtype == value.dtype and like.dtype not in _REAL:
        return ""
    if like.dtype in _REAL:
        if value.dtype not in _REAL:
            return f"is {kind}, expected {expected}: weights of a quantised or converted model are other numbers"
        return _not_finite(value, like, expected)
    whole = not like.is_complex() and like.dtype != torch.bool and not like.is_floating_point()
    if whole and (value.dtype in _REAL or not (value.is_complex() or value.is_floating_point())):
        fits = value.dtype != torch.bool and torch.equal(value.to(like.dtype).to(torch.float64), value.double())
        return "" if fits else f"is {kind} with values that are no {expected}"
    return f"is {kind}, expected {expected}"


def _not_finite(value: Tensor, like: Tensor, expected: str) -> str:
    if not value.numel():
        return ""
    least, most = (float(one) for one in value.detach().aminmax())
    limit = torch.finfo(like.dtype).max
    if -limit <= least and most <= limit:
        return ""
    if not like.is_meta and not torch.isfinite(like).all():
        return ""
    if torch.isfinite(value).all():
        return f"has values beyond {expected}"
    return "has values that are infinite or no numbers (NaN): the training that wrote it may have diverged"
