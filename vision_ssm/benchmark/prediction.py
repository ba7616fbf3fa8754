"""Scan times predicted before any GPU was at hand, to be put beside what is measured.

A scan takes the longest of three times: of its bytes, of its warp instructions and of its exponentials, at the rates
that an H200 was expected to reach. Instructions were counted in compiled prototypes of the kernels; their spread over
tile shapes gives the range. The model knows no latency, so it says nothing about launches that leave the GPU idle.
"""

from .cases import Case
from .traffic import moved_backward, moved_forward

__all__ = ["predicted_ms"]

BYTES = 4.3e12  # a second
INSTRUCTIONS = 132 * 4 * 1.755e9  # of a warp: one on each of four schedulers a multiprocessor and cycle
EXPONENTIALS = 132 * 16 * 1.755e9
# Instructions of a lane for each token and channel of a path, by states: (fewest, most).
_FORWARD = {16: (155, 180), 1: (50, 77)}
_BACKWARD = {16: (570, 750), 1: (90, 134)}
_TWO_PASSES = 1.76  # a scan in segments, relative
_SHORTEST = 0.01  # milliseconds below which latency decides


def _scan(case: Case, moved: dict[str, int], instructions: float, exponentials: int) -> float:
    values = case.batch * case.tokens * case.channels * case.path_count
    passes = _TWO_PASSES if any("segments" in name for name in moved) else 1.0
    lanes = 32
    return 1e3 * max(
        sum(moved.values()) / BYTES,
        passes * values * instructions / lanes / INSTRUCTIONS,
        passes * values * exponentials / EXPONENTIALS,
    )


def predicted_ms(case: Case, backward: bool) -> list[float] | None:
    """[fastest, slowest] of the forward pass, or with `backward` of both; None where the model says nothing."""
    if case.d_state not in _FORWARD:
        return None
    exponentials = case.d_state + 1 + case.gate
    times = [_scan(case, moved_forward(case, backward), count, exponentials) for count in _FORWARD[case.d_state]]
    if backward:
        back = [_scan(case, moved_backward(case), count, exponentials) for count in _BACKWARD[case.d_state]]
        times = [sum(pair) for pair in zip(times, back, strict=True)]
    return times if times[0] >= _SHORTEST else None
