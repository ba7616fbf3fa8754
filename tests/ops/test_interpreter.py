"""The interpreter that the tests of the Triton kernels run in: it may be fast, it may not compute something else."""

import importlib
import os

import pytest
import torch
from ops.interpreter import interpreted
from ops.scan_cases import arguments, operator, random_tables, results

from vision_ssm.ops import available_backends, use_backend

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = importlib.import_module("triton.language")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU runs the kernels")
needs_slow = pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7), reason="it cannot do without what `interpreted` mends"
)


@needs_slow
@pytest.mark.parametrize("kind", ["none", "any"])
def test_the_same_bits(kind):
    tables, out_tokens = random_tables(kind, 2, 9)
    case = arguments(batch=1, tokens=9, channels=3, d_state=3, rank=2, tables=tables, out_tokens=out_tokens)
    runs = []
    for fast in (True, False):
        with interpreted(fast), use_backend("triton"):
            runs.append(results(operator, *case))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def _cast(x, y, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(y + place, tl.load(x + place).to(tl.bfloat16))


def test_rounding_to_bfloat16():
    x = torch.randn(1024) * 10.0 ** torch.randint(-44, 38, (1024,)).float()
    x[:8] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, 1.00390625, 1.01171875])
    y = torch.empty(1024, dtype=torch.bfloat16)
    with interpreted():
        triton.jit(_cast)[(1,)](x, y, COUNT=1024)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fast", [True, False])
def test_nothing_is_left_behind(fast):
    tiles = importlib.import_module("vision_ssm.ops.gpu.tiles")

    def state():
        parts = tl.load, tl.sum, tl.core.load, tl.tensor.__add__, tl.associative_scan, tiles.along, tl.tensor.sum
        return *parts, os.environ.get("TRITON_INTERPRET"), "triton" in available_backends()

    before = state()
    with pytest.raises(KeyError), interpreted(fast):
        if fast:
            test_rounding_to_bfloat16()
        assert "triton" in available_backends() and state() != before
        raise KeyError
    assert state() == before


def test_without_triton(monkeypatch):
    gpu = importlib.import_module("vision_ssm.ops.gpu")
    monkeypatch.setattr(gpu, "_installed", lambda: False)
    with interpreted():
        assert "triton" not in available_backends() and "TRITON_INTERPRET" not in os.environ
