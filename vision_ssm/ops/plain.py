"""Selective scan in plain PyTorch: the sequential definition (`reference`) and a vectorised form (`chunked`).

Both work on any device and float dtype, keep the state in float32 at least, and share one analytic adjoint. They
take the arguments of the operator `vision_ssm::selective_scan` (see `selective_scan.py`):

    u [b, k | 1, t, d]   dt [b, k, t, d | r]   A [k, d, n]   B, C [b, k, t, g, n]   D, dt_bias [k, d]
    dt_weight [k, d, r]   z [b, k | 1, t_out, d]   tables [2, k, s], int32

with batch b, paths k, tokens t, steps s, channels d, states n, rank r and groups g.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "forward_chunked", "forward_sequential", "gate", "readable"]

# (decay, inputs), both [s, ...], to the states of h[t] = decay[t] * h[t - 1] + inputs[t]
Recurrence = Callable[[Tensor, Tensor], Tensor]


def sequential(decay: Tensor, inputs: Tensor) -> Tensor:
    """States of the linear recurrence, one step after another."""
    h, states = torch.zeros_like(inputs[0]), []
    for decay_t, input_t in zip(decay, inputs, strict=True):
        h = decay_t * h + input_t
        states.append(h)
    return torch.stack(states)


def chunked(decay: Tensor, inputs: Tensor) -> Tensor:
    """States of the linear recurrence; all chunks advance together.

    Decays are only multiplied: dividing by a cumulative decay, as the cumsum form does, overflows.
    """
    steps, chunk = len(decay), chunk_length(len(decay))
    decay, inputs = (in_chunks(x, chunk, fill) for x, fill in ((decay, 1.0), (inputs, 0.0)))
    local, products = [inputs[:, 0]], [decay[:, 0]]
    for t in range(1, chunk):
        local.append(torch.addcmul(inputs[:, t], decay[:, t], local[-1]))
        products.append(decay[:, t] * products[-1])
    local, products = torch.stack(local, 1), torch.stack(products, 1)
    states = local + products * carries(products[:, -1], local[:, -1]).unsqueeze(1)
    return states.flatten(0, 1)[:steps]


def chunk_length(steps: int) -> int:
    """Below sqrt(steps): a step of every chunk costs more than a carry from one chunk to the next."""
    return max(1, math.isqrt(steps) // 4)


def in_chunks(x: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    """[s, ...] to [chunks, chunk, ...], the last chunk filled up."""
    missing = -len(x) % chunk
    if missing:
        x = torch.cat([x, x.new_full((missing, *x.shape[1:]), fill)])
    return x.unflatten(0, (-1, chunk))


def carries(decay: Tensor, state: Tensor) -> Tensor:
    """The state that enters each chunk, from every chunk's total decay and its own end state."""
    h, states = torch.zeros_like(state[0]), []
    overflown = ~decay.isfinite()  # a state of zero stays zero all the same; elsewhere its derivative must remain
    for decay_c, overflown_c, state_c in zip(decay, overflown, state, strict=True):
        states.append(h)
        h = torch.addcmul(state_c, decay_c.masked_fill(overflown_c & (h == 0), 0.0), h)
    return torch.stack(states)


def accumulation(x: Tensor) -> Tensor:
    """To float32, or float64 where the input is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widened(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """All in float64 where any of them is: PyTorch's products take one dtype."""
    if not any(x is not None and x.dtype == torch.float64 for x in tensors):
        return tensors
    return tuple(x if x is None else x.double() for x in tensors)


def readable(tables: Tensor | None) -> bool:
    """Whether entries can be looked up: no tracer, transform or device synchronisation is in the way."""
    return (
        type(tables) is Tensor
        and tables.device.type == "cpu"
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and not torch._C._functorch.is_functorch_wrapped_tensor(tables)
    )


def _may_miss(tokens: Tensor) -> bool:
    """Whether some steps may have no token."""
    return not readable(tokens) or bool((tokens < 0).any())


def _rows(tokens: Tensor, count: int, paths: int) -> Tensor:
    """For each step and path, the row of its token among `paths` runs of `count` tokens; [s * k]."""
    first = torch.arange(len(tokens), device=tokens.device) * count if paths > 1 else 0
    return (tokens.T.long() + first).flatten()


