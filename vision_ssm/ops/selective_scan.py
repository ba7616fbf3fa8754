"""Selective scan (S6), the recurrence under every model of this package, along any path through a grid.

    delta[t] = softplus(dt[t] + dt_bias)
    h[t]     = exp(delta[t] A) h[t-1] + delta[t] B[t] x[t]
    y[t]     = C[t] . h[t] + D x[t]

(Gu and Dao, Mamba, https://arxiv.org/abs/2312.00752, algorithm 2; cross-scan after Liu et al., VMamba,
https://arxiv.org/abs/2401.10166.) Three entry points to one operator, `vision_ssm::selective_scan`:

- `selective_scan`: signature, shapes and meaning of mamba_ssm's function, (batch, channels, length);
- `selective_scan_nd`: channels-last grids, several scan paths;
- `scan_tokens`: the same on flat token axes, where the scan may read one sequence and write another.

A path is a pair of rows in an int32 table: the token read at each step and the token written, -1 for none. The
parameters of all paths are computed once in grid order; the paths are index arithmetic inside the kernels.
"""

from typing import Optional, Tuple  # noqa: UP035 - TorchScript needs the typing forms

import torch
from torch import Tensor

from . import backends
from .checks import check, named
from .scan_operator import decomposed

__all__ = ["scan_tokens", "selective_scan", "selective_scan_nd"]


@torch.jit.ignore
def _run(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],
    z: Optional[Tensor],
    dt_bias: Optional[Tensor],
    dt_weight: Optional[Tensor],
    tables: Optional[Tensor],
    out_tokens: int,
    softplus: bool,
    merge: bool,
) -> Tuple[Tensor, Tensor]:
    tensors = u, dt, A, B, C, D, z, dt_bias, dt_weight
    options = tables, out_tokens, softplus, merge
    if torch.compiler.is_compiling():  # which words errors of the operator in its own way
        check(*tensors, tables, out_tokens, merge)
    if backends.decomposing():
        y, last_state, _, _ = decomposed(*tensors, *options)
        return y, last_state
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, last_state, _, _ = torch.ops.vision_ssm.selective_scan(*tensors, *options, save)
    return y, last_state


def scan_tokens(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    dt_bias: Optional[Tensor] = None,
    dt_weight: Optional[Tensor] = None,
    tables: Optional[Tensor] = None,
    out_tokens: Optional[int] = None,
    softplus: bool = True,
    merge: bool = True,
) -> Tensor:
    """Selective scan of flat token sequences along K paths.

    Args:
        u: (batch, K or 1, tokens, channels), float; 1 shares one sequence among the paths.
        dt: (batch, K, tokens, channels), or (batch, K, tokens, rank) with `dt_weight`.
        A: (K, channels, d_state), real.
        B, C: (batch, K, tokens, groups, d_state); channels are cut into `groups` equal groups.
        D: skip, (K, channels).
        z: gate, (batch, K or 1, out_tokens, channels): the (merged) output is multiplied by silu(z).
        dt_bias: (K, channels), added to dt before the softplus.
        dt_weight: (K, channels, rank), the dt projection, done inside the kernel.
        tables: (2, K, steps), int32: the tokens read and the tokens written at each step, -1 for a zero token or
            none; tokens written several times receive the sum. None: each path reads and writes in order.
        out_tokens: length of the output; the input's by default.
        softplus: apply softplus to dt.
        merge: sum the paths' outputs, else keep them apart.

    Returns:
        (batch, 1 if merge else K, out_tokens, channels), contiguous, in the dtype of `u`. States and sums are float32
        (float64 for float64 input).

    Raises:
        ValueError, TypeError: naming the argument, what it is and what it must be.
    """
    tokens = (u.shape[2] if u.dim() == 4 else 0) if out_tokens is None else out_tokens
    if torch.jit.is_scripting():
        save = torch.is_grad_enabled()
        return torch.ops.vision_ssm.selective_scan(
            u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, tokens, softplus, merge, save
        )[0]
    return _run(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, tokens, softplus, merge)[0]


