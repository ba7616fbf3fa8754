"""The Triton kernels, interpreted on the CPU, inside PyTorch: operator contracts, layers, models, choice of backend."""

import importlib
import re

import pytest
import timm
import torch
import torch.utils.checkpoint
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ops import conv_cases, oracle
from ops.interpreter import interpreted
from ops.scan_cases import FLOAT32, TABLE_KINDS, arguments, operator, random_tables, results
from torch._subclasses.fake_tensor import FakeTensorMode

import vision_ssm  # noqa: F401 - registers the models
from vision_ssm.layers.ssm import SelectiveSSM
from vision_ssm.ops import available_backends, causal_conv1d, cpu, current_backend, gpu, scan_tokens, use_backend

triton = pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the kernels on this machine's GPU")

FORWARD, BACKWARD = torch.ops.vision_ssm.selective_scan, torch.ops.vision_ssm.selective_scan_backward
ORDER = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_weight")
OTHER = "cpu" if cpu.available() else "chunked"


@pytest.fixture(scope="module", autouse=True)
def in_the_interpreter():
    """For this module only: every launch on the CPU is slow."""
    with interpreted():
        yield


@pytest.fixture
def on_triton():
    """The backend, for one test."""
    with use_backend("triton"):
        yield


def _case(full: bool, **kwargs) -> tuple[dict, dict]:
    """Small arguments with every option, or with none."""
    small = dict(batch=1, tokens=4, channels=4, d_state=2) | kwargs
    if not full:
        return arguments(skip=False, gate=False, bias=False, softplus=False, merge=False, **small)
    tables, out_tokens = random_tables("any", 2, small["tokens"])
    return arguments(rank=1, groups=2, tables=tables, out_tokens=out_tokens, **small)


# The operator's contract