def take(x: Tensor, tokens: Tensor | None) -> Tensor:
    """[b, k | 1, t, ...] to [s, b, k, ...]: the value at each step, zero at pads."""
    x = accumulation(x)
    if tokens is None:
        return x.movedim(2, 0)
    rows = x.flatten(1, 2).index_select(1, _rows(tokens.clamp(min=0), x.shape[2], x.shape[1]))
    rows = rows.unflatten(1, (tokens.shape[1], len(tokens))).transpose(0, 1)
    if not _may_miss(tokens):
        return rows
    real = (tokens >= 0).T.reshape(tokens.shape[1], 1, len(tokens), *[1] * (x.dim() - 3))
    return torch.where(real, rows, 0.0)  # a product would let NaN pass


def put(y: Tensor, tokens: Tensor | None, out_tokens: int) -> Tensor:
    """The inverse of `take`: [s, b, k, ...] added into [b, k, out_tokens, ...]."""
    if tokens is None:
        return y.movedim(0, 2)
    # One more row of each path receives what has no token.
    rows = _rows(torch.where(tokens < 0, out_tokens, tokens), out_tokens + 1, len(tokens))
    out = y.new_zeros((y.shape[1], len(tokens) * (out_tokens + 1), *y.shape[3:]))
    y = y.transpose(0, 1).flatten(1, 2)
    if y.device.type == "cpu":
        out = out.index_add(1, rows, y)
    else:  # index_add has no fixed order of sums on a GPU
        out = out.transpose(0, 1).index_put((rows,), y.transpose(0, 1), accumulate=True).transpose(0, 1)
    return out.unflatten(1, (len(tokens), out_tokens + 1))[:, :, :-1]


