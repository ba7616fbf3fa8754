"""PyTorch's defaults (dtype, device) change nothing: every operator on every backend, layers and models."""

import contextlib

import pytest
import timm
import torch
from ops import conv_cases, oracle, scan_cases
from ops.scan_cases import operator, random_tables

import vision_ssm  # noqa: F401 - registers the models
from vision_ssm.layers import LocalMamba, Mamba, PathMamba
from vision_ssm.ops import available_backends, causal_conv1d, use_backend
from vision_ssm.scan import Window, cross, path_text, scan_tables

DTYPES = [torch.bfloat16, torch.float16, torch.float64]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _given(function, tensors, options, context):
    """Outputs and gradients inside a context, with gradients of the outputs that were made outside."""
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    with context:
        out = function(**leaves, **options)
        out = out if isinstance(out, tuple) else (out,)
        total = sum((y.to(torch.float32) ** 2).sum() for y in out)
        return [*out, *torch.autograd.grad(total, list(leaves.values()))]


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("default", [*DTYPES, "meta"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators(backend, default, dtype):
    tables, out_tokens = random_tables("any", 2, 17)
    scans = [scan_cases.arguments(rank=2, tables=tables, out_tokens=out_tokens), scan_cases.arguments(gate=False)]
    convs = [conv_cases.arguments(tables=tables[0].contiguous(), mirrored=[True, False])]
    cases = [(operator, *case) for case in scans] + [(causal_conv1d, *case) for case in convs]
    for function, tensors, options in cases:
        tensors = {name: x.to(dtype) for name, x in tensors.items()}
        with use_backend(backend):
            expected = _given(function, tensors, options, contextlib.nullcontext())
            context = torch.device("meta") if default == "meta" else default_dtype(default)
            ours = _given(function, tensors, options, context)
        for a, b in zip(ours, expected, strict=True):
            assert a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_tables(default):
    paths = path_text(cross())
    expected = scan_tables(paths, [3, 5], torch.zeros(1)).clone()
    like = torch.zeros(1)
    with default_dtype(default), torch.device("meta"):
        assert torch.equal(scan_tables(paths, [5, 3], like).sort(-1).values, expected.sort(-1).values)
        assert torch.equal(torch.ops.vision_ssm.scan_tables(paths, [3, 5], False, like.device), expected)


LAYERS = {
    "mamba": lambda **dd: (Mamba(8, bidirectional="v2", **dd), ()),
    "paths": lambda **dd: (PathMamba(8, cross(), **dd), ([3, 4],)),
    "local": lambda **dd: (LocalMamba(8, [Window(2)], **dd), ([3, 4],)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("default", DTYPES)
def test_layers_of_another_dtype(kind, default):
    """float32 parameters under another default: the same numbers."""
    layer, args = LAYERS[kind](dtype=torch.float32)
    x = torch.randn(2, 12, 8, requires_grad=True)
    found = []
    for context in (contextlib.nullcontext(), default_dtype(default)):
        with context:
            y = layer(x, *args)
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for a, b in zip(*found, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("name", ["vim_test", "vmamba_test", "local_vim_test"])
def test_training_in_bfloat16_alone(name):
    """Lightning's `bf16-true`: weights, inputs and the default dtype are bfloat16."""
    model = timm.create_model(name, num_classes=4)
    size = model.default_cfg["input_size"][-1]
    x = torch.randn(2, 3, size, size)
    expected = torch.autograd.grad(model.eval()(x).square().sum(), list(model.parameters()))
    model.to(torch.bfloat16)
    with default_dtype(torch.bfloat16):
        y = model(x.bfloat16())
        ours = torch.autograd.grad(y.float().square().sum(), list(model.parameters()))
    assert y.dtype == torch.bfloat16
    ours, expected = (torch.cat([g.float().flatten() for g in gradients]) for gradients in (ours, expected))
    assert torch.nn.functional.cosine_similarity(ours, expected, 0) > 0.98
    assert oracle.error(ours.norm(), expected.norm()) <= 0.1


@pytest.mark.parametrize("name", ["vim_test", "mamba_nd_3d_test", "vivim_test"])
def test_rates_of_stochastic_depth(name):
    """Numbers, not tensors: no default rounds them."""
    found = []
    for context in (contextlib.nullcontext(), default_dtype(torch.bfloat16)):
        with context:
            model = timm.create_model(name, drop_path_rate=0.3)
            found.append([m.drop_prob for m in model.modules() if isinstance(getattr(m, "drop_prob", None), float)])
    assert found[0] == found[1] and max(found[0]) == pytest.approx(0.3)
