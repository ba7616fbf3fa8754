"""Backbones beside timm's of the same size, and how their time grows with the image."""

import math
import subprocess
import sys
from collections.abc import Sequence

import timm
import torch
import torch.nn as nn

from .timing import interleaved

__all__ = ["PAIRS", "run_memory", "run_pairs", "run_scaling"]

# (ours, timm's, image side, batch sizes)
PAIRS = (
    ("vim_tiny_patch16_224", "deit_tiny_patch16_224", 224, (1, 8)),
    ("vmamba_tiny_s1l8", "swin_tiny_patch4_window7_224", 224, (1, 8)),
    ("vmamba_tiny_s1l8", "convnext_tiny", 224, (1, 8)),
    ("vim_tiny_patch16_224", "deit_tiny_patch16_224", 1248, (1,)),
)
SCALING = ("vim_tiny_patch16_224", "vmamba_tiny_s1l8", "local_vmamba_tiny", "deit_tiny_patch16_224")
SIDES = (224, 384, 512, 768, 1024)


def _create(name: str, side: int) -> nn.Module:
    fixed = timm.models.get_pretrained_cfg_value(name, "fixed_input_size")
    return timm.create_model(name, **(dict(img_size=side) if fixed else {})).eval()


def _forward(model: nn.Module, batch: int, side: int):
    image = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return lambda: model(image)


@torch.inference_mode()
def run_pairs(rounds: int = 20, seconds: float = 60.0) -> list[dict]:
    """Forward times of each pair, in milliseconds a batch."""
    results = []
    for ours, peer, side, batches in PAIRS:
        models = {name: _create(name, side) for name in (ours, peer)}
        for batch in batches:
            times = interleaved({name: _forward(m, batch, side) for name, m in models.items()}, rounds, seconds)
            ratio = times[ours]["median"] / times[peer]["median"]
            results.append(dict(model=ours, peer=peer, side=side, batch=batch, times_ms=times, ratio=ratio))
    return results


@torch.inference_mode()
def run_scaling(names: Sequence[str] = SCALING, rounds: int = 5, seconds: float = 60.0) -> list[dict]:
    """Forward time by image side, batch 1, and the exponent of its growth with the number of pixels."""
    results = []
    for name in names:
        times = {}
        for side in SIDES:
            call = _forward(_create(name, side), 1, side)
            times[side] = interleaved({name: call}, rounds, seconds / len(SIDES))[name]["median"]
        first, last = SIDES[0], SIDES[-1]
        exponent = math.log(times[last] / times[first]) / math.log((last / first) ** 2)
        results.append(dict(model=name, times_ms=times, exponent=exponent))
    return results


_PEAK = """
import torch, vision_ssm
from vision_ssm.benchmark.apart import reset_peak, status
from vision_ssm.benchmark.models import _create, _forward
torch.set_num_threads({threads})
with torch.inference_mode():
    call = _forward(_create({name!r}, {side}), 1, {side})
    before = status("VmRSS")
    reset_peak()
    call()
    print((status("VmHWM") - before) / 1024)
"""


def run_memory(
    names: Sequence[str] = ("vim_tiny_patch16_224", "deit_tiny_patch16_224"), side: int = 1248
) -> list[dict]:
    """Peak resident memory that one forward pass adds, in MiB, each in its own process. Linux only; elsewhere empty."""
    results = []
    for name in names if sys.platform == "linux" else ():
        code = _PEAK.format(threads=torch.get_num_threads(), name=name, side=side)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        results.append(dict(model=name, side=side, batch=1, peak_mib=float(out.split()[-1])))
    return results
