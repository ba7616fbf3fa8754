"""Launch plans of the Triton kernels: from a table by shape class, never measured at run time.

The same shapes always get the same plan, on every GPU, and so the same order of sums and the same bits.
`tools/gpu/tune_plans.py` measures the candidates and prints the table that it would choose. `VISION_SSM_TRITON_PLAN` or
`use_plan` force parts of a plan: "tile=4 pack=1 segments=8".
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

__all__ = ["CHUNK", "Plan", "plan", "state_blocks", "states_shape", "use_plan"]

CHUNK = 64  # steps between the states that training keeps
_LANES = 32
# Programs of one warp below which a sequence is cut into segments: eight on each of the 132 multiprocessors of a
# large GPU hide the latency of their loads. Segments cost a second pass over the inputs.
_FEW = 1056


@dataclass(frozen=True)
class Plan:
    """How a kernel is launched."""

    tile: int  # steps in registers
    pack: int  # channels of a lane
    segments: int = 1  # parts of a sequence that run side by side
    registers: int | None = None  # most registers a thread may use

    @property
    def block(self) -> int:
        """Channels of a program."""
        return _LANES * self.pack


# (kernel, most states) -> (tile, pack) where the channels fill two lanes' worth, and otherwise.
_TABLE = {
    "forward": (
        (2, (8, 2), (8, 1)),
        (16, (4, 2), (4, 1)),
    ),
    "backward": (
        (2, (8, 2), (8, 1)),
        (4, (4, 2), (8, 1)),
        (16, (4, 1), (4, 1)),
    ),
}

# Of the contexts that are open, in every thread: backward passes run in threads of their own.
_forced: list[dict[str, int]] = []


@functools.lru_cache
def _parse(text: str) -> dict[str, int]:
    names = {field.name for field in fields(Plan)}
    values = {}
    for part in text.split():
        name, _, value = part.partition("=")
        if name not in names or not value.isdigit() or int(value) < 1:
            raise ValueError(f"launch plan {text!r}: expected NAME=NUMBER with a name of {', '.join(sorted(names))}")
        values[name] = int(value)
    return values


@contextlib.contextmanager
def use_plan(text: str) -> Iterator[None]:
    """Force parts of the launch plan inside this context, in every thread: "tile=4 pack=1 segments=8 registers=128".

    Raises:
        ValueError: not of this form.
    """
    forced = dict(_parse(text))
    _forced.append(forced)
    try:
        yield
    finally:
        _forced[:] = [other for other in _forced if other is not forced]


def plan(kernel: str, sequences: int, steps: int, width: int, d_state: int, packable: bool) -> Plan:
    """The plan of a kernel, "forward" or "backward".

    Args:
        sequences: batch times paths times groups.
        steps: of each sequence.
        width: channels of a group.
        d_state: states of a channel.
        packable: whether rows lie so that two channels may share a lane.
    """
    wide, narrow = next((wide, narrow) for most, wide, narrow in _TABLE[kernel] if d_state <= most)
    programs = sequences * -(-width // (2 * _LANES))
    tile, pack = wide if packable and width % (2 * _LANES) == 0 and programs >= _FEW else narrow
    programs = sequences * -(-width // (_LANES * pack))
    chunks = -(-steps // CHUNK)
    segments = 1 if programs >= _FEW else max(1, min(chunks, -(-2 * _FEW // max(programs, 1))))
    chosen = Plan(tile, pack, segments)
    forced = (_forced[-1] if _forced else {}) or _parse(os.environ.get("VISION_SSM_TRITON_PLAN", ""))
    if forced.get("pack", 1) > 1 and not packable:
        forced = {name: value for name, value in forced.items() if name != "pack"}
    chosen = replace(chosen, **forced)
    return replace(chosen, segments=min(chosen.segments, chunks))


def state_blocks(d_state: int) -> int:
    """Parts into which the states of a channel are cut, of at most 16 each."""
    return (d_state + 15) // 16


def states_shape(batch: int, paths: int, steps: int, channels: int, d_state: int) -> tuple[int, int]:
    """Shape of the states kept for the backward pass, (sequences, one every CHUNK steps by state by channel), float32.

    The second dimension is flat: as one of its own, the number of chunks would be fixed by an export where it is 1.
    """
    blocks = state_blocks(d_state)
    chunks = (steps + CHUNK - 1) // CHUNK
    return batch * paths * blocks, chunks * ((d_state + blocks - 1) // blocks) * channels
