"""What is known of a token table: whether it has pads, whether a token comes twice.

Kernels leave out what a table does not need. Finding out costs a sort, and on a GPU a synchronisation, so the answer
is kept; `scan_tables` knows it from the start.
"""

from collections.abc import MutableMapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .checks import OUT_OF_RANGE

__all__ = ["Visits", "remember", "visits"]


class Visits(NamedTuple):
    """Of one row of tables, (paths, steps)."""

    pads: bool  # some steps have no token
    once: bool  # no path meets a token twice
    distinct: int  # tokens that every path meets, at least
    highest: int  # token

    def all_of(self, tokens: int) -> bool:
        """Whether each path meets each of so many tokens."""
        return self.distinct == tokens

    def exactly(self, tokens: int) -> bool:
        """Whether each path meets each token once, and nothing else."""
        return self.once and not self.pads and self.all_of(tokens)


_IN_ORDER = Visits(pads=False, once=True, distinct=-1, highest=-1)


def _look_up(order: Tensor) -> Visits:
    order = order.cpu().sort(dim=1).values
    if order.numel() == 0 or order.min() < -1:
        raise ValueError(OUT_OF_RANGE)
    fresh = torch.ones_like(order, dtype=torch.bool)
    fresh[:, 1:] = order[:, 1:] != order[:, :-1]
    real = order >= 0
    distinct = (fresh & real).sum(1)
    return Visits(
        pads=not bool(real.all()),
        once=bool((distinct == real.sum(1)).all()),
        distinct=int(distinct.min()),
        highest=int(order.max()),
    )


# Beside the tensors, not on them: what is known must not travel with copies and pickles.
_known: MutableMapping[Tensor, dict[int, tuple[int, Visits]]] = WeakTensorKeyDictionary()
_UNKNOWN = Visits(pads=True, once=False, distinct=-1, highest=-1)


def _row(tables: Tensor, row: int) -> Visits:
    if tables.is_inference():  # changes of an inference tensor leave no trace
        return _look_up(tables[row])
    known = _known.setdefault(tables, {})
    version, found = known.get(row, (-1, _UNKNOWN))
    if version != tables._version:
        if tables.is_cuda and torch.cuda.is_current_stream_capturing():
            return _UNKNOWN  # a graph cannot wait for the answer, and the kernels can do without
        found = _look_up(tables[row])
        known[row] = tables._version, found
    return found


def visits(tables: Tensor | None, row: int, tokens: int) -> Visits:
    """What is known of `tables[row]`, (paths, steps), which holds tokens below `tokens`.

    Raises:
        ValueError: an entry is out of range.
    """
    if tables is None:
        return _IN_ORDER._replace(distinct=tokens)
    found = _row(tables, row)
    if found.highest >= tokens:
        raise ValueError(OUT_OF_RANGE)
    return found


def remember(tables: Tensor, like: Tensor) -> Tensor:
    """`tables`, of which the same is known as of `like`, an equal tensor."""
    if not tables.is_inference():
        _known[tables] = {row: (tables._version, _row(like, row)) for row in range(len(like))}
    return tables
