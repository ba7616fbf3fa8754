"""Selective scans on a GPU beside their peers: checked against ours, then timed in turns, with peak memory and the
share of the bandwidth that they reach."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .cases import CASES, Case, Problem, make_problem, matches
from .meter import Meter, Rotation, time_calls
from .peers import Absent, Contestant, contestants
from .prediction import predicted_ms
from .traffic import moved_backward, moved_forward, must_move, roofline, size

__all__ = ["TOLERANCES", "deviations", "in_one_line", "run"]

# Largest difference from ours over our largest value, of the output and of a gradient. Both sides round their results
# to the dtype, peers also the step sizes and the sequences that they copy.
TOLERANCES = {torch.bfloat16: (2e-2, 5e-2), torch.float16: (4e-3, 2e-2), torch.float32: (1e-4, 1e-3)}
# Contestants that also run as CUDA graphs: the others start thousands of kernels.
_GRAPHED = ("triton", "mamba_ssm")


def deviations(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each result, relative to our largest value; NaN where either is not finite."""
    found = {}
    for name, mine in ours.items():
        mine, other = mine.float(), theirs[name].float()
        found[name] = float((other - mine).abs().max() / mine.abs().max().clamp(min=1e-30))
    return found


def in_one_line(error: Exception) -> str:
    """What went wrong, short enough for a result file."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _tolerance(case: Case, name: str) -> float:
    return TOLERANCES[case.dtype][0 if name == "y" else 1]


class _Entry:
    """One case and pass: its contestants, and what is found of them."""

    def __init__(self, meter: Meter, problem: Problem, backward: bool):
        self.meter, self.problem, self.case, self.backward = meter, problem, problem.case, backward
        self.taking_part: dict[str, Contestant] = {}
        self.found: dict[str, dict] = dict(peak_mib={}, deviation={}, absent={}, failed={}, notes={})

    def gather(self, peers: str | None) -> None:
        """Make the contestants, and leave out those that are absent or compute something else."""
        ours = None
        for name, make in contestants(self.problem, self.meter.cache_bytes, self.backward):
            if ours is not None and not matches(name, peers):
                self.found["absent"][name] = "not asked for"
                continue
            try:
                contestant = make()
                if ours is None:
                    ours = contestant.results(self.backward)
                else:
                    self._compare(name, ours, contestant)
                if name in self.found["failed"]:
                    continue
                self._memory(name, contestant)
            except Absent as reason:
                self.found["absent"][name] = str(reason)
            except Exception as error:  # a peer's trouble is not ours: it is told, and the others go on
                if ours is None:
                    raise
                self.found["absent"][name] = in_one_line(error)
                self.meter.empty_cache()
            else:
                self.taking_part[name] = contestant

    def _compare(self, name: str, ours: dict[str, Tensor], contestant: Contestant) -> None:
        found = deviations(ours, contestant.results(self.backward))
        self.found["deviation"][name] = found
        wrong = {n: d for n, d in found.items() if not d <= _tolerance(self.case, n)}
        if wrong:
            parts = ", ".join(f"{n} by {d:.1e} (tolerance {_tolerance(self.case, n):.0e})" for n, d in wrong.items())
            self.found["failed"][name] = f"differs from ours in {parts}"

    def _memory(self, name: str, contestant: Contestant) -> None:
        before = self.meter.allocated()
        peak = self.meter.peak(lambda: contestant.run(self.backward, contestant.sets[0]))
        self.found["peak_mib"][name] = (peak - before) / 2**20
        self.found["notes"][name] = contestant.notes | dict(copies_of_inputs=len(contestant.sets))

    def time(self, rounds: int, seconds: float) -> dict[str, dict]:
        """Time the contestants in turns, ours and mamba_ssm also as CUDA graphs that call once with each set."""
        runs: dict[str, Callable[[], object]] = {}
        inside = {}
        for name, contestant in self.taking_part.items():
            runs[name] = Rotation(lambda inputs, c=contestant: c.run(self.backward, inputs), contestant.sets)
        for name in [name for name in self.taking_part if name in _GRAPHED]:
            try:
                runs[f"{name}, graph"] = self.meter.graph(runs[name].once_each)
                inside[f"{name}, graph"] = len(self.taking_part[name].sets)
            except RuntimeError as error:
                self.found["absent"][f"{name}, graph"] = in_one_line(error)
                self.meter.empty_cache()
        return time_calls(self.meter, runs, rounds, seconds, calls_inside=inside)


def _measure(
    meter: Meter, problem: Problem, backward: bool, copy_rate: float, rounds: int, seconds: float, peers: str | None
) -> dict:
    case = problem.case
    entry = _Entry(meter, problem, backward)
    entry.gather(peers)
    times = entry.time(rounds, seconds)
    steps = moved_forward(case, backward)
    moved = {"forward": steps, "backward": moved_backward(case)} if backward else {"forward": steps}
    total = sum(sum(part.values()) for part in moved.values())
    least = must_move(size(problem.inputs.values()), size([problem.gradient]), backward)
    ours = next(iter(entry.taking_part))
    best = times.get(f"{ours}, graph", times[ours])["median"]
    return dict(
        ours=ours,
        times_ms=times,
        roofline={name: roofline(least, t["median"], copy_rate) for name, t in times.items()},
        bytes=dict(must_move=least, ours=total, steps=moved),
        bandwidth_of_ours=roofline(total, best, copy_rate),
        predicted_ms=predicted_ms(case, backward),
        tolerance=dict(zip(("y", "gradients"), TOLERANCES[case.dtype], strict=True)),
        **entry.found,
    )


def run(
    meter: Meter,
    names: Sequence[str],
    copy_rate: float,
    rounds: int = 30,
    seconds: float = 10.0,
    peers: str | None = None,
    cases: Sequence[Case] = CASES,
) -> Iterator[dict]:
    """One result for each case and pass, as soon as it is there; with "error" where ours itself failed.

    Args:
        meter: the device.
        names: of the cases.
        copy_rate: bytes a second of a copy, measured in the same run.
        rounds: turns of each contestant.
        seconds: limit of each case and pass.
        peers: shell patterns of the peers that take part, separated by commas; all by default.
        cases: where the names are looked up.
    """
    for case in cases:
        if case.name not in names:
            continue
        problem = make_problem(case, meter.device)
        for backward in (False, True):
            try:
                result = _measure(meter, problem, backward, copy_rate, rounds, seconds, peers)
            except Exception as error:
                result = dict(error=in_one_line(error))
            yield case.describe() | dict(what="forward+backward" if backward else "forward") | result
            meter.empty_cache()
