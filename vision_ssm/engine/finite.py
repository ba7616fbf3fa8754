"""Trainings that have left the finite numbers are ended, and leave the checkpoints from before."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from numbers import Real

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from ..errors import InputError

__all__ = ["FiniteHook", "NonFiniteError", "non_finite", "refuse_non_finite"]

_TOGETHER = 10  # steps after which several processes compare what they saw


class NonFiniteError(InputError, FloatingPointError):
    """A loss, a weight or another state of a training is NaN or infinite; the message has the step."""


def _tensors(content, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for i, value in enumerate(content):
            yield from _tensors(value, f"{name}[{i}]")


def _is_finite(value: Tensor) -> bool:
    if not value.numel() or not (value.is_floating_point() or value.is_complex()):
        return True
    if value.is_complex() or value.is_sparse or value.is_quantized:
        return bool(value.isfinite().all())
    low, high = torch.aminmax(value)  # one pass, no mask
    return bool(low.isfinite() & high.isfinite())


def non_finite(content, name: str = "", allowed: Container[str] = ()) -> list[str]:
    """Names of the tensors in nested containers that hold NaN or an infinity.

    Args:
        content: mappings and sequences of tensors; anything else counts as finite.
        name: of `content`, before those of its parts.
        allowed: names that are left out, as those of masks.
    """
    return [key for key, value in _tensors(content, name) if key not in allowed and not _is_finite(value)]


def refuse_non_finite(runner, checkpoint: Mapping) -> None:
    """Look at the weights and states of a checkpoint that is about to be written.

    Raises:
        NonFiniteError: one of them is NaN or infinite, and was not so before the first step.
    """
    states = {key: checkpoint.get(key) for key in ("state_dict", "ema_state_dict", "optimizer")}
    scaled = hasattr(runner.optim_wrapper, "loss_scaler")  # its gradients are infinite now and then
    for i, state in enumerate(checkpoint.get("process_states", ())):
        states |= {f"buffers of process {i}": state["buffers"]}
        states |= {} if scaled else {f"gradients of process {i}": state["gradients"]}
    allowed = runner.infinite | {f"module.{name}" for name in runner.infinite}
    for part, state in states.items():
        if bad := non_finite(state, allowed=allowed):
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise NonFiniteError(_ended(runner, f"{bad[0]}{more} ({part}) is not finite, and no checkpoint is written"))


def _ended(runner, what: str) -> str:
    """The message of a training that has left the finite numbers: what was seen, what is left, what to do."""
    hook = runner.checkpoint_hook
    last = (hook and hook.last_whole) or runner.resumed_from
    return (
        f"step {runner.iter + 1}: {what}; "
        + (f"the last finite checkpoint is {last}" if last else "no checkpoint was saved before")
        + ". Likely causes: a learning rate that is too high (or no warm-up, no `clip_grad`), float16 where "
        "bfloat16 would do, samples with values that are not finite or without any label that counts"
    )


@HOOKS.register_module()
class FiniteHook(Hook):
    """Ends a training whose loss has not been finite for some steps on end.

    A loss that is NaN makes every weight NaN, and none comes back; only with loss scaling are such steps left out.
    The value is one that MMEngine's log has already brought from the GPU. Of several processes all end at the same
    step, since they compare every tenth one.

    Args:
        patience: steps on end.

    Raises:
        NonFiniteError: at the last of these steps.
    """

    priority = "ABOVE_NORMAL"

    def __init__(self, patience: int = 5):
        self.patience, self.count = patience, 0

    def before_train(self, runner) -> None:
        """Count anew."""
        self.count = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Look at the loss of a step."""
        loss = (outputs or {}).get("loss", 0.0)
        step = runner.iter + 1
        loss = loss.item() if isinstance(loss, Tensor) and loss.numel() == 1 else loss
        if not isinstance(loss, Real):
            return
        if math.isfinite(loss):
            self.count = 0
        else:
            self.count += 1
            if self.count == 1:
                runner.logger.warning(f"the loss of step {step} is {float(loss)}")
        longest = self.count
        if get_world_size() > 1:
            if step % _TOGETHER:
                return
            total = torch.tensor(longest)
            all_reduce(total, "max")
            longest = int(total)
        if longest >= self.patience:
            raise NonFiniteError(_ended(runner, f"the loss has not been finite for the last {longest} steps"))
