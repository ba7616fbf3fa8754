"""FLOP formulas of the operators, for `torch.utils.flop_counter` and for fvcore.

One convention, that of the published tables (Mamba, VMamba, Vim): 9 b t d n + b t d a path for the scan, and one
multiply-add a weight for projections and convolutions. fvcore counts multiply-adds; `FlopCounterMode` counts two
operations for each, so there the projection and the convolution count twice.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from . import causal_conv1d, selective_scan  # noqa: F401 - they register the operators

__all__ = ["conv_flops", "fvcore_handles", "scan_flops"]


def scan_flops(batch: int, paths: int, steps: int, channels: int, d_state: int) -> int:
    """Of a selective scan without its dt projection."""
    return batch * paths * steps * channels * (9 * d_state + 1)


def conv_flops(batch: int, paths: int, steps: int, channels: int, width: int) -> int:
    """Multiply-adds of a causal depthwise convolution."""
    return batch * paths * steps * channels * width


def _scan_counts(u, dt, A, dt_weight, tables) -> tuple[int, int]:
    """(scan, multiply-adds of the dt projection), from shapes."""
    batch, _, tokens, channels = u
    paths, _, d_state = A
    steps = tokens if tables is None else tables[2]
    rank = 0 if dt_weight is None else dt_weight[2]
    return scan_flops(batch, paths, steps, channels, d_state), batch * paths * tokens * channels * rank


@register_flop_formula(torch.ops.vision_ssm.selective_scan)
def _(u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, *_, out_shape=None, **__) -> int:
    scan, projection = _scan_counts(u, dt, A, dt_weight, tables)
    return scan + 2 * projection


@register_flop_formula(torch.ops.vision_ssm.selective_scan_backward)
def _(dy, d_last, u, dt, A, B, C, D, z, dt_bias, dt_weight, tables, *_, out_shape=None, **__) -> int:
    scan, projection = _scan_counts(u, dt, A, dt_weight, tables)
    return 2 * scan + 6 * projection  # the states again and their adjoint; the projection again and two gradients


@register_flop_formula(torch.ops.vision_ssm.causal_conv1d)
def _(x, weight, bias, tables, *_, out_shape=None, **__) -> int:
    steps = x[2] if tables is None else tables[1]
    return 2 * conv_flops(x[0], weight[0], steps, weight[1], weight[2])


@register_flop_formula(torch.ops.vision_ssm.causal_conv1d_backward)
def _(dy, x, weight, bias, tables, *_, out_shape=None, **__) -> int:
    return 6 * conv_flops(x[0], weight[0], dy[2], weight[1], weight[2])


def _sizes(value) -> list[int] | None:
    """Shape of a traced value, None for an absent tensor."""
    kind = value.type()
    return kind.sizes() if isinstance(kind, torch._C.TensorType) else None


def fvcore_handles() -> dict:
    """Handles for `fvcore.nn.FlopCountAnalysis(...).set_op_handle(**fvcore_handles())`."""

    def scan(inputs, outputs) -> int:
        u, dt, A, *_ = map(_sizes, inputs[:3])
        return sum(_scan_counts(u, dt, A, _sizes(inputs[8]), _sizes(inputs[9])))

    def conv(inputs, outputs) -> int:
        x, weight, out = _sizes(inputs[0]), _sizes(inputs[1]), _sizes(outputs[0])
        return conv_flops(x[0], weight[0], out[2], weight[1], weight[2])

    return {"vision_ssm::selective_scan": scan, "vision_ssm::causal_conv1d": conv}
