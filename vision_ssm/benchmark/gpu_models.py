"""Backbones on a GPU beside timm's: inference and training steps in bfloat16, their memory, the share of the scans."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import set_fused_attn, use_fused_attn

from ..ops import gpu
from .copies import over_copies
from .gpu_ops import in_one_line
from .meter import Meter, Rotation, copies_needed, time_calls
from .peers import Absent, load_mamba_ssm
from .traffic import size

__all__ = ["CASES", "MODELS", "run", "scan_share", "zoo"]

MODELS = (
    "vim_tiny_patch16_224",
    "vmamba_tiny_s1l8",
    "local_vmamba_tiny",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
)
_SCANS = ("vision_ssm::selective_scan", "vision_ssm::selective_scan_backward")
_LARGE = 1248


class Contestant:
    """A model with random weights, and what one call of it does: a forward pass in bfloat16 autocast, or a training
    step with AdamW. Memory formats are the model's own, as timm creates it."""

    def __init__(
        self,
        meter: Meter,
        name: str,
        batch: int,
        training: bool,
        side: int = 224,
        prepare: Callable[[nn.Module], nn.Module] = lambda model: model,
    ):
        before = meter.allocated()
        torch.manual_seed(0)
        fixed = timm.models.get_pretrained_cfg_value(name, "fixed_input_size")
        model = timm.create_model(name, **(dict(img_size=side) if fixed else {})).to(meter.device)
        self.model = prepare(model).train(training)
        self.training = training
        count = copies_needed(batch * 3 * side**2 * 4, meter.cache_bytes)
        self.images = [torch.randn(batch, 3, side, side, device=meter.device) for _ in range(count)]
        self.labels = torch.arange(batch, device=meter.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4) if training else None
        self.calls = Rotation(self.step if training else self.infer, self.images)
        self.calls()  # makes what stays: the optimizer's state
        before += size(self.images[1:])  # here for the clock only
        self.stays = meter.allocated() - before
        self.peak = meter.peak(self.calls) - before  # all that a call takes, weights and images included

    def infer(self, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images)

    def step(self, images: torch.Tensor) -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = F.cross_entropy(self.model(images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def graphed(self, meter: Meter) -> Callable[[], object]:
        """Inference as a CUDA graph, the copy of an image to its input included."""
        static = self.images[0].clone()
        replay = meter.graph(lambda: self.infer(static))

        def call(images: torch.Tensor) -> None:
            static.copy_(images)
            replay()

        return Rotation(call, self.images)


Makers = dict[str, Callable[[], Contestant]]


def _compare(
    meter: Meter, makers: Makers, batch: int, rounds: int, seconds: float, graphs: bool = False
) -> dict[str, object]:
    """Times and memory of contestants in turns."""
    found: dict[str, dict] = dict(peak_mib={}, stays_mib={}, absent={})
    runs: dict[str, Callable[[], object]] = {}
    for name, make in makers.items():
        try:
            contestant = make()
        except Absent as reason:
            found["absent"][name] = str(reason)
            continue
        except Exception as error:
            found["absent"][name] = in_one_line(error)
            meter.empty_cache()
            continue
        runs[name] = contestant.calls
        found["peak_mib"][name], found["stays_mib"][name] = contestant.peak / 2**20, contestant.stays / 2**20
        if graphs:
            try:
                runs[f"{name}, graph"] = contestant.graphed(meter)
            except RuntimeError as error:
                found["absent"][f"{name}, graph"] = in_one_line(error)
    times = time_calls(meter, runs, rounds, seconds) if runs else {}
    rates = {name: batch / (1e-3 * t["median"]) for name, t in times.items()}
    return dict(times_ms=times, images_per_second=rates, **found)


def zoo(
    meter: Meter,
    rounds: int,
    seconds: float,
    batch: int,
    training: bool,
    models: Sequence[str] | None = None,
    side: int = 224,
) -> dict[str, object]:
    """Times and memory of `models` (`MODELS`), inference or a training step of a batch of square images."""
    makers = {name: functools.partial(Contestant, meter, name, batch, training, side) for name in models or MODELS}
    graphs = batch == 1 and not training
    return dict(batch=batch, side=side) | _compare(meter, makers, batch, rounds, seconds, graphs)


def _large(meter: Meter, rounds: int, seconds: float, batch: int, training: bool) -> dict[str, object]:
    """Vim beside DeiT with attention that is fused (and never stored) and with attention that is written out."""

    def with_attention(fused: bool) -> Contestant:
        before = use_fused_attn()
        set_fused_attn(fused)  # models look at it when they are made
        try:
            return Contestant(meter, "deit_tiny_patch16_224", batch, training, _LARGE)
        finally:
            set_fused_attn(bool(before))

    makers = {
        "vim_tiny_patch16_224": lambda: Contestant(meter, "vim_tiny_patch16_224", batch, training, _LARGE),
        "deit_tiny_patch16_224, fused attention": lambda: with_attention(True),
        "deit_tiny_patch16_224, attention written out": lambda: with_attention(False),
    }
    return dict(batch=batch, side=_LARGE) | _compare(meter, makers, batch, rounds, seconds)


def _against_copies(meter: Meter, rounds: int, seconds: float, model: str) -> dict[str, object]:
    """A training step beside that of the same model over mamba_ssm's kernel, with a copy of the map for each path."""
    batch = 128

    def over_mamba_ssm() -> Contestant:
        scan = load_mamba_ssm()
        return Contestant(meter, model, batch, True, prepare=lambda made: over_copies(made, scan))

    makers = {
        model: lambda: Contestant(meter, model, batch, True),
        f"{model} over mamba_ssm with copies": over_mamba_ssm,
    }
    return dict(batch=batch, side=224) | _compare(meter, makers, batch, rounds, seconds)


def _is_kernel(event) -> bool:
    on_device = event.device_type == torch.autograd.DeviceType.CUDA
    return on_device and not getattr(event, "is_user_annotation", False)


def kernel_names() -> set[str]:
    """The package's Triton kernels."""
    sources = Path(gpu.__file__).parent.glob("*.py")
    return {name for file in sources for name in re.findall(r"^@triton\.jit\ndef (\w+)", file.read_text(), re.M)}


def scan_share(events: Sequence, names: set[str], steps: int) -> dict[str, object]:
    """How much of the device's time the scans take, from a profile's averages, in milliseconds a step.

    `share` is that of our kernels; `share_of_operators` also counts what else runs inside the two operators, such as
    conversions and sums.

    Args:
        events: with `key`, `device_type`, and `self_device_time_total` and `device_time_total` in microseconds.
        names: of our kernels.
        steps: that were profiled.
    """
    per_step = lambda microseconds: 1e-3 * microseconds / steps  # noqa: E731
    kernels = sorted((e for e in events if _is_kernel(e)), key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in kernels)
    ours = sum(e.self_device_time_total for e in kernels if e.key in names)
    operators = sum(e.device_time_total for e in events if e.key in _SCANS)
    return dict(
        total_ms=per_step(total),
        our_kernels_ms=per_step(ours),
        operators_ms=per_step(operators),
        share=ours / total if total else None,
        share_of_operators=operators / total if total else None,
        longest_kernels_ms={e.key[:80]: per_step(e.self_device_time_total) for e in kernels[:20]},
    )


def _share(meter: Meter, rounds: int, seconds: float) -> dict[str, object]:
    name, batch, steps = "vmamba_tiny_s1l8", 128, 3
    contestant = Contestant(meter, name, batch, True)
    with meter.profiled() as profile:
        for _ in range(steps):
            contestant.calls()
    shares = scan_share(profile.key_averages(), kernel_names(), steps)
    return dict(model=name, batch=batch, side=224, steps=steps, **shares)


_partial = functools.partial
# name: (what it is, how to measure it with (meter, rounds, seconds))
CASES: dict[str, tuple[str, Callable[..., dict]]] = {
    "inference_b128": ("inference, batch 128", _partial(zoo, batch=128, training=False)),
    "inference_b1": ("inference, batch 1", _partial(zoo, batch=1, training=False)),
    "training_b128": ("training step, batch 128", _partial(zoo, batch=128, training=True)),
    "training_b1": ("training step, batch 1", _partial(zoo, batch=1, training=True)),
    "large_inference": ("inference at 1248x1248, batch 8", _partial(_large, batch=8, training=False)),
    "large_training": ("training step at 1248x1248, batch 4", _partial(_large, batch=4, training=True)),
    "scan_share": ("scans in a training step", _share),
    "copies_vmamba": (
        "training step against copies, batch 128", _partial(_against_copies, model="vmamba_tiny_s1l8"),
    ),
    "copies_vim": (
        "training step against copies, batch 128", _partial(_against_copies, model="vim_tiny_patch16_224"),
    ),
}  # fmt: skip


def run(meter: Meter, names: Sequence[str], rounds: int = 20, seconds: float = 30.0) -> Iterator[dict]:
    """One result for each case of `names`, as soon as it is there; with "error" where it failed."""
    for name in names:
        label, measure = CASES[name]
        try:
            result = measure(meter, rounds, seconds)
        except Exception as error:
            result = dict(error=in_one_line(error))
        yield dict(case=name, label=label) | result
        meter.empty_cache()
