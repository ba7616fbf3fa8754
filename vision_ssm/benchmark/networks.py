"""The medical networks: beside sequential scans, the share of their mixers, time and memory, sliding windows."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from ..medical import TokenMixer
from .apart import run_apart
from .footprint import RUNS, clock, create_for, measure_network, measure_windows
from .gpu_ops import in_one_line
from .sequential import our_reference, over_sequences, scanned_by
from .timing import interleaved

__all__ = ["CASES", "Settings", "compare_scans", "mixer_share", "run", "windows_of"]

# (network, sides of the volume)
SEQUENTIAL = (("segmamba", (32, 64, 64)), ("umamba_enc_3d", (48, 64, 64)))
SHARES = (("umamba_bot_3d", (96,) * 3), ("segmamba", (96,) * 3))
MEMORY = (
    "umamba_bot_3d",
    "umamba_enc_3d",
    "umamba_v1_enc_3d",
    "lma_unet_3d",
    "segmamba",
    "lightm_unet_3d",
    "nnmamba_seg",
    "mamba_nd_small_btcv",
)
WINDOWS = "umamba_bot_3d", (64,) * 3
CASES = (
    *(f"sequential_{name}" for name, _ in SEQUENTIAL),
    *(f"share_{name}" for name, _ in SHARES),
    *(f"memory_{name}" for name in MEMORY),
    "windows",
)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        device: "cpu" or "cuda".
        patches: of the memory cases; 96 voxels a side by default, 128 on GPUs.
        amp: dtype of autocast of the memory cases and windows; none by default.
        threads: of PyTorch, for the processes that are started.
        rounds, seconds: as in `timing.interleaved`.
        limit_gib: resident memory (on GPUs the tensors') at which a process of a memory case is ended.
        reference: mamba_ssm's `selective_scan_ref`; without it our `reference` backend is the sequential scan.
    """

    device: str = "cpu"
    patches: tuple[tuple[int, int, int], ...] = ()
    amp: str | None = None
    threads: int | None = None
    rounds: int = 3
    seconds: float = 60.0
    limit_gib: float | None = None
    reference: Callable[..., Tensor] | None = None

    @property
    def apart(self) -> dict:
        """What the measurements in processes of their own share."""
        return dict(device=self.device, amp=self.amp, threads=self.threads, limit_gib=self.limit_gib)


def compare_scans(network: str, patch: Sequence[int], settings: Settings) -> dict:
    """Forward times in float32, with this package's scans and with sequential ones in their place.

    Raises:
        RuntimeError: the outputs differ, so that a ratio would mean nothing.
    """
    model, x = _model_and_volume(network, patch, settings.device)
    if settings.reference is None:
        contender, scan = "our reference backend", our_reference
    else:
        contender, scan = "published reference", over_sequences(settings.reference)
    outputs = {}

    def ours() -> None:
        outputs["ours"] = model(x)

    def sequential() -> None:
        with scanned_by(scan):
            outputs["sequential"] = model(x)

    with torch.inference_mode():
        times = interleaved(
            {"ours": ours, contender: sequential}, settings.rounds, settings.seconds, clock=clock(settings.device)
        )
    expected = outputs["sequential"]
    deviation = ((outputs["ours"] - expected).norm() / expected.norm()).item()
    if not deviation < 1e-3:
        raise RuntimeError(f"the outputs differ by {deviation:.1e}, relative")
    return dict(
        network=network, patch=list(patch), contender=contender, times_ms=times, deviation=deviation,
        ratio=times[contender]["median"] / times["ours"]["median"],
    )  # fmt: skip


