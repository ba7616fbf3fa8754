"""Measuring on a GPU: time by events, peak memory, copy bandwidth, and inputs that no cache still holds."""

import contextlib
import math
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import torch

from .timing import interleaved, machine

__all__ = ["Meter", "Rotation", "copies_needed", "gpu_machine", "time_calls"]

T = TypeVar("T")


def copies_needed(set_bytes: int, cache_bytes: int) -> int:
    """Sets of inputs that together take twice the cache: the one used longest ago is then out of it."""
    return max(1, math.ceil(2 * cache_bytes / set_bytes))


class Rotation(Generic[T]):
    """Calls a function with the next of several values each time."""

    def __init__(self, function: Callable[[T], object], values: Sequence[T]):
        self.function, self.values, self.turn = function, values, 0

    def __call__(self) -> object:
        value = self.values[self.turn % len(self.values)]
        self.turn += 1
        return self.function(value)

    def once_each(self) -> None:
        """One call with each value."""
        for value in self.values:
            self.function(value)


class Meter:
    """The current CUDA device as a measuring instrument."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        """Raises RuntimeError, saying what is missing, where nothing can be measured."""
        if torch.version.cuda is None:
            raise RuntimeError(f"this PyTorch ({torch.__version__}) is built without CUDA")
        if not torch.cuda.is_available():
            raise RuntimeError(f"PyTorch {torch.__version__} finds no NVIDIA GPU")
        self.cache_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size
        square = torch.ones(256, 256, device=self.device, dtype=torch.bfloat16)
        square @ square  # the library's workspace is then part of no measured peak
        torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Time of the work that `run` issues, by events on the current stream."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)

    def allocated(self) -> int:
        """Bytes of the tensors that exist."""
        return torch.cuda.memory_allocated()

    def peak(self, run: Callable[[], object]) -> int:
        """Most bytes that tensors took while `run` ran, those from before included."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def empty_cache(self) -> None:
        """Return unused memory, so that one contestant's leftovers do not crowd the next."""
        torch.cuda.empty_cache()

    def copy_rate(self) -> float:
        """Bytes a second, read and written, of a large copy on the device: the ceiling of what moves bytes only."""
        free, _ = torch.cuda.mem_get_info()
        source = torch.empty(min(2**31, free // 4), dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        times = interleaved({"copy": lambda: target.copy_(source)}, rounds=20, clock=self.seconds)
        return 2 * source.numel() / (1e-3 * times["copy"]["median"])

    def graph(self, run: Callable[[], object]) -> Callable[[], object]:
        """`run` as a CUDA graph: its kernels without the host between them.

        Raises:
            RuntimeError: it does what a graph cannot record.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    @contextlib.contextmanager
    def profiled(self) -> Iterator[torch.profiler.profile]:
        """Record the device's kernels and the operators that started them."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            yield profile
            torch.cuda.synchronize()


def time_calls(
    meter: Meter,
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    sample: float = 5e-3,
    calls_inside: Mapping[str, int] | None = None,
) -> dict[str, dict[str, float]]:
    """Median, fastest and slowest time of a call in milliseconds, contestants in turns.

    In its turn a contestant is called often enough to fill `sample` seconds, 50 times at most, so that the start from
    an idle device weighs little. `calls_inside` names contestants of which one call is several.
    """
    inside = {name: (calls_inside or {}).get(name, 1) for name in contestants}
    repeats, runs = {}, {}
    for name, run in contestants.items():
        run()
        repeats[name] = max(1, min(50, round(sample / max(meter.seconds(run), 1e-9))))
        runs[name] = _repeated(run, repeats[name])
    times = interleaved(runs, rounds, seconds, clock=meter.seconds)
    return {
        name: {key: t[key] / (repeats[name] * inside[name]) for key in ("median", "fastest", "slowest")}
        | dict(rounds=t["rounds"], calls=repeats[name] * inside[name])
        for name, t in times.items()
    }


def _repeated(run: Callable[[], object], count: int) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(count):
            run()

    return repeated


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _triton() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def gpu_machine() -> dict[str, object]:
    """What a figure depends on. In a tree without git, `VISION_SSM_COMMIT` names the commit."""
    about = torch.cuda.get_device_properties(Meter.device)
    host = machine()
    return dict(
        gpu=about.name,
        compute_capability=f"{about.major}.{about.minor}",
        multiprocessors=about.multi_processor_count,
        memory_gib=round(about.total_memory / 2**30, 1),
        l2_mib=round(about.L2_cache_size / 2**20, 1),
        driver=_driver(),
        cuda=torch.version.cuda,
        triton=_triton(),
    ) | (host | dict(commit=host["commit"] or os.environ.get("VISION_SSM_COMMIT")))
