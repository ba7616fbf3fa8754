"""What is known of a token table: whether it has pads, whether a token comes twice.

The GPU kernels leave out what a table does not need. Finding out costs a sort and a synchronisation, so the answer is
kept for the tables that this package made. Others are looked at in every call: their memory may change behind
autograd's version counter (NumPy's arrays, DLPack, `.data`, inference tensors).
"""

from collections.abc import MutableMapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .checks import OUT_OF_RANGE

__all__ = ["Visits", "know", "remember", "visits"]


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
    """One synchronisation, whatever the device."""
    if order.numel() == 0:
        raise ValueError(OUT_OF_RANGE)
    order = order.sort(dim=1).values
    fresh = torch.ones_like(order, dtype=torch.bool)
    fresh[:, 1:] = order[:, 1:] != order[:, :-1]
    real = order >= 0
    distinct, met = (fresh & real).sum(1), real.sum(1)
    facts = met.min(), (met - distinct).max(), distinct.min(), order.max(), order.min()
    fewest, repeated, least, highest, lowest = torch.stack([fact.long() for fact in facts]).tolist()
    if lowest < -1:
        raise ValueError(OUT_OF_RANGE)
    return Visits(pads=fewest < order.shape[1], once=repeated == 0, distinct=least, highest=highest)


class _Known(NamedTuple):
    state: tuple[int, int] | None
    own: bool  # made by this package: none other changes its memory
    rows: dict[int, Visits]


# Beside the tensors, not on them: what is known must not travel with copies and pickles.
_known: MutableMapping[Tensor, _Known] = WeakTensorKeyDictionary()
_NOTHING = _Known(None, False, {})
_UNKNOWN = Visits(pads=True, once=False, distinct=-1, highest=-1)


def _state(tables: Tensor) -> tuple[int, int]:
    """Changes with the content, as far as PyTorch sees changes."""
    return tables._version, tables.data_ptr()


def _capturing(tables: Tensor) -> bool:
    """Whether a CUDA graph is recorded, which cannot wait for an answer: what was seen last holds."""
    return tables.is_cuda and torch.cuda.is_current_stream_capturing()


def _row(tables: Tensor, row: int) -> Visits:
    if tables.is_inference():  # changes of an inference tensor leave no trace
        return _UNKNOWN if _capturing(tables) else _look_up(tables[row])
    known, state, capturing = _known.get(tables, _NOTHING), _state(tables), _capturing(tables)
    current = known.state == state
    if current and row in known.rows and (known.own or capturing):
        return known.rows[row]
    if capturing:
        return _UNKNOWN  # the kernels can do without
    found = _look_up(tables[row])
    _known[tables] = _Known(state, current and known.own, (known.rows if current else {}) | {row: found})
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
    """`tables`, made by this package, of which the same is known as of `like`, an equal tensor."""
    return tables if tables.is_inference() else know(tables, [_row(like, row) for row in range(len(like))])


def know(tables: Tensor, rows: Sequence[Visits]) -> Tensor:
    """`tables`, made by this package, of whose rows so much is known."""
    _known[tables] = _Known(_state(tables), True, dict(enumerate(rows)))
    return tables
