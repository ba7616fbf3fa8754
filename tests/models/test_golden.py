"""The models compute what the published implementations compute, with weights in the published names.

Beside the numerics this holds the architecture and the checkpoint conversion: every name and shape of an official file
must find its place. The files ending in `zerod` have every skip D at zero: else D u outweighs the state so far that a
wrong scan order would hardly show.
"""

import functools

import parity
import pytest
import timm
import torch

import vision_ssm
from vision_ssm.ops import available_backends, use_backend

MODELS = {
    "vim_tiny": "vim_tiny_patch16_224",
    "vim_tiny_stride8": "vim_tiny_patch16_stride8_224",
    "vmamba_tiny_s1l8": "vmamba_tiny_s1l8",
    "vmamba_tiny_s1l8_zerod": "vmamba_tiny_s1l8",
    "vmamba_vanilla_tiny": "vanilla_vmamba_tiny",
    "localmamba_local_vim_tiny": "local_vim_tiny",
    "localmamba_local_vssm_tiny": "local_vmamba_tiny",
    "localmamba_local_vssm_tiny_zerod": "local_vmamba_tiny",
}
# The plain backend is slow: it gets the small images, and Vim's short sequence of a large one.
LARGE = 224 * 224


@functools.lru_cache(maxsize=1)
def _loaded(name: str) -> tuple[torch.nn.Module, dict]:
    entry = parity.load(name)
    state_dict = {key: torch.from_numpy(value) for key, value in parity.make_state_dict(entry).items()}
    model = vision_ssm.load_checkpoint(timm.create_model(MODELS[name]), {"model": state_dict})
    return model.eval(), entry


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_golden(name, backend):
    model, entry = _loaded(name)
    shapes = entry["inputs"]
    if backend == "chunked" and name != "vim_tiny":
        shapes = [shape for shape in shapes if shape[2] * shape[3] < LARGE]
    if not shapes:
        pytest.skip("too large an image for the plain backend")
    assert sum(p.numel() for p in model.parameters()) == entry["params"]
    for shape in shapes:
        with torch.inference_mode(), use_backend(backend):
            y = model(torch.from_numpy(parity.make_input(shape)))
        key = "x".join(map(str, shape)) + ":out"
        error = parity.compare(y.numpy(), entry["outputs"][key])
        assert error <= entry["tolerance"], f"{key} is off by {error:.1e}"
