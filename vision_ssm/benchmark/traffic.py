"""Bytes that a scan must move through device memory, and bytes that our kernels move.

What must move: every input read once and every output written once by the forward pass; the backward pass reads the
inputs again and the output's gradient, and writes the inputs' gradients. Sums over the two passes therefore count the
inputs three times and the output twice. Nothing else is needed: states, projections and path tables could all stay on
the chip.

What our kernels move is listed step by step as `ops/gpu/scan.py` runs them. Rows that several programs of an image
share (u among the paths, B and C among blocks of channels) count once, since the second program finds them in the
cache. Scratch memory that a program writes and reads back itself is left out for the same reason.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..ops.gpu.plan import CHUNK, plan
from .cases import Case

__all__ = ["moved_backward", "moved_forward", "must_move", "roofline", "size"]


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)


def must_move(inputs: int, output: int, backward: bool) -> int:
    """Bytes that must move, for inputs and an output of so many bytes; with `backward`, both passes together."""
    return 3 * inputs + 2 * output if backward else inputs + output


def roofline(moved: int, milliseconds: float, copy_rate: float) -> float:
    """The share of the time in which a copy at `copy_rate` bytes a second would have moved these bytes."""
    return moved / (1e-3 * milliseconds) / copy_rate


@dataclass(frozen=True)
class _Sizes:
    """Bytes of what the kernels of a case read and write, each once."""

    map: int  # one value a token and channel: u, z, y
    parts: int  # one a token, channel and path
    rows: int  # dt of low rank, B and C as float32 rows
    narrow: int  # the same as the projection stores them
    narrow_states: int  # B and C alone
    states: int  # one state a sequence, float32
    sums: int  # one value a channel and sequence, float32
    checkpoints: int
    tables: int

    @classmethod
    def of(cls, case: Case) -> "_Sizes":
        e, tokens = case.dtype.itemsize, case.batch * case.tokens
        sequences = case.batch * case.path_count
        steps = tokens * case.path_count
        state = sequences * case.d_state * case.channels * 4
        return cls(
            map=tokens * case.channels * e,
            parts=steps * case.channels * e,
            rows=steps * (case.rank + 2 * case.d_state) * 4,
            narrow=steps * (case.rank + 2 * case.d_state) * e,
            narrow_states=steps * 2 * case.d_state * e,
            states=state,
            sums=sequences * case.channels * 4,
            checkpoints=state * -(-case.tokens // CHUNK),
            tables=2 * case.path_count * case.tokens * 4 if case.paths else 0,
        )


def _segments(case: Case, kernel: str) -> tuple[int, int]:
    """(segments of a sequence, blocks of channels) that the launch plan of a kernel makes."""
    sequences = case.batch * case.path_count
    chosen = plan(kernel, sequences, case.tokens, case.channels, case.d_state, case.channels % 2 == 0)
    chunks = -(-case.tokens // CHUNK)
    return -(-chunks // -(-chunks // chosen.segments)), -(-case.channels // chosen.block)


def _rows(case: Case, s: _Sizes) -> int:
    """To bring (dt, B, C) into float32 rows: joined, unless they are one projection's output, and converted."""
    joined = 0 if case.rank else 2 * s.narrow_states
    return joined + (s.narrow + s.rows if case.dtype.itemsize < 4 else 0)


def _scan_inputs(case: Case, s: _Sizes) -> int:
    return s.map + s.rows + (0 if case.rank else s.parts)


def moved_forward(case: Case, training: bool) -> dict[str, int]:
    """Bytes of the forward pass, step by step; `training` also keeps what the backward pass needs."""
    s = _Sizes.of(case)
    segments, _ = _segments(case, "forward")
    moved = {}
    if case.rank:
        moved["projection: x, its rows"] = s.map + s.narrow
    moved["rows to float32"] = _rows(case, s)
    if segments > 1:
        ends = segments * (s.states + s.sums)
        moved["ends of segments: inputs, ends"] = _scan_inputs(case, s) + ends
        moved["carries: ends, carries"] = ends + segments * s.states
        moved["scan: carries"] = segments * s.states
    gated = case.gate and case.path_count == 1
    moved["scan: inputs, tables"] = _scan_inputs(case, s) + s.tables + (s.map if gated else 0)
    moved["scan: outputs of the paths, last state"] = s.parts + s.states
    if training:
        moved["scan: states kept"] = s.checkpoints
        moved["scan: output before the gate"] = s.parts if gated else 0
    if case.path_count > 1:
        moved["sum of the paths: parts, y"] = s.parts + s.map
    return {name: count for name, count in moved.items() if count}


def moved_backward(case: Case) -> dict[str, int]:
    """Bytes of the backward pass, step by step."""
    s = _Sizes.of(case)
    segments, blocks = _segments(case, "backward")
    states = s.rows - (s.rows * case.rank) // (case.rank + 2 * case.d_state)  # gradients of B and C, float32
    moved = {}
    if case.gate:
        moved["gate: dy, z, y before it, gradients"] = 5 * s.map
    moved["rows to float32"] = _rows(case, s)
    if segments > 1:
        ends = segments * (s.states + s.sums)
        moved["ends of segments, both ways"] = 2 * _scan_inputs(case, s) + s.map + ends + segments * s.states
        moved["carries: ends, carries"] = ends + segments * s.states
        moved["scan: carries"] = segments * s.states
    moved["scan: inputs, tables, dy, states kept"] = _scan_inputs(case, s) + s.tables + s.map + s.checkpoints
    moved["scan: gradients of u and dt"] = 2 * s.parts
    moved["scan: gradients of B and C by block"] = blocks * states
    moved["sums over blocks"] = blocks * states + states
    moved["gradients of A, D, bias: parts, sums"] = 2 * segments * (s.states + 2 * s.sums)
    moved["gradients of B and C in their dtype"] = states + s.narrow_states
    if case.path_count > 1:
        moved["sum of the paths: parts, du"] = s.parts + s.map
    if case.rank:
        low = s.narrow - s.narrow_states
        moved["gradients of dt and its weight: copy, products"] = 2 * s.parts + 4 * low
        moved["gradients of the rows: joined, reordered"] = 4 * s.narrow
        moved["projection: gradients of x and weight"] = 2 * s.narrow + 2 * s.map
        moved["sum of both gradients of x"] = 3 * s.map
    return {name: count for name, count in moved.items() if count}
