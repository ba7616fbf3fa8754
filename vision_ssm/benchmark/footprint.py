"""Time and peak memory of one network, or of sliding windows, in this process: `networks` calls them in one of its own.

Memory is that which the network adds: its weights, gradients and optimiser state, activations and work space. On CPUs
it is the peak of the resident set less the one before the network (Linux; None elsewhere), on GPUs that of the tensors.
"""

import contextlib
import inspect
import math
import sys
import time
from collections.abc import Callable, Sequence

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .apart import reset_peak, status
from .timing import interleaved

__all__ = ["RUNS", "clock", "create_for", "measure_network", "measure_windows"]

RUNS = ("forward", "training", "training, recomputing")


def create_for(name: str, patch: Sequence[int]) -> nn.Module:
    """A network for volumes of this size, with random weights.

    Raises:
        ValueError: it takes other volumes.
    """
    known = inspect.signature(type(timm.create_model(name, device="meta"))).parameters
    return timm.create_model(name, **({"input_size": tuple(patch)} if "input_size" in known else {}))


def clock(device: str) -> Callable[[Callable[[], object]], float]:
    """Measures the seconds that a call takes until the device has done its work."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(run: Callable[[], object]) -> float:
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start

    return seconds


class _Memory:
    """Bytes that are added from here on, at most."""

    def __init__(self, device: str):
        self.device = device
        self.known = device == "cuda" or sys.platform == "linux"
        if device == "cuda":
            square = torch.ones(256, 256, device=device)
            square @ square  # the library's workspace is then part of no figure
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif self.known:
            self.before = status("VmRSS")
            reset_peak()

    def peak_mib(self) -> float | None:
        """MiB added at the peak."""
        if self.device == "cuda":
            return (torch.cuda.max_memory_allocated() - self.before) / 2**20
        return (status("VmHWM") - self.before) / 1024 if self.known else None


def _prepare(device: str, threads: int | None, limit_gib: float | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    if device == "cuda" and limit_gib is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib * 2**30 / total))


def _over(limit_gib: float | None) -> str:
    return "more than the GPU's memory" if limit_gib is None else f"more than {limit_gib:g} GiB"


def _autocast(device: str, amp: str | None) -> contextlib.AbstractContextManager:
    return torch.autocast(device, getattr(torch, amp)) if amp else contextlib.nullcontext()


def _full_resolution(output: Tensor | Sequence[Tensor]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _step(network: nn.Module, x: Tensor, amp: str | None) -> Callable[[], None]:
    """A training step: forward, cross-entropy at full resolution, backward, AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    labels = torch.randint(network.num_classes, (len(x), *x.shape[2:]), device=x.device)

    def run() -> None:
        optimizer.zero_grad()
        with _autocast(x.device.type, amp):
            loss = F.cross_entropy(_full_resolution(network(x)).float(), labels)
        loss.backward()
        optimizer.step()

    return run


def _forward(network: nn.Module, x: Tensor, amp: str | None) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), _autocast(x.device.type, amp):
            network(x)

    return run


def measure_network(
    network: str,
    patch: Sequence[int],
    what: str,
    device: str = "cpu",
    amp: str | None = None,
    threads: int | None = None,
    rounds: int = 3,
    seconds: float = 60.0,
    limit_gib: float | None = None,
) -> dict:
    """Time and peak memory of forward passes or training steps on one volume, after one that warms up.

    Args:
        network: its name.
        patch: sides of the volume, in voxels.
        what: one of `RUNS`; "recomputing" is activation checkpointing.
        device: "cpu" or "cuda".
        amp: dtype of autocast, none by default.
        threads: of PyTorch.
        rounds, seconds: as in `timing.interleaved`.
        limit_gib: of the GPU's memory.

    Returns:
        `times_ms` and `peak_mib`; or, with one key, "refused" if the network does not take the size, "stopped" if the
        GPU's memory did not suffice.
    """
    _prepare(device, threads, limit_gib)
    memory = _Memory(device)
    try:
        model = create_for(network, patch).to(device).train(what != "forward")
        model.set_grad_checkpointing(what == "training, recomputing")
        x = torch.randn(1, model.in_chans, *patch, device=device)
        call = (_forward if what == "forward" else _step)(model, x, amp)
        times = interleaved({"call": call}, rounds, seconds, clock=clock(device))["call"]
    except ValueError as error:
        return dict(refused=str(error))
    except torch.OutOfMemoryError:
        return dict(stopped=_over(limit_gib))
    return dict(times_ms=times, peak_mib=memory.peak_mib())


def measure_windows(
    network: str,
    window: Sequence[int],
    volume: Sequence[int],
    overlap: float,
    device: str = "cpu",
    amp: str | None = None,
    threads: int | None = None,
    limit_gib: float | None = None,
) -> dict:
    """Time and peak memory of `SlidingWindows` over one volume, and the number of windows that it took.

    Args and returns are those of `measure_network`, with `windows`, and `volume_mib`: the image and its probabilities,
    which are there however many windows are taken.
    """
    from ..volumes.windows import SlidingWindows

    _prepare(device, threads, limit_gib)
    memory = _Memory(device)
    windows = 0

    def run(x: Tensor) -> Tensor:
        nonlocal windows
        windows += len(x)
        with _autocast(device, amp):
            return model(x)

    try:
        model = create_for(network, window).to(device).eval()
        image = torch.randn(1, model.in_chans, *volume, device=device)
        with torch.inference_mode():
            took = clock(device)(lambda: SlidingWindows(window, overlap)(image, run))
    except ValueError as error:
        return dict(refused=str(error))
    except torch.OutOfMemoryError:
        return dict(stopped=_over(limit_gib))
    return dict(
        windows=windows,
        time_ms=1e3 * took,
        peak_mib=memory.peak_mib(),
        volume_mib=(model.in_chans + model.num_classes) * math.prod(volume) * 4 / 2**20,
    )
