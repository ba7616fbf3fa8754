"""Programs of any size: with a gradient in view, they agree with the definition at other sizes than the traced ones."""

import pytest
import torch
from ops import oracle
from ops.scan_cases import FLOAT32, arguments
from torch._dynamo.backends.common import aot_autograd
from torch.export import Dim, export

from vision_ssm.ops import available_backends, causal_conv1d, scan_tokens, use_backend


class _Scan(torch.nn.Module):
    """Parameters that need a gradient, so that states are kept."""

    def __init__(self):
        super().__init__()
        tensors, _ = arguments(channels=4)
        self.A = torch.nn.Parameter(tensors["A"])
        self.weight = torch.nn.Parameter(torch.randn(1, 4, 3))

    def forward(self, u, dt, B, C, z):
        return scan_tokens(causal_conv1d(u, self.weight), dt, self.A, B, C, None, z)


def _inputs(batch, tokens):
    tensors, _ = arguments(batch=batch, tokens=tokens, channels=4)
    return tuple(tensors[name] for name in ("u", "dt", "B", "C", "z"))


def _expected(module, u, dt, B, C, z):
    return oracle.scan(oracle.conv(u, module.weight), dt, module.A, B, C, None, z)[0]


SIZES = [(2, 100), (3, 5), (5, 64), (2, 65), (2, 129)]


@pytest.mark.parametrize("backend", available_backends())
def test_export_with_any_batch_and_length(backend):
    """Exported where one tile of states is enough."""
    module = _Scan()
    batch, tokens = Dim("batch", min=2), Dim("tokens", min=2)
    with use_backend(backend):
        program = export(module, _inputs(2, 20), dynamic_shapes=[{0: batch, 2: tokens}] * 5).module()
        for size in SIZES:
            inputs = _inputs(*size)
            assert oracle.error(program(*inputs), _expected(module, *inputs)) <= FLOAT32["y"] * 2


def test_compiled_with_dynamic_sizes():
    torch._dynamo.reset()
    module, graphs = _Scan(), []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, backend=aot_autograd(fw_compiler=counting))
    for size in SIZES:
        inputs = _inputs(*size)
        for x in inputs:
            torch._dynamo.mark_dynamic(x, 0), torch._dynamo.mark_dynamic(x, 2)
        y = compiled(*inputs)
        wanted = _expected(module, *inputs)
        assert oracle.error(y, wanted) <= FLOAT32["y"] * 2
        pair = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (y, wanted)]
        assert all(oracle.error(a, b) <= 2e-5 for a, b in zip(*pair, strict=True))
    assert len(graphs) == 2  # one program, forward and backward


def test_an_exported_program_refuses_what_the_operator_refuses():
    """Its own guards, if they come first."""
    program = export(_Scan(), _inputs(2, 20)).module()
    with pytest.raises((ValueError, AssertionError)):
        program(*_inputs(2, 19)[:2], *_inputs(2, 20)[2:])
