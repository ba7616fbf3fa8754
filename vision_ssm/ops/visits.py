"""What is known of a token table: whether it has pads, whether a token comes twice.

Kernels leave out what a table does not need. Finding out costs a sort, and on a GPU a synchronisation, so the answer
is kept on the tensor; `scan_tables` knows it from the start.
"""

from typing import NamedTuple

import torch
from torch import Tensor

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


def _known(tables: Tensor) -> dict:
    # Changes of an inference tensor leave no trace, so what is known of it is not kept.
    return {} if tables.is_inference() else tables.__dict__.setdefault("_vision_ssm_visits", {})


def _row(tables: Tensor, row: int) -> Visits:
    known = _known(tables)
    key = row, 0 if tables.is_inference() else tables._version
    if key not in known:
        known[key] = _look_up(tables[row])
    return known[key]


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
        for row in range(len(like)):
            _known(tables)[row, tables._version] = _row(like, row)
    return tables
