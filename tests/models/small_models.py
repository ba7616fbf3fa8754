"""The package's small models, as the tests of this folder build and feed them."""

import functools
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn

import vision_ssm

Gradients = dict[str, torch.Tensor | None]  # by parameter, None where backward did not reach

SMALL = vision_ssm.models.model_names("*_test")
SEQUENCE = [name for name in SMALL if name.startswith(("vim", "local_vim"))]
STAGED = [name for name in SMALL if name not in SEQUENCE]

each_model = pytest.mark.parametrize("name", SMALL)
each_sequence_model = pytest.mark.parametrize("name", SEQUENCE)
each_staged_model = pytest.mark.parametrize("name", STAGED)


def create(name: str, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A model with the weights of a seed, for evaluation."""
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs).eval()


@functools.cache
def on_meta(name: str) -> nn.Module:
    """A model without memory, not to be changed."""
    return timm.create_model(name, device="meta")


def images(batch: int = 2, height: int = 64, width: int = 64, channels: int = 3) -> torch.Tensor:
    """The same random images in every test; 64 pixels are what the models of a fixed size are made for."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def random_sum(out: torch.Tensor) -> torch.Tensor:
    """A loss whose gradients are neither tiny nor alike."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return (out.float() * weights).sum()


def gradients(model: nn.Module, loss: torch.Tensor) -> Gradients:
    """The gradient of each parameter; those of an earlier call are dropped."""
    model.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, Gradients]:
    """Output and gradients of one training step."""
    out = model(x)
    return out.detach(), gradients(model, random_sum(out))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to the expected one's."""
    return ((found.float() - expected).norm() / expected.norm()).item()


def assert_same_gradients(found: Gradients, expected: Gradients, tolerance: float = 1e-3) -> None:
    """Every parameter has one, and it is the expected one up to a relative error."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None and found[name] is not None, name
        assert error(found[name], gradient) < tolerance, name
