"""Selective scan inside PyTorch: operator contracts, compilers, export, checkpointing, autocast, FLOPs, backends."""

import math

import pytest
import torch
from ops import oracle
from ops.scan_cases import FLOAT32, arguments, operator, random_tables, results
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vision_ssm.ops import available_backends, backends, cpu, current_backend, flops, scan_tokens, use_backend

BACKENDS = available_backends()
FORWARD, BACKWARD = torch.ops.vision_ssm.selective_scan, torch.ops.vision_ssm.selective_scan_backward
ORDER = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_weight")


def _case(full: bool, **kwargs) -> tuple[dict, dict]:
    """Arguments with every option, or with none."""
    if not full:
        return arguments(skip=False, gate=False, bias=False, softplus=False, merge=False, **kwargs)
    tables, out_tokens = random_tables("any", 2, 17)
    return arguments(rank=3, groups=7, tables=tables, out_tokens=out_tokens, **kwargs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, full, dtype):
    tensors, options = _case(full)
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    inputs = [tensors.get(name) for name in ORDER]
    with use_backend(backend):
        leaves = [x if x is None else x.clone().requires_grad_() for x in inputs]
        torch.library.opcheck(FORWARD, (*leaves, *options.values(), True))
        torch.library.opcheck(FORWARD, (*inputs, *options.values(), False))
        y, last_state, states, ungated = FORWARD(*inputs, *options.values(), True)
        tables, _, softplus, merge = options.values()
        for d_last_state in (None, last_state):
            args = (y, d_last_state, *inputs, tables, states, ungated, softplus, merge)
            # It has no derivative of its own, which the autograd check would ask for.
            torch.library.opcheck(BACKWARD, args, test_utils=("test_schema", "test_faketensor"))


def _loss(*tensors, options):
    return scan_tokens(**dict(zip(ORDER, tensors, strict=False)), **options).square().mean()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("full", [True, False])
def test_compile(backend, full):
    tensors, options = _case(full)
    inputs = [tensors.get(name) for name in ORDER]
    leaves = [x.requires_grad_() for x in inputs if x is not None]
    with use_backend(backend):
        expected = _loss(*inputs, options=options)
        compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager", dynamic=False)
        loss = compiled(*inputs, options=options)
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)
        for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


class _Scan(torch.nn.Module):
    def __init__(self, tensors: dict, options: dict):
        super().__init__()
        self.options = options
        for name in ("A", "D", "dt_bias", "dt_weight"):
            self.register_buffer(name, tensors[name])

    def forward(self, u, dt, B, C, z):
        return scan_tokens(u, dt, self.A, B, C, self.D, z, self.dt_bias, self.dt_weight, **self.options)


@pytest.mark.parametrize("decompose", [False, True])
def test_export_with_any_batch_size(decompose):
    tensors, options = _case(True, batch=3)
    module = _Scan(tensors, options)
    inputs = tuple(tensors[name] for name in ("u", "dt", "B", "C", "z"))
    batch = torch.export.Dim("batch", min=2)
    with use_backend("chunked", decompose=decompose):
        program = torch.export.export(module, inputs, dynamic_shapes=[{0: batch}] * 5)
    names = {str(node.target) for node in program.graph.nodes}
    assert any("vision_ssm" in name for name in names) != decompose
    tensors, _ = _case(True, batch=5, seed=9)
    inputs = tuple(tensors[name] for name in ("u", "dt", "B", "C", "z"))
    expected, _ = oracle.scan(
        *inputs[:2], module.A, *inputs[2:4], module.D, inputs[4], module.dt_bias, module.dt_weight, **options
    )
    assert oracle.error(program.module()(*inputs), expected) <= FLOAT32["y"]


