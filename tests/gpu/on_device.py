"""Scans on a device, held against the oracle on the CPU or, where that would take too long, against float64 there."""

import torch
from ops import oracle
from ops.scan_cases import FLOAT32, operator, results
from torch import Tensor

from vision_ssm.ops import use_backend

__all__ = ["FLOAT32_GPU", "check", "compare", "float64", "moved"]

# A GPU's exp2 is off by two units in the last place, and its sums run in another order.
FLOAT32_GPU = {name: 10 * limit for name, limit in FLOAT32.items()}


def moved(values: dict, device: torch.device) -> dict:
    """The same arguments on a device, with the same strides."""

    def move(x):
        if not isinstance(x, Tensor):
            return x
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)

    return {name: move(x) for name, x in values.items()}


def compare(ours: dict, expected: dict, tolerance: dict[str, float]) -> None:
    """Hold results of `scan_cases.results` against others, which may lie elsewhere."""
    wrong = []
    for name, value in ours.items():
        error = oracle.error(value.cpu(), expected[name].cpu())
        if not error <= tolerance[name]:
            wrong.append(f"{name} is off by {error:.1e}, allowed are {tolerance[name]:.0e}")
    assert not wrong, "; ".join(wrong)


def check(device: torch.device, tensors: dict, options: dict, tolerance: dict[str, float] = FLOAT32_GPU) -> None:
    """Hold outputs and gradients against the oracle, which runs on the CPU."""
    ours = results(operator, moved(tensors, device), moved(options, device))
    for name, value in ours.items():
        assert value.device == device
        assert name == "last_state" or value.dtype == tensors.get(name, tensors["u"]).dtype
    compare(ours, results(oracle.scan, tensors, options), tolerance)


def float64(tensors: dict, options: dict) -> dict[str, Tensor]:
    """Outputs and gradients by the plain backend in float64, where the tensors are."""
    with use_backend("chunked"):
        return results(operator, {name: x.double() for name, x in tensors.items()}, options)