@pytest.mark.parametrize(("full", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_opcheck(full, dtype, on_triton):
    tensors, options = _case(full)
    inputs = [tensors[name].to(dtype) if name in tensors else None for name in ORDER]
    leaves = [x if x is None else x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(FORWARD, (*leaves, *options.values(), True))
    y, last_state, states, ungated = FORWARD(*inputs, *options.values(), True)
    tables, _, softplus, merge = options.values()
    for d_last_state in (None, last_state):
        args = (y, d_last_state, *inputs, tables, states, ungated, softplus, merge)
        torch.library.opcheck(BACKWARD, args, test_utils=("test_schema", "test_faketensor"))


def _looks(tensors: list[torch.Tensor]) -> list[tuple]:
    """Shapes, dtypes, and strides of dimensions that have any."""
    strides = ([s for s, size in zip(x.stride(), x.shape, strict=True) if size > 1 and x.numel()] for x in tensors)
    return [(x.shape, x.dtype, stride) for x, stride in zip(tensors, strides, strict=True)]


@settings(max_examples=10, phases=[Phase.explicit, Phase.generate])  # shrinking would take minutes
@given(
    kind=st.sampled_from(TABLE_KINDS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    save=st.booleans(),
    d_state=st.sampled_from([1, 3, 17]),
    rank=st.sampled_from([0, 2]),
    flags=st.fixed_dictionaries(dict.fromkeys(("gate", "skip", "bias", "merge", "shared"), st.booleans())),
)
def test_fake_outputs(kind, dtype, save, d_state, rank, flags):
    """What compilers are told of the outputs is what comes out: shapes, dtypes and strides."""
    tables, out_tokens = random_tables(kind, 2, 3)
    tensors, options = arguments(
        batch=1, tokens=3, channels=3, d_state=d_state, rank=rank, tables=tables, out_tokens=out_tokens, **flags
    )
    inputs = [tensors[name].to(dtype) if name in tensors else None for name in ORDER]
    mode = FakeTensorMode()
    fake = lambda x: None if x is None else mode.from_tensor(x)  # noqa: E731
    fake_inputs = list(map(fake, inputs))
    with use_backend("triton"):
        real = FORWARD(*inputs, *options.values(), save)
        with mode:
            told = FORWARD(*fake_inputs, fake(tables), *list(options.values())[1:], save)
        assert _looks(told) == _looks(real)
        y, _, states, ungated = real
        if not save:
            return
        rest = options["softplus"], options["merge"]
        gradients = BACKWARD(y, None, *inputs, tables, states, ungated, *rest)
        with mode:
            told = BACKWARD(fake(y), None, *fake_inputs, fake(tables), fake(states), fake(ungated), *rest)
        assert _looks(told) == _looks(gradients)


def _loss(*tensors, options):
    return scan_tokens(**dict(zip(ORDER, tensors, strict=False)), **options).square().mean()


@pytest.mark.parametrize("full", [True, False])
def test_compile(full, on_triton):
    tensors, options = _case(full)
    inputs = [tensors.get(name) for name in ORDER]
    leaves = [x.requires_grad_() for x in inputs if x is not None]
    expected = _loss(*inputs, options=options)
    loss = torch.compile(_loss, fullgraph=True, backend="aot_eager", dynamic=False)(*inputs, options=options)
    assert torch.equal(loss, expected)
    for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant, on_triton):
    tensors, options = _case(True)
    names = list(tensors)

    def scan(**kwargs):
        function = lambda *values: operator(**dict(zip(names, values, strict=True)), **options)  # noqa: E731
        return torch.utils.checkpoint.checkpoint(
            function, *(kwargs[name] for name in names), use_reentrant=use_reentrant
        )

    if use_reentrant:  # which allows no `torch.autograd.grad`
        leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
        scan(**leaves)[0].square().sum().backward()
        ours = {name: x.grad for name, x in leaves.items()}
        leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
        operator(**leaves, **options)[0].square().sum().backward()
        expected = {name: x.grad for name, x in leaves.items()}
    else:
        ours, expected = results(scan, tensors, {}), results(operator, tensors, options)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype, on_triton):
    """The output has the dtype of `u` and the accumulation stays in float32, also in the backward pass."""
    tensors, options = _case(True)
    tensors["u"] = tensors["u"].to(dtype)
    expected = results(operator, tensors, options)
    with torch.autocast("cpu", torch.bfloat16):
        ours = results(operator, tensors, options)
    for name in expected:
        assert ours[name].dtype == expected[name].dtype
        assert torch.equal(ours[name], expected[name]), name


def test_inference_mode(on_triton):
    """Also with tables that were made inside."""
    tensors, options = _case(True)
    expected = scan_tokens(**tensors, **options)
    with torch.inference_mode():
        options["tables"] = options["tables"].clone()
        assert torch.equal(scan_tokens(**tensors, **options), expected)


def test_tables_may_be_changed_in_place(on_triton):
    tables, _ = random_tables("permuted", 2, 7)
    tensors, options = arguments(batch=1, tokens=7, channels=3, tables=tables)
    scan_tokens(**tensors, **options)
    tables[1, :, 3:6] = -1
    y = scan_tokens(**tensors, **options)
    assert oracle.error(y, oracle.scan(**tensors, **options)[0]) <= FLOAT32["y"]


def test_second_derivative(on_triton):
    """Of the gradients that the kernels gave, in plain operations."""
    tensors, options = _case(True)

    def second(scan):
        u = tensors["u"].clone().requires_grad_()
        first = torch.autograd.grad(scan(**tensors | dict(u=u), **options)[0].square().sum(), u, create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), u)[0]

    assert oracle.error(second(operator), second(oracle.scan)) <= 2e-5


def test_arguments_are_left_as_they_are(on_triton):
    tensors, options = _case(True)
    before = {name: x.clone() for name, x in tensors.items()}
    results(operator, tensors, options)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_an_empty_batch(on_triton):
    for full in (True, False):
        tensors, options = _case(full, batch=0)
        found = results(operator, tensors, options)
        assert all(found[name].shape == x.shape and not found[name].any() for name, x in tensors.items())
    tensors, options = conv_cases.arguments(batch=0)
    found = conv_cases.results(causal_conv1d, tensors, options)
    assert found["y"].shape == (0, 2, 17, 7) and not found["weight"].any()


def test_defaults_change_nothing(on_triton):
    tensors, options = _case(True)
    expected = results(operator, tensors, options)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        y, last_state = operator(**tensors, **options)
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        again, _ = operator(**tensors, **options)
    assert torch.equal(y, expected["y"]) and torch.equal(again, y) and torch.equal(last_state, expected["last_state"])


def test_states_of_another_shape(on_triton):
    tensors, options = _case(True)
    inputs = [tensors.get(name) for name in ORDER]
    y, last_state, states, ungated = FORWARD(*inputs, *options.values(), True)
    tables, _, softplus, merge = options.values()
    with pytest.raises(ValueError, match="`states` is"):
        BACKWARD(y, last_state, *inputs, tables, states[:1], ungated, softplus, merge)


def test_tables_that_change_behind_autograd(on_triton):
    tables, _ = random_tables("permuted", 2, 7)
    tensors, options = arguments(batch=1, tokens=7, channels=3, tables=tables)
    scan_tokens(**tensors, **options)
    tables.numpy()[1, :, 3:6] = -1
    y = scan_tokens(**tensors, **options)
    assert oracle.error(y, oracle.scan(**tensors, **options)[0]) <= FLOAT32["y"]


# Layers and models


@pytest.mark.parametrize(("d_state", "shared"), [(1, True), (16, False)])
def test_layer(d_state, shared):
    """Outputs and gradients of the layer under every model; one tile of each path."""
    layer = SelectiveSSM(6, d_state=d_state, dt_rank=2, paths=2)
    u = torch.randn(2, 1 if shared else 2, 5, 6, requires_grad=True)
    tables, _ = random_tables("permuted", 2, 5)
    found = []
    for backend in ("triton", OTHER):
        with use_backend(backend):
            y = layer(u, tables, z=u[:, :1].flip(2))
            found.append([y, *torch.autograd.grad(y.square().sum(), [u, *layer.parameters()])])
    for ours, expected in zip(*found, strict=True):
        assert oracle.error(ours, expected) <= 1e-5


@pytest.mark.parametrize(("paths", "shared"), [(1, True), (4, True), (4, False)])
def test_a_layer_hands_its_projection_over(paths, shared, on_triton):
    """The kernels read dt, B and C where the layer's projection left them."""
    layer, launched, seen = SelectiveSSM(6, d_state=2, dt_rank=2, paths=paths), [], []
    launch = importlib.import_module("vision_ssm.ops.gpu.launch")
    ssm = importlib.import_module("vision_ssm.layers.ssm")
    scan = ssm.scan_tokens
    with pytest.MonkeyPatch.context() as patch, launch.intercepted(lambda kernel, args, options: launched.append(args)):
        patch.setattr(ssm, "scan_tokens", lambda u, dt, *args: seen.append(dt) or scan(u, dt, *args))
        layer(torch.randn(2, 1 if shared else paths, 5, 6))
    rows = next(args[0].inputs.x for args in launched if hasattr(args[0], "inputs"))
    assert rows.untyped_storage().data_ptr() == seen[0].untyped_storage().data_ptr()


@pytest.mark.parametrize(("name", "options", "size"), [("vim_test", dict(img_size=16), 16), ("vmamba_test", {}, 32)])
def test_model(name, options, size):
    torch.manual_seed(0)
    model = timm.create_model(name, depth=1, **options) if name == "vim_test" else timm.create_model(name, **options)
    x = torch.randn(1, 3, size, size)
    found = []
    for backend in ("triton", OTHER):
        with use_backend(backend), torch.inference_mode():
            found.append(model.eval()(x))
    assert oracle.error(*found) <= 1e-4


# Which backend runs


def test_it_is_there_and_runs_when_asked_for(monkeypatch):
    assert "triton" in available_backends()
    assert current_backend("cpu") == OTHER
    monkeypatch.setenv("VISION_SSM_BACKEND", "triton")
    assert current_backend("cpu") == current_backend("cpu", torch.bfloat16) == "triton"
    with use_backend("chunked"):
        assert current_backend("cpu") == "chunked"


def test_it_is_missing_where_nothing_runs_it(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "triton" not in available_backends()
    message = re.escape("it needs an NVIDIA GPU and Triton")
    with pytest.raises(RuntimeError, match=message), use_backend("triton"):
        pass
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu, "_installed", lambda: False)
    assert "triton" not in available_backends()


def test_tensors_of_a_gpu_that_is_not_there(monkeypatch):
    """Exporters trace for GPUs on machines without any."""
    monkeypatch.delenv("TRITON_INTERPRET")
    tensors, options = _case(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = {name: torch.empty(x.shape, device="cuda") for name, x in tensors.items()}
        y = scan_tokens(**fake, **options)
    assert y.shape == (1, 2, 4, 4) and y.device.type == "cuda"