class Sequences(NamedTuple):
    """The inputs of the recurrence in the order of the steps, in accumulation precision."""

    u: Tensor  # [s, b, k | 1, d]
    dt: Tensor  # as given, [s, b, k, d | r]
    before_softplus: Tensor  # [s, b, k, d]
    delta: Tensor  # [s, b, k, d]
    A: Tensor  # [k, d, n]
    B: Tensor  # [s, b, k, g, n]
    C: Tensor

    def per_channel(self, x: Tensor) -> Tensor:
        """[s, b, k, g, n] to [s, b, k, d, n]"""
        return x if x.shape[3] == 1 else x.repeat_interleave(self.A.shape[1] // x.shape[3], dim=3)


def sequences(u, dt, A, B, C, dt_bias, dt_weight, tables, softplus) -> Sequences:
    read = None if tables is None else tables[0]
    u, dt, B, C = (take(x, read) for x in (u, dt, B, C))
    x = dt if dt_weight is None else torch.einsum("sbkr,kdr->sbkd", dt, accumulation(dt_weight))
    x = x if dt_bias is None else x + accumulation(dt_bias)
    return Sequences(u, dt, x, F.softplus(x) if softplus else x, accumulation(A), B, C)


def output(y: Tensor, u: Tensor, D, z, tables, out_tokens: int, merge: bool, dtype: torch.dtype):
    """y [s, b, k, d] with skip, in token order, merged and gated; also before the gate."""
    if D is not None:
        y = y + accumulation(D) * u
    y = put(y, None if tables is None else tables[1], out_tokens)
    ungated = y.sum(1, keepdim=True) if merge else y
    y = ungated if z is None else ungated * F.silu(accumulation(z))
    return y.to(dtype).contiguous(), ungated.contiguous()


def gate(dy: Tensor, z: Tensor, ungated: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of `ungated`, and of `z` from that of ungated * silu(z); in accumulation precision."""
    z, dy = accumulation(z), accumulation(dy)
    sigmoid = torch.sigmoid(z)
    silu = z * sigmoid
    dz = dy * ungated * (sigmoid + silu * (1 - sigmoid))
    return dy * silu, dz.sum(1, keepdim=True) if z.shape[1] < dz.shape[1] else dz


def forward_sequential(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge):
    """The recurrence as defined, step by step: (y, last_state [b, k, d, n], y before the gate)."""
    s = sequences(u, dt, A, B, C, dt_bias, dt_weight, tables, softplus)
    h, y = torch.zeros((), dtype=s.A.dtype, device=s.A.device), []
    for u_t, delta_t, B_t, C_t in zip(s.u, s.delta, s.per_channel(s.B), s.per_channel(s.C), strict=True):
        h = torch.exp(delta_t.unsqueeze(-1) * s.A) * h + (delta_t * u_t).unsqueeze(-1) * B_t
        y.append((h * C_t).sum(-1))
    y, ungated = output(torch.stack(y), s.u, D, z, tables, out_tokens, merge, u.dtype)
    return y, h.contiguous(), ungated


def _scan_chunks(s: Sequences) -> tuple[Tensor, Tensor]:
    """Outputs [s, b, k, d] and the last state [b, k, d, n], keeping the states of one step of every chunk.

    A first pass finds each chunk's end state, the carries follow, and a second pass runs from the right states. The
    decay of a chunk is exp(A * sum of delta), which may underflow to zero without harm.
    """
    steps, chunk = len(s.delta), chunk_length(len(s.delta))
    # [chunk, chunks, ...]; at a filled-up step delta is zero, so nothing changes
    u, delta, B, C = (
        in_chunks(x, chunk).transpose(0, 1) for x in (s.u, s.delta, s.per_channel(s.B), s.per_channel(s.C))
    )

    def advance(h: Tensor | None, t: int) -> Tensor:
        inputs = (delta[t] * u[t]).unsqueeze(-1) * B[t]
        # in place: fresh memory costs more than the arithmetic
        return inputs if h is None else torch.addcmul(inputs, (delta[t].unsqueeze(-1) * s.A).exp_(), h)

    h = None
    for t in range(chunk):
        h = advance(h, t)
    h = carries(torch.exp(delta.sum(0).unsqueeze(-1) * s.A), h)
    y = []
    for t in range(chunk):
        h = advance(h, t)
        y.append((h * C[t]).sum(-1))
    return torch.stack(y, 1).flatten(0, 1)[:steps], h[-1]


def forward_chunked(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, out_tokens, softplus, merge):
    """As `forward_sequential`, in a few times sqrt(s) vectorised steps."""
    s = sequences(u, dt, A, B, C, dt_bias, dt_weight, tables, softplus)
    y, h = _scan_chunks(s)
    y, ungated = output(y, s.u, D, z, tables, out_tokens, merge, u.dtype)
    return y, h.contiguous(), ungated


def backward(recurrence: Recurrence, dy, d_last_state, u, dt, A, B, C, D, dt_bias, dt_weight, tables, softplus):
    """Gradients of (u, dt, A, B, C, D, dt_bias, dt_weight) from that of the ungated output, by the adjoint scan

    g[t] = C[t] dy[t] + decay[t + 1] g[t + 1].
    """
    s = sequences(u, dt, A, B, C, dt_bias, dt_weight, tables, softplus)
    B_, C_ = s.per_channel(s.B), s.per_channel(s.C)
    decay = torch.exp(s.delta.unsqueeze(-1) * s.A)
    h = recurrence(decay, (s.delta * s.u).unsqueeze(-1) * B_)
    dy = take(dy, None if tables is None else tables[1]).expand(*h.shape[:-1])
    into = dy.unsqueeze(-1) * C_
    if d_last_state is not None:
        into = torch.cat([into[:-1], into[-1:] + d_last_state])
    next_decay = torch.cat([decay[1:], torch.ones_like(decay[:1])])
    g = recurrence(next_decay.flip(0), into.flip(0)).flip(0)

    through_B, through_decay = (g * B_).sum(-1), g * decay * torch.cat([torch.zeros_like(h[:1]), h[:-1]])
    d_delta = through_B * s.u + (through_decay * s.A).sum(-1)
    if softplus:
        d_delta = d_delta * torch.sigmoid(s.before_softplus)
    du = through_B * s.delta if D is None else through_B * s.delta + accumulation(D) * dy
    dA = (through_decay * s.delta.unsqueeze(-1)).sum((0, 1))
    dB = (g * (s.delta * s.u).unsqueeze(-1)).unflatten(3, (B.shape[3], -1)).sum(4)
    dC = (h * dy.unsqueeze(-1)).unflatten(3, (C.shape[3], -1)).sum(4)
    d_dt, d_weight = d_delta, None
    if dt_weight is not None:
        d_dt = torch.einsum("sbkd,kdr->sbkr", d_delta, accumulation(dt_weight))
        d_weight = torch.einsum("sbkd,sbkr->kdr", d_delta, s.dt)

    def to_tokens(gradient: Tensor, like: Tensor) -> Tensor:
        gradient = put(gradient, None if tables is None else tables[0], like.shape[2])
        return gradient.sum(1, keepdim=True) if like.shape[1] < gradient.shape[1] else gradient

    du, d_dt, dB, dC = (to_tokens(x, like) for x, like in ((du, u), (d_dt, dt), (dB, B), (dC, C)))
    dD = (dy * s.u).sum((0, 1))
    return du, d_dt, dA, dB, dC, dD, d_delta.sum((0, 1)), d_weight