def selective_scan_nd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_weight: Tensor | None = None,
    tables: Tensor | None = None,
    softplus: bool = True,
    merge: bool = True,
) -> Tensor:
    """Selective scan of a channels-last grid along K paths (see `vision_ssm.scan` for the tables of a path).

    Args:
        x: (batch, *grid, channels) shared by the paths, or (batch, K, *grid, channels).
        dt: (batch, K, *grid, channels), or (batch, K, *grid, rank) with `dt_weight` (K, channels, rank).
        A: (K, channels, d_state). D, dt_bias: (K, channels).
        B, C: (batch, K, *grid, d_state).
        z: gate, (batch, *grid, channels).
        tables: (2, K, steps), int32; None is row-major order for every path.
        softplus: apply softplus to dt + dt_bias.
        merge: sum over the paths, else stack them.

    Returns:
        (batch, *grid, channels), or (batch, K, *grid, channels) without `merge`, in the dtype of `x`.

    Raises:
        ValueError, TypeError: naming the argument, what it is and what it must be.
    """
    if B.dim() < 4:
        raise ValueError(f"`B` is {tuple(B.shape)}: expected (batch, K, *grid, d_state)")
    grid = B.shape[2:-1]
    if x.dim() not in (len(grid) + 2, len(grid) + 3) or x.shape[-len(grid) - 1 : -1] != grid:
        raise ValueError(
            f"`x` is {tuple(x.shape)}: expected (batch, *grid, channels) with the grid of `B`, {tuple(grid)}"
        )
    shared = x.dim() == len(grid) + 2
    u = (x.unsqueeze(1) if shared else x).flatten(2, -2)
    if z is not None:
        if z.shape != (x.shape[0], *grid, x.shape[-1]):
            raise ValueError(f"`z` is {tuple(z.shape)}: expected {(x.shape[0], *grid, x.shape[-1])}")
        z = z.flatten(1, -2).unsqueeze(1)
    for name, value in (("dt", dt), ("C", C)):
        if value.shape[2:-1] != grid:
            raise ValueError(
                f"`{name}` is {tuple(value.shape)}: expected the grid of `B`, {tuple(grid)}, before the last axis"
            )
    args = (
        u, dt.flatten(2, -2), A, B.flatten(2, -2).unsqueeze(3), C.flatten(2, -2).unsqueeze(3),
        D, z, dt_bias, dt_weight, tables, u.shape[2], softplus, merge,
    )  # fmt: skip
    with named({"u": "x"}):
        y, _ = _run(*args)
    return y.unflatten(2, grid).squeeze(1) if merge else y.unflatten(2, grid)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Drop-in for mamba_ssm's `selective_scan_fn`, for real A.

    Args:
        u, delta: (batch, channels, length), any strides.
        A: (channels, d_state).
        B, C: (channels, d_state), (batch, d_state, length) or (batch, groups, d_state, length).
        D, delta_bias: (channels,).
        z: gate, (batch, channels, length): the output is multiplied by silu(z).
        delta_softplus: apply softplus to delta + delta_bias.
        return_last_state: also return the final state, (batch, channels, d_state), float32 (float64 for float64
            input). Gradients flow through it.

    Returns:
        (batch, channels, length) in the dtype of `u`; its memory is channels-last.

    Raises:
        ValueError, TypeError: naming the argument, what it is and what it must be.
    """
    if u.dim() != 3:
        raise ValueError(f"`u` is {tuple(u.shape)}: expected (batch, channels, length)")
    if delta.shape != u.shape:
        raise ValueError(f"`delta` is {tuple(delta.shape)}: expected the shape of `u`, {tuple(u.shape)}")
    if z is not None and z.shape != u.shape:
        raise ValueError(f"`z` is {tuple(z.shape)}: expected the shape of `u`, {tuple(u.shape)}")
    if A.dim() != 2:
        raise ValueError(f"`A` is {tuple(A.shape)}: expected (channels, d_state)")
    batch, channels, length = u.shape

    def grouped(x: Tensor, name: str) -> Tensor:
        """To (batch, 1, length, groups, d_state)."""
        if x.dim() == 2:  # constant over time, one row a channel
            if x.shape[0] != channels:
                raise ValueError(f"`{name}` is {tuple(x.shape)}: expected ({channels}, d_state)")
            return x.expand(batch, 1, length, *x.shape)
        if x.dim() == 3:
            return x.transpose(1, 2)[:, None, :, None]
        if x.dim() == 4:
            return x.permute(0, 3, 1, 2).unsqueeze(1)
        raise ValueError(
            f"`{name}` is {tuple(x.shape)}: expected (channels, d_state), (batch, d_state, length) or "
            "(batch, groups, d_state, length)"
        )

    def one_path(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.unsqueeze(0)

    B, C = grouped(B, "B"), grouped(C, "C")
    if B.shape[3] != C.shape[3]:  # one of them by group, the other by channel
        B, C = (x.repeat_interleave(channels // x.shape[3], 3) if 0 < x.shape[3] < channels else x for x in (B, C))
    args = (
        u.transpose(1, 2).unsqueeze(1), delta.transpose(1, 2).unsqueeze(1), one_path(A), B, C, one_path(D),
        None if z is None else z.transpose(1, 2).unsqueeze(1), one_path(delta_bias), None, None, length,
        delta_softplus, False,
    )  # fmt: skip
    with named({"dt": "delta", "dt_bias": "delta_bias"}):
        y, last_state = _run(*args)
    y = y.squeeze(1).transpose(1, 2)
    return (y, last_state.squeeze(1)) if return_last_state else y
