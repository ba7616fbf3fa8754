"""The Triton kernels of the convolution, interpreted on the CPU: a program takes 16 steps and 128 channels."""

import logging

import pytest
import torch
from hypothesis import Phase, given, settings
from ops import oracle
from ops.conv_cases import BFLOAT16, FLOAT16, FLOAT32, arguments, cases, check, results
from ops.interpreter import interpreted
from ops.scan_cases import LAYOUTS, random_tables

from vision_ssm.ops import causal_conv1d, gpu, use_backend
from vision_ssm.ops.gpu.launch import intercepted

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the kernels on this machine's GPU")


@pytest.fixture(scope="module", autouse=True)
def in_the_interpreter():
    """For this module only: every launch on the CPU is slow."""
    with interpreted():
        yield


def _check(tensors: dict, options: dict, tolerance: dict = FLOAT32) -> None:
    check(tensors, options, tolerance, ["triton"])


@settings(max_examples=10, phases=[Phase.explicit, Phase.generate])  # shrinking would take minutes
@given(cases(tokens=(1, 2, 3, 15, 16, 17)))  # a program's steps; below, those of several programs
def test_matches_the_definition(case):
    _check(*arguments(**case | dict(batch=1)))


@pytest.mark.parametrize("tokens", [15, 16, 17, 255, 256, 257])
@pytest.mark.parametrize("mirrored", [False, True])
def test_around_a_tile_and_a_program(tokens, mirrored):
    """Gradients of filters are sums over programs of 256 steps."""
    _check(*arguments(batch=1, paths=1, tokens=tokens, channels=3, width=3, mirrored=[mirrored]))


@pytest.mark.parametrize("channels", [127, 128, 130])
def test_around_a_block_of_channels(channels):
    _check(*arguments(batch=1, tokens=5, channels=channels, mirrored=[False, True]))


@pytest.mark.parametrize("width", [1, 2, 7, gpu.MOST_TAPS])
def test_widths(width):
    _check(*arguments(batch=1, tokens=9, channels=3, width=width, mirrored=[True, False], shared=False))


@pytest.mark.parametrize("kind", ["permuted", "padded", "any"])
@pytest.mark.parametrize("shared", [False, True])
def test_every_kind_of_table(kind, shared):
    tables, _ = random_tables(kind, 3, 20)
    tables = tables[0].contiguous()
    _check(*arguments(batch=2, tokens=20, paths=3, tables=tables, mirrored=[True, False, True], shared=shared))


@pytest.mark.parametrize(
    ("x", "weight", "tolerance"),
    [
        (torch.bfloat16, torch.bfloat16, BFLOAT16),
        (torch.bfloat16, torch.float32, BFLOAT16),
        (torch.float32, torch.bfloat16, BFLOAT16 | dict(y=1e-6, x=3e-6)),
        (torch.float16, torch.float32, FLOAT16),
    ],
)
@pytest.mark.parametrize("kind", ["none", "any"])
def test_reduced_precision(x, weight, tolerance, kind):
    tables, _ = random_tables(kind, 2, 17)
    tensors, options = arguments(tables=None if tables is None else tables[0].contiguous())
    _check({name: value.to(x if name == "x" else weight) for name, value in tensors.items()}, options, tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout):
    tensors, options = arguments(batch=2, tokens=5, channels=6, shared=False, mirrored=[False, True])
    _check({name: LAYOUTS[layout](x) for name, x in tensors.items()}, options)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
def test_gradients_of_any_strides(layout):
    tensors, options = arguments(batch=1, tokens=5, channels=6)
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    dy = torch.randn(1, 2, 5, 6)
    dy = dy[..., :1].expand_as(dy) if layout == "expanded" else LAYOUTS[layout](dy)
    with use_backend("triton"):
        ours = torch.autograd.grad(causal_conv1d(**leaves, **options), list(leaves.values()), dy)
    expected = torch.autograd.grad(oracle.conv(**leaves, **options), list(leaves.values()), dy.double())
    for name, a, b in zip(leaves, ours, expected, strict=True):
        assert oracle.error(a, b) <= FLOAT32[name], name


def test_an_empty_batch():
    with use_backend("triton"):
        ours = results(causal_conv1d, *arguments(batch=0))
    assert ours["y"].shape == (0, 2, 17, 7) and not ours["weight"].any()


def test_nan_does_not_vanish():
    tensors, options = arguments(batch=1, tokens=9, channels=3, paths=1, width=3)
    tensors["x"][0, 0, 4, 1] = torch.nan
    with use_backend("triton"):
        y = causal_conv1d(**tensors, **options)
    found = y.isnan().nonzero()[:, 2:].tolist()
    assert found == [[4, 1], [5, 1], [6, 1]]


@pytest.mark.parametrize("beyond", [dict(paths=gpu.MOST_PATHS + 1, tokens=2), dict(width=gpu.MOST_TAPS + 1)])
def test_what_the_kernels_do_not_take_runs_on_the_plain_backend(beyond, caplog):
    launched = []
    with intercepted(lambda *args: launched.append(args)), caplog.at_level(logging.INFO):
        _check(*arguments(batch=1, channels=2, **beyond))
    assert not launched


def test_opcheck():
    tables, _ = random_tables("any", 2, 5)
    tensors, options = arguments(batch=1, tokens=5, channels=3, tables=tables[0].contiguous(), mirrored=[True, False])
    leaves = [x.clone().requires_grad_() for x in tensors.values()]
    with use_backend("triton"):
        torch.library.opcheck(torch.ops.vision_ssm.causal_conv1d, (*leaves, *options.values()))


def test_same_bits_on_repeat():
    case = arguments(batch=1, tokens=40, mirrored=[False, True])
    with use_backend("triton"):
        first, second = (results(causal_conv1d, *case) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
