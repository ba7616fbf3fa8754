"""Holds fresh parameters against a mean, a deviation and a distribution that are stated in a test.

A line of a table is (pattern of names, mean, deviation, kind). Mean and deviation are texts, known to half a unit of
their last digit; to that comes what a sample of its size may be off. The kinds: "uniform" has an end at sqrt(3)
deviations, "normal" goes on beyond it, "constant" is the mean exactly, and "any" is not looked at.
"""

import math
import re
from collections.abc import Iterator
from decimal import Decimal

import torch

__all__ = ["convolutions", "default_deviation", "holds", "select"]

Line = tuple[str, str, str, str]


def select(model: torch.nn.Module, pattern: str) -> dict[str, torch.Tensor]:
    """The parameters whose names match; after a name, "[1:]" takes a part of the first axis."""
    pattern, _, part = pattern.partition("@")
    found = {k: v.detach() for k, v in model.named_parameters() if re.fullmatch(pattern, k)}
    assert found, f"no parameter matches {pattern}"
    if part:
        first, _, last = part.partition(":")
        found = {k: v[int(first) : int(last) if last else None] for k, v in found.items()}
    return found


def _stated(text: str) -> tuple[float, float]:
    """A number and how far it may be off by its rounding."""
    number = Decimal(text)
    return float(number), 0.5 * 10.0 ** int(number.as_tuple().exponent)


def holds(model: torch.nn.Module, *lines: Line) -> None:
    """Every group of parameters has the mean, the deviation and the kind of distribution of its line."""
    for pattern, mean, deviation, kind in lines:
        values = torch.cat([v.flatten() for v in select(model, pattern).values()]).double()
        (expected, slack), (spread, spread_slack), n = _stated(mean), _stated(deviation), len(values)
        if kind == "constant":
            assert (values == expected).all(), f"{pattern}: not all {mean}"
            continue
        found, found_spread = values.mean().item(), values.std(correction=0).item()
        slack = slack if expected else 0.0
        assert abs(found - expected) <= slack + 5 * spread / math.sqrt(n), f"{pattern}: mean {found:.4f}, not {mean}"
        off = abs(found_spread - spread)
        assert off <= spread_slack + 5 * spread / math.sqrt(2 * n), f"{pattern}: {found_spread:.5f}, not {deviation}"
        furthest = (values - expected).abs().max().item() / found_spread
        if kind == "uniform":
            assert furthest < 2, f"{pattern}: not uniform"
        elif kind == "normal" and n > 500:
            assert furthest > 2, f"{pattern}: not normal"


def convolutions(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The convolutions with their names."""
    for name, module in model.named_modules():
        if re.fullmatch(r"Conv(Transpose)?[23]d", type(module).__name__):
            yield name, module


def default_deviation(weight: torch.Tensor) -> str:
    """The deviation of PyTorch's start of a layer, weight and bias alike: uniform up to fan_in^-0.5."""
    return f"{(3 * weight[0].numel()) ** -0.5:.6f}"
