"""The small networks, as the tests of this folder build and feed them."""

import functools

import pytest
import timm
import torch
import torch.nn as nn

from vision_ssm import medical
from vision_ssm.medical import DenseNetwork

# MedMamba classifies images: it passes the tests of the backbones.
SMALL = [
    name for name in medical.model_names("*_test") if isinstance(timm.create_model(name, device="meta"), DenseNetwork)
]
each_network = pytest.mark.parametrize("name", SMALL)

SIDES = {2: (64, 96), 3: (16, 32, 16)}
# Those that are made for one size, or need more: on CPUs, bfloat16 convolutions of 2x2x2 voxels go wrong in PyTorch.
SIDES_OF = {
    "segmamba_test": (48, 48, 48),
    "umamba_2d_test": (16, 24),
    "umamba_3d_test": (12, 12, 12),
    "mamba_nd_3d_test": (32, 32, 32),
    "swin_unet_weak_test": (64, 64),
    "nnmamba_seg_test": (48, 48, 48),
    "nnmamba_nnunet_test": (48, 48, 64),  # at 48x48x48 float32 gradients are 0.6 % from those of float64
    "nnmamba_cls_test": (48, 48, 48),
    "nnmamba_landmark_test": (48, 48, 48),
}
FRAMES = {"vivim_test": 5}  # of the networks for video
SIZED = ("umamba_2d_test", "umamba_3d_test", "mamba_nd_3d_test", "swin_unet_weak_test")  # take one size alone


@functools.cache
def on_meta(name: str) -> nn.Module:
    """A network without memory, not to be changed."""
    return timm.create_model(name, device="meta")


def create(name: str, seed: int = 0, **kwargs) -> nn.Module:
    """A network with the weights of a seed, for evaluation; every norm has a scale of its own, so that none hides."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **kwargs).eval()
    for key, parameter in model.named_parameters():
        if "norm" in key:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    _see_one_batch(model, volumes(name, channels=model.in_chans))
    return model


def _see_one_batch(model: nn.Module, x: torch.Tensor) -> None:
    """Batch norms that have seen nothing normalise nothing, and products of what they let through overflow."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(x)
    for norm, before in zip(norms, momentum, strict=True):
        norm.eval().momentum = before


def smallest_sides(name: str) -> tuple[int, ...]:
    """Where few voxels do no harm."""
    model = on_meta(name)
    sides = SIDES_OF.get(name, SIDES[model.dims])
    return (16, 16, 32) if model.dims == 3 and max(sides) >= 48 else sides


def volumes(
    name: str, batch: int = 2, channels: int | None = None, sides: tuple[int, ...] | None = None
) -> torch.Tensor:
    """The same random input of a network in every test."""
    model = on_meta(name)
    sides = sides or SIDES_OF.get(name, SIDES[model.dims])
    frames = (FRAMES[name],) if name in FRAMES else ()
    shape = batch, *frames, channels or model.in_chans, *sides
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def logits(output: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs at every resolution."""
    return output if isinstance(output, list) else [output]


def random_sum(output: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """A loss whose gradients are neither tiny nor alike."""
    generator = torch.Generator().manual_seed(2)
    return sum((y.float() * torch.randn(y.shape, generator=generator)).sum() for y in logits(output))


def step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Full-resolution output and gradients of one training step."""
    model.zero_grad()
    output = model(x)
    random_sum(output).backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return logits(output)[0].detach(), gradients


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to the expected one's."""
    return ((found.float() - expected).norm() / expected.norm()).item()
