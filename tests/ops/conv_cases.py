"""Random arguments of the convolution, and the comparison of every backend with the oracle."""

import torch
from hypothesis import strategies as st
from ops import oracle
from ops.scan_cases import random_tables

from vision_ssm.ops import available_backends, causal_conv1d, use_backend

# max |difference| / max |reference| that passes.
FLOAT32 = dict(y=1e-6, x=3e-6, weight=1e-5, bias=1e-5)
BFLOAT16 = dict(y=1e-2, x=3e-2, weight=3e-2, bias=3e-2)
FLOAT16 = dict(y=2e-3, x=1e-2, weight=1e-2, bias=1e-2)


def arguments(
    batch=2,
    tokens=17,
    channels=7,
    paths=2,
    width=4,
    shared=True,
    bias=True,
    tables=None,
    mirrored=None,
    silu=True,
    seed=0,
):
    """(tensors, options) of a convolution."""
    random = torch.Generator().manual_seed(seed)
    sizes = dict(
        x=(batch, 1 if shared else paths, tokens, channels), weight=(paths, channels, width), bias=(paths, channels)
    )
    tensors = {name: torch.randn(size, generator=random) for name, size in sizes.items() if bias or name != "bias"}
    return tensors, dict(tables=tables, mirrored=mirrored, silu=silu)


def results(function, tensors: dict, options: dict) -> dict:
    """Output and all gradients, for a fixed random gradient of the output (exact in bfloat16)."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    y = function(**leaves, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.device, y.dtype)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy, materialize_grads=True)
    return dict(y=y) | dict(zip(leaves, gradients, strict=True))


def check(
    tensors: dict, options: dict, tolerance: dict[str, float] = FLOAT32, backends: list[str] | None = None
) -> None:
    """Hold output and gradients of every backend against the oracle."""
    expected = results(oracle.conv, tensors, options)
    wrong = []
    for backend in available_backends() if backends is None else backends:
        with use_backend(backend):
            ours = results(causal_conv1d, tensors, options)
        for name, value in ours.items():
            assert value.dtype == tensors["x" if name == "y" else name].dtype
            error = oracle.error(value, expected[name])
            if not error <= tolerance[name]:
                wrong.append(f"{backend}: {name} is off by {error:.1e}, allowed are {tolerance[name]:.0e}")
    assert not wrong, "; ".join(wrong)


@st.composite
def cases(draw, tokens=(1, 2, 3, 17, 63, 64, 65, 129)):
    """Arguments for `arguments`, of every shape and with every option."""
    width = draw(st.sampled_from([1, 7, 16, 33]))
    length, seed = draw(st.sampled_from(tokens)), draw(st.integers(0, 1000))
    paths = draw(st.integers(3 if width == 1 else 1, 4))  # see the cases of the scan
    tables, _ = random_tables(draw(st.sampled_from(["none", "permuted", "padded", "any"])), paths, length, seed)
    return dict(
        batch=draw(st.integers(1, 3)),
        tokens=length,
        channels=width,
        paths=paths,
        width=draw(st.integers(1, 5)),
        shared=draw(st.booleans()),
        bias=draw(st.booleans()),
        tables=None if tables is None else tables[0].contiguous(),
        mirrored=draw(st.none() | st.lists(st.booleans(), min_size=paths, max_size=paths)),
        silu=draw(st.booleans()),
        seed=seed,
    )
