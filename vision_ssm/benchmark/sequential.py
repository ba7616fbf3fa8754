"""The layers' selective scans computed one step after another, as published; all else stays as it is."""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import ssm
from ..ops import scan_tokens, use_backend

__all__ = ["our_reference", "over_sequences", "scanned_by"]


@contextlib.contextmanager
def scanned_by(scan: Callable[..., Tensor]) -> Iterator[None]:
    """Inside this context every `SelectiveSSM` scans by `scan`, which has the signature of `scan_tokens`."""
    before = ssm.scan_tokens
    ssm.scan_tokens = scan
    try:
        yield
    finally:
        ssm.scan_tokens = before


def our_reference(*args, **kwargs) -> Tensor:
    """`scan_tokens` on the `reference` backend; convolutions keep theirs."""
    with use_backend("reference"):
        return scan_tokens(*args, **kwargs)


def over_sequences(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`scan_tokens` over mamba_ssm's `selective_scan_ref`: one call for each path, on copies in its order.

    The returned function raises ValueError for paths that skip steps (-1 in the tables), which its peer cannot do.
    """

    def scan(
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_weight: Tensor | None = None,
        tables: Tensor | None = None,
        out_tokens: int | None = None,
        softplus: bool = True,
        merge: bool = True,
    ) -> Tensor:
        if tables is not None and tables.min() < 0:
            raise ValueError("a path with steps of no token cannot be scanned as a copy")
        if dt_weight is not None:
            dt = torch.einsum("bktr,kdr->bktd", dt, dt_weight)
        paths = []
        for k in range(dt.shape[1]):
            read, write = (None, None) if tables is None else tables[:, k].long()
            along = _Along(k, read)
            y = reference(
                along(u), along(dt), A[k], along.states(B), along.states(C), None if D is None else D[k].float(), None,
                None if dt_bias is None else dt_bias[k].float(), softplus,
            ).transpose(1, 2)  # fmt: skip
            if write is not None:
                tokens = u.shape[2] if out_tokens is None else out_tokens
                y = y.new_zeros(y.shape[0], tokens, y.shape[2]).index_add_(1, write, y)
            paths.append(y)
        y = sum(paths).unsqueeze(1) if merge else torch.stack(paths, 1)
        return y if z is None else y * F.silu(z)

    return scan


class _Along:
    """Takes path k out of (batch, K or 1, tokens, ...), in the order in which it reads."""

    def __init__(self, path: int, read: Tensor | None):
        self.path, self.read = path, read

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, K or 1, tokens, channels) to (batch, channels, steps)."""
        return self._take(x).transpose(1, 2).contiguous()

    def states(self, x: Tensor) -> Tensor:
        """(batch, K, tokens, groups, d_state) to (batch, groups, d_state, steps); one group has no axis of its own."""
        x = self._take(x).permute(0, 2, 3, 1).contiguous()
        return x.squeeze(1)

    def _take(self, x: Tensor) -> Tensor:
        x = x[:, min(self.path, x.shape[1] - 1)]
        return x if self.read is None else x[:, self.read]
