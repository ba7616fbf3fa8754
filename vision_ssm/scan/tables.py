"""From scan paths to the token tables that the operators take.

Tables are built once for each set of paths, grid and device, and cached. Compilers and exporters, which must not see
a cached tensor from outside their graph, get them from the operator `vision_ssm::scan_tables` instead.
"""

import functools
import math
from collections.abc import Sequence
from typing import List  # noqa: UP035 - TorchScript needs the typing forms

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ..ops.visits import remember
from .path import ScanPath, parse
from .traced import fix_in_trace

__all__ = ["path_text", "scan_tables"]


def path_text(paths: Sequence[ScanPath]) -> str:
    """A set of paths as one string, the form in which modules keep them."""
    return ";".join(map(str, paths))


@functools.lru_cache(maxsize=64)
def _parsed(paths: str) -> tuple[ScanPath, ...]:
    return tuple(map(parse, paths.split(";")))


@functools.lru_cache(maxsize=512)
def _cached(paths: str, grid: tuple[int, ...], in_order: bool, device: torch.device) -> Tensor:
    if math.prod(grid) >= 2**31:
        raise ValueError(f"a grid of {grid} has {math.prod(grid)} tokens: expected fewer than 2^31")
    orders = [(path.order(grid), path.restore(grid)) for path in _parsed(paths)]
    tables = np.full((2, len(orders), max(len(read) for read, _ in orders)), -1, np.int32)
    for k, pair in enumerate(orders):
        for row, order in enumerate(pair):
            tables[row, k, : len(order)] = order
    if in_order:
        tables[0] = np.arange(tables.shape[2])
    # The cache outlives a surrounding inference mode, transform of `torch.func` or dispatch mode.
    with torch.inference_mode(False), torch._C._DisableFuncTorch(), _disable_current_modes():
        tables = torch.from_numpy(tables)
        return remember(tables.to(device, copy=True), tables)


@torch.library.custom_op("vision_ssm::scan_tables", mutates_args=())
def _tables_op(paths: str, grid: Sequence[int], in_order: bool, device: torch.device) -> Tensor:
    tables = _cached(paths, tuple(grid), in_order, device)
    with torch.inference_mode(False):  # nothing is remembered of inference tensors
        return remember(tables.clone(), tables)


@_tables_op.register_fake
def _(paths, grid, in_order, device):
    steps = functools.reduce(torch.sym_max, (path.steps(grid) for path in _parsed(paths)))
    return torch.empty((2, len(_parsed(paths)), steps), dtype=torch.int32, device=device)


@torch.jit.ignore
def _tables(paths: str, grid: List[int], like: Tensor, in_order: bool) -> Tensor:
    if torch.compiler.is_compiling() or isinstance(like, FakeTensor):
        return torch.ops.vision_ssm.scan_tables(paths, grid, in_order, like.device)
    fix_in_trace(grid, "a grid")
    return _cached(paths, tuple(map(int, grid)), in_order, like.device)


def scan_tables(paths: str, grid: List[int], like: Tensor, in_order: bool = False) -> Tensor:
    """Token tables of several paths through a grid, on the device of `like`.

    Args:
        paths: from `path_text`.
        grid: sizes of the one to three axes.
        like: any tensor on the device wanted.
        in_order: the sequences that will be scanned are in the order of the steps already, so step s reads token s.

    Returns:
        (2, paths, steps) int32: tokens read and tokens written at each step, -1 for none. Shorter paths end in pads.

    Raises:
        ValueError: a path does not fit the grid.
    """
    if torch.jit.is_scripting():
        return torch.ops.vision_ssm.scan_tables(paths, grid, in_order, like.device)
    return _tables(paths, grid, like, in_order)