def test_decomposed_gradients():
    """Autograd goes through the plain operations, instead of the operator's own backward pass."""
    tensors, options = _case(True)

    def output(function):  # `scan_tokens` has no last state
        return lambda **kwargs: (function(**kwargs), torch.zeros(1, requires_grad=True))

    expected = results(output(lambda **kwargs: oracle.scan(**kwargs)[0]), tensors, options)
    with use_backend("chunked", decompose=True):
        ours = results(output(scan_tokens), tensors, options)
    for name in ours:
        assert oracle.error(ours[name], expected[name]) <= FLOAT32[name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_checkpointing(backend):
    tensors, options = _case(True)

    def scan(**kwargs):
        return torch.utils.checkpoint.checkpoint(operator, **kwargs, use_reentrant=False)

    with use_backend(backend):
        plain, recomputed = results(operator, tensors, options), results(scan, tensors, options)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(backend, dtype):
    """The output has the dtype of `u` and the accumulation stays in float32, also in the backward pass."""
    tensors, options = _case(True)
    tensors["u"] = tensors["u"].to(dtype)
    with use_backend(backend):
        expected = results(operator, tensors, options)
        with torch.autocast("cpu", torch.bfloat16):
            ours = results(operator, tensors, options)
    for name in expected:
        assert ours[name].dtype == expected[name].dtype
        assert torch.equal(ours[name], expected[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode(backend):
    """Also with tables that were made inside."""
    tensors, options = _case(True)
    with use_backend(backend):
        expected = scan_tokens(**tensors, **options)
        with torch.inference_mode():
            options["tables"] = options["tables"].clone()
            assert torch.equal(scan_tokens(**tensors, **options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_may_be_changed_in_place(backend):
    """What is remembered about tables does not outlive their content."""
    tables, _ = random_tables("permuted", 2, 17)
    tensors, options = arguments(tables=tables)
    with use_backend(backend):
        scan_tokens(**tensors, **options)
        tables[1, :, 3:6] = -1
        y = scan_tokens(**tensors, **options)
    assert oracle.error(y, oracle.scan(**tensors, **options)[0]) <= FLOAT32["y"]


class _Outputs(TorchDispatchMode):
    """Sizes of what the operator gave beside y and the last state."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is FORWARD.default:
            self.saved = [x.numel() for x in out[2:]]
        return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_are_saved_for_a_gradient_only(backend):
    tensors, options = _case(True)
    with use_backend(backend), _Outputs() as mode:
        scan_tokens(**tensors, **options)
        assert mode.saved == [0, 0]
        tensors["A"].requires_grad_()
        with torch.no_grad():
            scan_tokens(**tensors, **options)
        assert mode.saved == [0, 0]
        scan_tokens(**tensors, **options)
        states, ungated = mode.saved
        assert ungated == 2 * 15 * 7 and (states > 0) == (backend == "cpu")


BATCH, PATHS, STEPS, TOKENS, CHANNELS, STATES, RANK = 2, 2, 20, 17, 7, 4, 3
SCAN = BATCH * PATHS * STEPS * CHANNELS * (9 * STATES + 1)
PROJECTION = BATCH * PATHS * TOKENS * CHANNELS * RANK


def test_flops_in_pytorch():
    tensors, options = _case(True)
    tensors["u"].requires_grad_()
    with FlopCounterMode(display=False) as forward:
        y = scan_tokens(**tensors, **options)
    assert forward.get_total_flops() == SCAN + 2 * PROJECTION
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * SCAN + 6 * PROJECTION


def test_flops_in_fvcore():
    fvcore = pytest.importorskip("fvcore.nn")
    tensors, options = _case(True)
    inputs = tuple(tensors[name] for name in ("u", "dt", "B", "C", "z"))
    analysis = fvcore.FlopCountAnalysis(_Scan(tensors, options), inputs)
    analysis.set_op_handle(**flops.fvcore_handles()).unsupported_ops_warnings(False)
    assert analysis.total() == SCAN + PROJECTION
    assert flops.scan_flops(2, 2, 20, 7, 4) == SCAN == math.prod((2, 2, 20, 7)) * 37


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match="unknown backend 'fast': expected one of reference, chunked, cpu"),
        use_backend("fast"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="`decompose` needs the chunked backend"),
        use_backend("reference", decompose=True),
    ):
        pass


def test_missing_backend(monkeypatch):
    """Asked for, it says how to get it; not asked for, the plain one takes over with a warning, once."""
    monkeypatch.setattr(cpu, "available", lambda: False)
    backends._warn.cache_clear()
    assert "cpu" not in available_backends()
    with pytest.raises(RuntimeError, match=r"backend 'cpu' is not available.*pip install"), use_backend("cpu"):
        pass
    with pytest.warns(UserWarning, match="slower chunked backend"):
        assert current_backend() == "chunked"
    assert current_backend() == "chunked"


def test_which_backend_is_used(monkeypatch):
    expected = "cpu" if cpu.available() else "chunked"
    assert current_backend() == current_backend("cpu", torch.bfloat16) == expected
    assert current_backend("cpu", torch.float64) == current_backend("meta") == "chunked"
    with use_backend("reference"):
        assert current_backend() == "reference"
        with use_backend("chunked"):
            assert current_backend() == "chunked"
        assert current_backend() == "reference"
    assert current_backend() == expected
    monkeypatch.setenv("VISION_SSM_BACKEND", "reference")
    assert current_backend() == "reference"
    with use_backend("chunked"):
        assert current_backend() == "chunked"
    monkeypatch.setenv("VISION_SSM_BACKEND", "fast")
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        current_backend()


def test_a_backend_is_left_after_an_error():
    before = current_backend()
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert current_backend() == before
