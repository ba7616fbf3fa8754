"""Host side of the convolution kernels."""

import torch
from torch import Tensor

from .. import plain
from .conv_kernels import conv_backward_filter, conv_backward_input, conv_forward
from .launch import launch

__all__ = ["backward", "forward"]

_ROWS, _COLUMNS, _WARPS = 16, 128, 4
_TILES = 16  # tiles of a program that sums gradients of the filters


def _arguments(x: Tensor, weight: Tensor, bias: Tensor | None, tables: Tensor | None, mirrored: list[int]) -> tuple:
    x = x if x.stride(-1) == 1 else x.contiguous()
    bias = bias if bias is None or bias.stride(-1) == 1 else bias.contiguous()
    batch, path, token, _ = x.stride()
    return (
        x,
        (batch, 0 if x.shape[1] == 1 else path, token),
        weight,
        weight.stride(),
        bias,
        0 if bias is None else bias.stride(0),
        tables,
        sum(bool(flag) << k for k, flag in enumerate(mirrored)),
        x.shape[2],
    )


def _programs(batch: int, paths: int, steps: int, channels: int, rows: int) -> int:
    return batch * paths * -(-steps // rows) * -(-channels // _COLUMNS)


def forward(x, weight, bias, tables, mirrored, silu, y) -> Tensor:
    """y of `vision_ssm::causal_conv1d`, written into `y` [b, k, s, d]."""
    batch, paths, steps, channels = y.shape
    launch(
        conv_forward, _programs(batch, paths, steps, channels, _ROWS), x,
        *_arguments(x, weight, bias, tables, mirrored), y, y.stride()[:3], steps, channels, paths,
        ROWS=_ROWS, COLUMNS=_COLUMNS, WIDTH=weight.shape[2], SILU=silu, warps=_WARPS,
    )  # fmt: skip
    return y


def backward(dy, x, weight, bias, tables, mirrored, silu) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (x, weight, bias); those of the filters in float32."""
    batch, inputs, tokens, channels = x.shape
    paths, _, width = weight.shape
    steps = dy.shape[2]
    arguments = _arguments(x, weight, bias, tables, mirrored)
    d_before = x.new_empty(batch, paths, steps, channels)
    parts = -(-steps // (_ROWS * _TILES))
    d_filter = x.new_empty(batch, paths, parts, width + 1, channels, dtype=torch.float32)
    launch(
        conv_backward_filter, _programs(batch, paths, steps, channels, _ROWS * _TILES), x,
        *arguments, dy, dy.stride(), d_before, d_filter, steps, channels, paths,
        ROWS=_ROWS, TILES=_TILES, COLUMNS=_COLUMNS, WIDTH=width, SILU=silu, warps=_WARPS,
    )  # fmt: skip
    merged = paths if tables is None and inputs < paths else 1
    wide = torch.float32 if tables is not None else x.dtype
    dx = x.new_empty(batch, paths // merged, steps, channels, dtype=wide)
    launch(
        conv_backward_input, _programs(batch, paths // merged, steps, channels, _ROWS), x,
        d_before, weight, weight.stride(), arguments[-2], dx, steps, channels, paths,
        ROWS=_ROWS, COLUMNS=_COLUMNS, WIDTH=width, PATHS=merged, warps=_WARPS,
    )  # fmt: skip
    if tables is not None:
        dx = plain.put(dx.movedim(2, 0), torch.where(tables < tokens, tables, -1), tokens)
    if inputs < dx.shape[1]:
        dx = dx.sum(1, keepdim=True)
    return dx, d_filter[..., :width, :].sum((0, 2)).transpose(1, 2), d_filter[..., width, :].sum((0, 2))
