"""More states than a program holds in registers: blocks of states scan as paths of their own, and add up."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..visits import remember

__all__ = ["join_gradients", "join_states", "split", "split_states"]


def _by_block(x: Tensor, blocks: int, path: int) -> Tensor:
    """The last dimension, states, in `blocks` parts beside dimension `path`; filled up with zeros."""
    size = -(-x.shape[-1] // blocks)
    x = F.pad(x, (0, size * blocks - x.shape[-1])).unflatten(-1, (blocks, size))
    return x.movedim(-2, path + 1).flatten(path, path + 1)


def _joined(x: Tensor, blocks: int, path: int, d_state: int) -> Tensor:
    """The inverse of `_by_block`."""
    return x.unflatten(path, (-1, blocks)).movedim(path + 1, -2).flatten(-2)[..., :d_state]


def split(blocks: int, u, dt, A, B, C, D, dt_bias, dt_weight, tables) -> tuple[Tensor | None, ...]:
    """The same arguments for `blocks` times as many paths; the first block of a path has its skip."""

    def repeated(x: Tensor | None, path: int) -> Tensor | None:
        return None if x is None else x.repeat_interleave(blocks, path)

    if tables is not None:
        with torch.inference_mode(False):  # nothing is remembered of inference tensors
            tables = remember(repeated(tables, 1), tables)
    if D is not None:
        D = torch.stack([D, *[torch.zeros_like(D)] * (blocks - 1)], 1).flatten(0, 1)
    return (
        u if u.shape[1] == 1 else repeated(u, 1),
        repeated(dt, 1),
        _by_block(A, blocks, 0),
        _by_block(B, blocks, 1),
        _by_block(C, blocks, 1),
        D,
        repeated(dt_bias, 0),
        repeated(dt_weight, 0),
        tables,
    )


def split_states(blocks: int, states: Tensor) -> Tensor:
    """[b, k, d, n] to [b, k blocks, d, n / blocks]"""
    return _by_block(states, blocks, 1)


def join_states(blocks: int, states: Tensor, d_state: int) -> Tensor:
    """[b, k blocks, d, n / blocks] to [b, k, d, n], in memory [b, k, n, d]"""
    return _joined(states, blocks, 1, d_state).transpose(2, 3).contiguous().transpose(2, 3)


def join_gradients(blocks: int, inputs: int, d_state: int, du, d_dt, dA, dB, dC, dD, d_bias, d_weight) -> tuple:
    """Gradients of the arguments of `split`; `inputs` are the sequences of u."""

    def summed(x: Tensor | None, path: int) -> Tensor | None:
        return None if x is None else x.unflatten(path, (-1, blocks)).sum(path + 1)

    return (
        du if inputs == 1 else summed(du, 1),
        summed(d_dt, 1),
        _joined(dA, blocks, 0, d_state),
        _joined(dB, blocks, 1, d_state),
        _joined(dC, blocks, 1, d_state),
        dD.unflatten(0, (-1, blocks))[:, 0],
        summed(d_bias, 0),
        summed(d_weight, 0),
    )
