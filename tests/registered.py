"""All small models of the package, whatever they are for, as tests of what every one owes build and feed them."""

import pytest
import timm
import torch
import torch.nn as nn
from medical import small_networks

from vision_ssm import registry
from vision_ssm.medical import DenseNetwork

NAMES = registry.model_names("*_test")
each_model = pytest.mark.parametrize("name", NAMES)

Output = torch.Tensor | list[torch.Tensor] | tuple[torch.Tensor, ...]


def create(name: str, seed: int = 0, **kwargs) -> nn.Module:
    """A model with the weights of a seed, for evaluation."""
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs).eval()


def inputs(model: nn.Module, batch: int = 2) -> torch.Tensor:
    """Random images, volumes or clips of the smallest size that suits the model."""
    name = model.pretrained_cfg["architecture"]
    sides = (64, 64)
    if isinstance(model, DenseNetwork):
        sides = small_networks.smallest_sides(name)
    frames = (small_networks.FRAMES[name],) if name in small_networks.FRAMES else ()
    return torch.randn(batch, *frames, model.in_chans, *sides, generator=torch.Generator().manual_seed(1))


def outputs(output: Output) -> list[torch.Tensor]:
    """All maps that a model returns."""
    return list(output) if isinstance(output, (list, tuple)) else [output]


def loss(output: Output) -> torch.Tensor:
    """A random sum, whose gradients are neither tiny nor alike."""
    generator = torch.Generator().manual_seed(2)
    return sum(
        (y.float() * torch.randn(y.shape, generator=generator, dtype=torch.float32)).sum() for y in outputs(output)
    )
