"""The operators as their papers define them: float64, one step after another, plain PyTorch under autograd.

Everything here is written from the definitions and imports nothing of the package. The tests hold every backend
against these functions, never one backend against another.
"""

import torch
from torch import Tensor

__all__ = ["conv", "error", "scan"]


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def _rows(tables: Tensor | None, paths: int, tokens: int) -> list[list[int]]:
    return [list(range(tokens))] * paths if tables is None else tables.tolist()


def _sequence(x: Tensor, path: int, tokens: list[int]) -> list[Tensor]:
    """What a path meets in x (batch, K or 1, tokens, ...): one tensor a step, zeros where it meets no token."""
    values = x[:, path if x.shape[1] > 1 else 0].unbind(1)
    return [values[t] if t >= 0 else torch.zeros_like(values[0]) for t in tokens]


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
) -> tuple[Tensor, Tensor]:
    """Selective scan (Gu and Dao, algorithm 2) along tables: (y, last state), arguments as those of `scan_tokens`."""
    u, dt, A, B, C, D, z, dt_bias, dt_weight = map(_double, (u, dt, A, B, C, D, z, dt_bias, dt_weight))
    batch, _, tokens, channels = u.shape
    paths, _, d_state = A.shape
    out_tokens = tokens if out_tokens is None else out_tokens
    read, write = (_rows(None if tables is None else tables[i], paths, tokens) for i in (0, 1))
    nothing = torch.zeros(batch, channels, dtype=torch.float64)
    outputs, last_states = [], []
    for k in range(paths):
        h = torch.zeros(batch, channels, d_state, dtype=torch.float64)
        out = [nothing] * out_tokens
        steps = zip(*(_sequence(x, k, read[k]) for x in (u, dt, B, C)), write[k], strict=True)
        for u_t, dt_t, B_t, C_t, written in steps:
            delta = dt_t if dt_weight is None else dt_t @ dt_weight[k].T
            delta = delta if dt_bias is None else delta + dt_bias[k]
            delta = torch.logaddexp(delta, torch.zeros_like(delta)) if softplus else delta
            B_t, C_t = (x.repeat_interleave(channels // x.shape[1], 1) for x in (B_t, C_t))  # group to channels
            h = torch.exp(delta[..., None] * A[k]) * h + (delta * u_t)[..., None] * B_t
            y = (C_t * h).sum(-1)
            y = y if D is None else y + D[k] * u_t
            if written >= 0:
                out[written] = out[written] + y
        outputs.append(torch.stack(out, 1))
        last_states.append(h)
    y = torch.stack(outputs, 1)
    y = y.sum(1, keepdim=True) if merge else y
    y = y if z is None else y * z * torch.sigmoid(z)
    return y, torch.stack(last_states, 1)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tables: Tensor | None = None,
    mirrored: list[bool] | None = None,
    silu: bool = True,
) -> Tensor:
    """Causal depthwise convolution, arguments as those of `causal_conv1d`: each step looks back over its sequence."""
    x, weight, bias = map(_double, (x, weight, bias))
    paths, _, width = weight.shape
    read = _rows(tables, paths, x.shape[2])
    outputs = []
    for k in range(paths):
        sequence = _sequence(x, k, read[k])
        mirror = mirrored is not None and mirrored[k]
        sequence = sequence[::-1] if mirror else sequence
        out = []
        for step in range(len(sequence)):
            y = torch.zeros_like(sequence[0]) if bias is None else bias[k].expand_as(sequence[0])
            for back in range(min(width, step + 1)):
                y = y + weight[k, :, width - 1 - back] * sequence[step - back]
            out.append(y * torch.sigmoid(y) if silu else y)
        outputs.append(torch.stack(out[::-1] if mirror else out, 1))
    return torch.stack(outputs, 1)


def error(ours: Tensor, reference: Tensor) -> float:
    """max |difference| / max |reference|; NaN, which passes no comparison, where either holds one."""
    assert ours.shape == reference.shape, f"{tuple(ours.shape)}, expected {tuple(reference.shape)}"
    reference = reference.detach().double()
    difference = (ours.detach().double() - reference).abs().max()
    scale = reference.abs().max()
    return float(difference if scale == 0 else difference / scale)
