"""Fair timing: contestants take turns within each round, and medians are compared."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch

__all__ = ["interleaved", "machine"]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    seconds: float = 60.0,
    twice: bool = False,
    clock: Callable[[Callable[[], object]], float] = _seconds,
) -> dict[str, dict[str, float]]:
    """Median, fastest and slowest time of each contestant in milliseconds.

    Every round runs each contestant once, so that drift of the machine meets all of them. `twice` runs it two times in
    its turn: the figures are then those of the second call, as in a network that calls an operator again and again,
    and "cold" is the median of the first, which finds its code, threads and memory displaced by the others. A
    contestant that would use more than its share of `seconds` sits out rounds, but runs three times at least. `clock`
    runs a contestant and returns the seconds that it took.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    cold: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    share = seconds / len(contestants)
    for turn in range(rounds):
        for name, run in contestants.items():
            if turn >= 3 and sum(times[name]) + sum(cold[name]) > share:
                continue
            if twice:
                cold[name].append(clock(run))
            times[name].append(clock(run))
    return {
        name: dict(median=1e3 * statistics.median(t), fastest=1e3 * min(t), slowest=1e3 * max(t), rounds=len(t))
        | (dict(cold=1e3 * statistics.median(cold[name])) if twice else {})
        for name, t in times.items()
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The source tree's commit, marked where files differ from it."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode:
            return None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def machine() -> dict[str, object]:
    """What a figure depends on: processor, threads, versions, commit."""
    from .. import __version__
    from ..ops import available_backends, cpu

    return dict(
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        instruction_set=cpu.library().vssm_isa().decode() if cpu.available() else None,
        backends=available_backends(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        timm=timm.__version__,
        vision_ssm=__version__,
        commit=_commit(),
        date=time.strftime("%Y-%m-%d"),
    )
