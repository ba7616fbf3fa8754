"""The operators themselves, as TorchScript, exported programs and raw calls reach them.

Wrong arguments are refused, forward and backward, on every backend; tables are followed wherever they lie; a batch may
be empty, a tensor a subclass.
"""

import copy

import numpy as np
import pytest
import torch
from ops import conv_cases, oracle, scan_cases
from ops.scan_cases import random_tables

from vision_ssm.ops import available_backends, causal_conv1d, cpu, scan_tokens, use_backend

SCAN, SCAN_BACKWARD = torch.ops.vision_ssm.selective_scan, torch.ops.vision_ssm.selective_scan_backward
CONV, CONV_BACKWARD = torch.ops.vision_ssm.causal_conv1d, torch.ops.vision_ssm.causal_conv1d_backward
ORDER = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_weight")


@pytest.fixture(params=available_backends())
def backend(request):
    with use_backend(request.param):
        yield request.param


def _new(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


def _scan() -> tuple[dict, dict]:
    """Right arguments of the forward and of the backward operator: 3 paths, 17 tokens, 4 channels, 2 states."""
    tables, _ = random_tables("permuted", 3, 17)
    tensors, options = scan_cases.arguments(channels=4, d_state=2, paths=3, tables=tables)
    inputs = {name: tensors.get(name) for name in ORDER}
    forward = inputs | options | dict(save=True)
    y, last_state, states, ungated = SCAN(*forward.values())
    backward = dict(dy=y, d_last_state=last_state) | inputs | dict(tables=tables, states=states, ungated=ungated)
    return forward, backward | dict(softplus=True, merge=True)


def _conv() -> tuple[dict, dict]:
    tables, _ = random_tables("permuted", 3, 17)
    tensors, _ = conv_cases.arguments(channels=4, paths=3)
    forward = tensors | dict(tables=tables[0].contiguous(), mirrored=[0, 1, 0], silu=True)
    return forward, dict(dy=CONV(*forward.values())) | forward


INTEGERS = _new(2, 1, 17, 4, dtype=torch.int32)
TABLES = torch.arange(17, dtype=torch.int32).expand(2, 3, 17).contiguous()
BAD_SCAN = [
    ("u", INTEGERS, TypeError),
    ("u", _new(2, 1, 17, 4).to_sparse(), TypeError),
    ("u", _new(2, 1, 17, 4, dtype=torch.float8_e4m3fn), TypeError),
    ("dt", _new(2, 3, 1, 4), ValueError),
    ("B", _new(2, 3, 1, 1, 2), ValueError),
    ("C", _new(2, 3, 17, 2, 2), ValueError),
    ("D", _new(3, 1), ValueError),
    ("dt_bias", _new(4), ValueError),
    ("z", _new(2, 1, 1, 4), ValueError),
    ("tables", TABLES[..., ::2], ValueError),
    ("tables", TABLES.long(), TypeError),
    ("tables", TABLES[:, :2].contiguous(), ValueError),
    ("tables", torch.where(TABLES == 3, -(2**31), TABLES), ValueError),
    ("tables", torch.where(TABLES == 3, 2**31 - 1, TABLES), ValueError),
]
BAD_FORWARD = [("out_tokens", number, ValueError) for number in (0, -1, 3, 2**31, 2**62)]
BAD_BACKWARD = [
    ("dy", _new(2, 1, 3, 4), ValueError),
    ("dy", _new(2, 3, 17, 4), ValueError),
    ("dy", INTEGERS, TypeError),
    ("dy", _new(2, 17, 4), ValueError),
    ("d_last_state", _new(2, 3, 4, 1), ValueError),
    ("d_last_state", _new(2, 3, 4, 2, dtype=torch.int64), TypeError),
    ("ungated", _new(2, 1, 5, 4), ValueError),
    ("ungated", _new(2, 1, 17, 4, device="meta"), ValueError),
]
BAD_CONV = [
    ("x", INTEGERS, TypeError),
    ("weight", _new(3, 4, 0), ValueError),
    ("weight", _new(3, 5, 4), ValueError),
    ("weight", _new(3, 4, 4, dtype=torch.bool), TypeError),
    ("bias", _new(3, 1), ValueError),
    ("bias", _new(3), ValueError),
    ("mirrored", [0, 1], ValueError),
    ("tables", TABLES[0, :2].contiguous(), ValueError),
    ("tables", TABLES[0, :, ::2], ValueError),
    ("tables", torch.where(TABLES[0] == 3, -(2**31), TABLES[0]), ValueError),
]
BAD_CONV_BACKWARD = [("dy", _new(2, 3, 1, 4), ValueError), ("dy", _new(2, 3, 17, 4).to(torch.int64), TypeError)]


def _refuses(operator, right: dict, name: str, value, kind) -> None:
    with pytest.raises(kind, match=f"`({name}|x|z)`"):  # where two do not fit, the other may be named
        operator(*(right | {name: value}).values())


@pytest.mark.parametrize(("name", "value", "kind"), BAD_SCAN + BAD_FORWARD)
def test_scan(backend, name, value, kind):
    _refuses(SCAN, _scan()[0], name, value, kind)


@pytest.mark.parametrize(("name", "value", "kind"), BAD_SCAN + BAD_BACKWARD)
def test_scan_backward(backend, name, value, kind):
    _refuses(SCAN_BACKWARD, _scan()[1], name, value, kind)


@pytest.mark.parametrize(("name", "value", "kind"), BAD_CONV)
def test_conv(backend, name, value, kind):
    _refuses(CONV, _conv()[0], name, value, kind)


@pytest.mark.parametrize(("name", "value", "kind"), BAD_CONV + BAD_CONV_BACKWARD)
def test_conv_backward(backend, name, value, kind):
    _refuses(CONV_BACKWARD, _conv()[1], name, value, kind)


@pytest.mark.skipif(not cpu.available(), reason="the compiled kernels were not built")
@pytest.mark.parametrize("states", [_new(7), _new(3, dtype=torch.float64)])
def test_states_that_no_forward_pass_left(states):
    with use_backend("cpu"):
        _refuses(SCAN_BACKWARD, _scan()[1], "states", states, ValueError)
        states = _scan()[1]["states"]
        _refuses(SCAN_BACKWARD, _scan()[1], "states", states.double(), TypeError)
        _refuses(SCAN_BACKWARD, _scan()[1], "states", states.repeat_interleave(2)[::2], ValueError)


@pytest.mark.skipif(not cpu.available(), reason="the compiled kernels were not built")
@pytest.mark.parametrize("field", [1, 2, 3, 4, 6, 7, 8, 9])
@pytest.mark.parametrize("value", [0, -1, 2**40])
def test_the_library_refuses_sizes_of_no_tensor(monkeypatch, field, value):
    """The last line of defence: what the structs hold, whoever filled them."""
    seen = []
    monkeypatch.setattr(cpu, "_call", lambda function, args: seen.append(list(args)))
    cpu.scan_forward(*list(_scan_without_call().values()))
    monkeypatch.undo()
    (args,) = seen
    args[field] = value if field >= 6 or value <= 0 else -value
    with pytest.raises(ValueError, match="sizes"):
        cpu._call("scan_forward", args)


def _scan_without_call() -> dict:
    tensors, options = scan_cases.arguments(channels=4, d_state=2, paths=3)
    return {name: tensors.get(name) for name in ORDER} | options | dict(save=False)


def test_scripted_calls_are_checked():
    class Scan(torch.nn.Module):
        def forward(self, u, dt, A, B, C):
            return scan_tokens(u, dt, A, B, C)

    class Conv(torch.nn.Module):
        def forward(self, x, weight):
            return causal_conv1d(x, weight)

    with pytest.raises(Exception, match="`B` is"):
        torch.jit.script(Scan())(
            _new(1, 1, 99, 4), _new(1, 1, 99, 4), _new(1, 4, 2), _new(1, 1, 1, 1, 2), _new(1, 1, 1, 1, 2)
        )
    with pytest.raises(Exception, match="`weight` is"):
        torch.jit.script(Conv())(_new(1, 1, 9, 4), _new(1, 4, 0))


# Tables of others


@pytest.mark.parametrize("change", ["numpy", "data", "inference"])
def test_tables_are_followed_where_they_lie(backend, change):
    memory = np.tile(np.arange(17, dtype=np.int32), (2, 2, 1))
    with torch.inference_mode(change == "inference"):
        tables = torch.tensor(memory) if change == "inference" else torch.from_numpy(memory)
    tensors, _ = scan_cases.arguments()
    if change != "inference":
        tensors["u"].requires_grad_()
    scan_tokens(**tensors, tables=tables)
    with torch.inference_mode(change == "inference"):
        if change == "numpy":
            memory[1] = 3
        else:
            (tables.data if change == "data" else tables)[1] = 3
    y = scan_tokens(**tensors, tables=tables)
    expected, _ = oracle.scan(**tensors, tables=tables)
    assert oracle.error(y, expected) <= 1e-6 and (y[:, :, 4:] == 0).all()
    if change != "inference":
        (ours,), (wanted,) = (torch.autograd.grad(out.sum(), tensors["u"]) for out in (y, expected))
        assert oracle.error(ours, wanted) <= 3e-6


# Empty batches


def test_an_empty_batch(backend):
    tables, out_tokens = random_tables("any", 2, 9)
    tensors, options = scan_cases.arguments(
        batch=0, tokens=9, channels=6, rank=2, groups=2, tables=tables, out_tokens=out_tokens
    )
    for merge in (True, False):
        found = scan_cases.results(scan_cases.operator, tensors, options | dict(merge=merge))
        assert found["y"].shape == (0, 1 if merge else 2, out_tokens, 6)
        assert found["last_state"].shape == (0, 2, 6, 4)
        for name, x in tensors.items():
            assert found[name].shape == x.shape and not found[name].any()
    tensors, options = conv_cases.arguments(batch=0, tokens=9, tables=tables[0].contiguous())
    found = conv_cases.results(causal_conv1d, tensors, options)
    assert found["y"].shape == (0, 2, 12, 7)
    assert all(found[name].shape == x.shape and not found[name].any() for name, x in tensors.items())


def test_an_empty_batch_decomposed():
    tensors, options = scan_cases.arguments(batch=0)
    with use_backend("chunked", decompose=True):
        assert scan_tokens(**tensors, **options).shape == (0, 1, 17, 7)


# Subclasses of tensors


class _Noted(torch.Tensor):
    """As MONAI's MetaTensor: other arguments in its methods, and results of its own class."""

    def new_empty(self, size, dtype=None, device=None, requires_grad=False):
        return self.as_subclass(torch.Tensor).new_empty(size, dtype=dtype, device=device).as_subclass(_Noted)

    def new_zeros(self, size, dtype=None, device=None, requires_grad=False):
        return self.as_subclass(torch.Tensor).new_zeros(size, dtype=dtype, device=device).as_subclass(_Noted)


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("which", ["all", "first", "parameters"])
def test_subclasses(which, decompose):
    tables, out_tokens = random_tables("any", 2, 17)
    scan = scan_tokens, *scan_cases.arguments(tables=tables, out_tokens=out_tokens)
    conv = causal_conv1d, *conv_cases.arguments(tables=tables[0].contiguous())
    for function, tensors, options in (scan, conv):
        expected = conv_cases.results(function, tensors, options)
        first = next(iter(tensors))
        chosen = {"all": set(tensors), "first": {first}, "parameters": set(tensors) - {first}}[which]
        given = {name: copy.copy(x).as_subclass(_Noted) if name in chosen else x for name, x in tensors.items()}
        with use_backend("chunked", decompose=True) if decompose else use_backend(available_backends()[-1]):
            ours = conv_cases.results(function, given, options)
        assert isinstance(ours["y"], _Noted)
        for name, want in expected.items():
            assert oracle.error(ours[name].as_subclass(torch.Tensor), want) <= 1e-5