def mixer_share(network: str, patch: Sequence[int], settings: Settings) -> dict:
    """The fraction of a forward pass in float32 that the token mixers take, norms and copies between layouts included.

    Raises:
        ValueError: the network has none.
    """
    model, x = _model_and_volume(network, patch, settings.device)
    mixers = [module for module in model.modules() if isinstance(module, TokenMixer)]
    if not mixers:
        raise ValueError(f"{network} has no token mixers")
    seconds = clock(settings.device)
    inside: list[float] = []
    for mixer in mixers:
        mixer.forward = _timed(mixer.forward, seconds, inside)
    shares = []

    def forward() -> None:
        inside.clear()
        whole = seconds(lambda: model(x))
        shares.append(sum(inside) / whole)

    with torch.inference_mode():
        times = interleaved({network: forward}, settings.rounds, settings.seconds)
    share = statistics.median(shares[1:])  # the first one warms up
    return dict(network=network, patch=list(patch), layers=len(mixers), share=share, times_ms=times)


def _timed(function: Callable[..., Tensor], seconds: Callable, inside: list[float]) -> Callable[..., Tensor]:
    def timed(x: Tensor) -> Tensor:
        result = []
        inside.append(seconds(lambda: result.append(function(x))))
        return result[0]

    return timed


def _model_and_volume(network: str, patch: Sequence[int], device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = create_for(network, patch).to(device).eval()
    return model, torch.randn(1, model.in_chans, *patch, device=device)


def _memory(network: str, settings: Settings) -> Iterator[dict]:
    default = (96 if settings.device == "cpu" else 128,) * 3
    limits = dict(rounds=settings.rounds, seconds=settings.seconds)
    for patch in settings.patches or [default]:
        runs = {
            what: run_apart(measure_network, network=network, patch=patch, what=what, **limits, **settings.apart)
            for what in RUNS
        }
        yield dict(network=network, patch=list(patch), amp=settings.amp, runs=runs)


def windows_of(side: int, count: int) -> tuple[int, float]:
    """(length, overlap) that cut one axis into exactly `count` windows of `side`, the length a little under two.

    The length is the same for 2, 8 and 32 windows, so that only their overlap differs.
    """
    length = side + 31 * ((side - 1) // 31)  # 31 equal intervals from the first window to the last of 32
    interval = -(-(length - side) // (count - 1))
    return length, 1 - (interval + 0.5) / side  # MONAI rounds the interval down


def _windows(settings: Settings) -> dict:
    """Volumes of 2, 8 and 32 windows that overlap by half, and one volume cut into 2, 8 and 32."""
    network, window = WINDOWS
    side = window[0]
    grown = [(tuple(side * (count + 1) // 2 for count in counts), 0.5) for counts in ((2, 1, 1), (2, 2, 2), (8, 2, 2))]
    same = [((length, *window[1:]), overlap) for length, overlap in (windows_of(side, count) for count in (2, 8, 32))]
    runs = []
    for kind, volumes in (("growing volume", grown), ("same volume", same)):
        for volume, overlap in volumes:
            found = run_apart(
                measure_windows, network=network, window=window, volume=volume, overlap=overlap, **settings.apart
            )
            runs.append(dict(kind=kind, volume=list(volume), overlap=overlap) | found)
    return dict(network=network, window=list(window), amp=settings.amp, runs=runs)


def run(names: Sequence[str], settings: Settings) -> Iterator[dict]:
    """Results of the named cases, one after another; a case that breaks gives its "error"."""
    plans: dict[str, Callable[[], Iterator[dict]]] = {"windows": lambda: iter([_windows(settings)])}
    for name, patch in SEQUENTIAL:
        plans[f"sequential_{name}"] = lambda name=name, patch=patch: iter([compare_scans(name, patch, settings)])
    for name, patch in SHARES:
        plans[f"share_{name}"] = lambda name=name, patch=patch: iter([mixer_share(name, patch, settings)])
    for name in MEMORY:
        plans[f"memory_{name}"] = lambda name=name: _memory(name, settings)
    for name in names:
        try:
            for result in plans[name]():
                yield dict(case=name) | result
        except Exception as error:  # what broke one case is no reason to lose the others
            yield dict(case=name, error=in_one_line(error))
