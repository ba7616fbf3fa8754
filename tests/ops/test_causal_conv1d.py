"""Causal depthwise convolution: every backend against the definition, and its contract with PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from ops.conv_cases import BFLOAT16, FLOAT16, FLOAT32, arguments, cases, check, results
from ops.scan_cases import INSTRUCTION_SETS, instruction_set, random_tables
from torch.utils.flop_counter import FlopCounterMode

from vision_ssm.ops import available_backends, causal_conv1d, cpu, flops, use_backend

BACKENDS = available_backends()
PLAIN = [name for name in BACKENDS if name != "cpu"]


@settings(max_examples=80)
@given(cases())
def test_matches_the_definition(case):
    check(*arguments(**case))


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@settings(max_examples=30)
@given(case=cases())
def test_every_instruction_set(name, case):
    with instruction_set(name):
        check(*arguments(**case), backends=["cpu"])


@settings(max_examples=10)
@given(cases(tokens=(2, 33)))
def test_float64(case):
    tensors, options = arguments(**case)
    check({name: x.double() for name, x in tensors.items()}, options, dict.fromkeys(FLOAT32, 1e-12))


@pytest.mark.parametrize(
    ("x", "weight", "tolerance"),
    [
        (torch.bfloat16, torch.bfloat16, BFLOAT16),
        (torch.bfloat16, torch.float32, BFLOAT16),
        (torch.float32, torch.bfloat16, BFLOAT16 | dict(y=1e-6, x=3e-6)),
        (torch.float16, torch.float32, FLOAT16),
    ],
)
@settings(max_examples=10)
@given(case=cases(tokens=(2, 33, 65)))
def test_reduced_precision(x, weight, tolerance, case):
    tensors, options = arguments(**case)
    check({name: value.to(x if name == "x" else weight) for name, value in tensors.items()}, options, tolerance)


def test_long_sequence():
    check(*arguments(tokens=1003, channels=18, mirrored=[False, True]))


def test_known_values():
    """The last tap meets the current token; mirrored, the sequence is read from its end."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4, 1)
    weight = torch.tensor([[[1.0, 10.0]], [[1.0, 10.0]]])
    tables = torch.tensor([[3, -1, 0], [3, -1, 0]], dtype=torch.int32)
    for backend in BACKENDS:
        with use_backend(backend):
            y = causal_conv1d(x, weight, mirrored=[False, True], silu=False)
            assert y[0, :, :, 0].tolist() == [[10, 21, 32, 43], [12, 23, 34, 40]]
            y = causal_conv1d(x, weight, tables=tables, mirrored=[False, True], silu=False)
            assert y[0, :, :, 0].tolist() == [[40, 4, 10], [40, 1, 10]]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(shared, dtype):
    """One half of a projection, sequences with the channels first, and every second entry."""
    tensors, options = arguments(shared=shared, channels=34, mirrored=[False, True])
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    tolerance = FLOAT32 if dtype == torch.float32 else BFLOAT16
    x = tensors["x"]
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=dtype)
    for view in (wide[..., 34:], wide[..., ::2], x.transpose(2, 3).contiguous().transpose(2, 3), x[:1].expand_as(x)):
        values = view if view.stride()[0] == 0 else view.copy_(x)
        check(tensors | dict(x=values), options, tolerance)
    weight = tensors["weight"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    check(tensors | dict(weight=weight, bias=tensors["bias"].T.contiguous().T), options, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pads_read_zeros_whatever_the_tokens_hold(backend):
    tensors, options = arguments(batch=1, tokens=4, paths=1, width=2)
    options["tables"] = torch.tensor([[-1, 3, 2, -1, 1, 0]], dtype=torch.int32)
    with use_backend(backend):
        clean = causal_conv1d(**tensors, **options)
        tensors["x"][:, :, 0] = torch.nan
        y = causal_conv1d(**tensors, **options)
    assert torch.equal(y[:, :, :5], clean[:, :, :5]) and y[:, :, 5].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_where_the_filter_reaches(backend):
    tensors, options = arguments(batch=1, tokens=40, channels=20, paths=1)
    with use_backend(backend):
        clean = causal_conv1d(**tensors, **options)
        tensors["x"][0, 0, 9, 3] = torch.nan
        y = causal_conv1d(**tensors, **options)
    reached = torch.zeros_like(y, dtype=torch.bool)
    reached[0, 0, 9:13, 3] = True
    assert y[reached].isnan().all() and torch.equal(y[~reached], clean[~reached])


@pytest.mark.parametrize("value", [100.0, -100.0, 1e30, -1e30])
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_saturated_activation(name, value):
    """In some channels: where all of an output were 1e-42, no error relative to it could be small."""
    tensors, options = arguments(channels=20)
    tensors["bias"][:, ::3] = value
    with instruction_set(name):
        check(tensors, options, backends=["cpu"])


@pytest.mark.parametrize("backend", PLAIN)
def test_gradcheck(backend):
    tables, _ = random_tables("any", 2, 6, seed=3)
    tensors, options = arguments(tokens=6, channels=2, width=3, tables=tables[0].contiguous(), mirrored=[True, False])
    with use_backend(backend):
        inputs = [x.double().requires_grad_() for x in tensors.values()]
        assert torch.autograd.gradcheck(lambda *values: causal_conv1d(*values, **options), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_on_repeat(backend):
    tensors, options = arguments(tokens=200, channels=48, mirrored=[False, True])
    with use_backend(backend):
        first, second = (results(causal_conv1d, tensors, options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(not cpu.available(), reason="the compiled kernels were not built")
def test_same_bits_for_any_number_of_threads(threads):
    tensors, options = arguments(batch=3, tokens=300, channels=100, mirrored=[False, True])
    runs = []
    with use_backend("cpu"):
        for number in (1, 2, 3):
            threads(number)
            runs.append(results(causal_conv1d, tensors, options))
    for run in runs[1:]:
        assert all(torch.equal(runs[0][name], run[name]) for name in run)


def _case(full: bool) -> tuple[dict, dict]:
    if not full:
        return arguments(bias=False, mirrored=[False, False], silu=False)
    tables, _ = random_tables("any", 2, 17)
    return arguments(shared=False, tables=tables[0].contiguous(), mirrored=[False, True])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, full, dtype):
    tensors, options = _case(full)
    inputs = [tensors[name].to(dtype) if name in tensors else None for name in ("x", "weight", "bias")]
    with use_backend(backend):
        leaves = [x if x is None else x.clone().requires_grad_() for x in inputs]
        torch.library.opcheck(torch.ops.vision_ssm.causal_conv1d, (*leaves, *options.values()))
        y = causal_conv1d(*inputs, **options)
        torch.library.opcheck(
            torch.ops.vision_ssm.causal_conv1d_backward,
            (y, *inputs, *options.values()),
            test_utils=("test_schema", "test_faketensor"),  # it has no derivative of its own
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile(backend):
    tensors, options = _case(True)
    inputs = [x.requires_grad_() for x in tensors.values()]

    def loss(x, weight, bias):
        return causal_conv1d(x, weight, bias, **options).square().mean()

    with use_backend(backend):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
        ours, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss))
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    tensors, options = _case(True)
    with use_backend(backend):
        expected = results(causal_conv1d, tensors, options)
        with torch.autocast("cpu", torch.bfloat16):
            ours = results(causal_conv1d, tensors, options)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_flops():
    tensors, options = _case(True)
    tensors["x"].requires_grad_()
    count = 2 * 2 * 20 * 7 * 4
    assert flops.conv_flops(2, 2, 20, 7, 4) == count
    with FlopCounterMode(display=False) as forward:
        y = causal_conv1d(**tensors, **options)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert (forward.get_total_flops(), backward.get_total_flops()) == (2 * count, 6 * count)
    fvcore = pytest.importorskip("fvcore.nn")

    class Conv(torch.nn.Module):
        def forward(self, x, weight, bias):
            return causal_conv1d(x, weight, bias, **options)

    analysis = fvcore.FlopCountAnalysis(Conv(), tuple(x.detach() for x in tensors.values()))
    assert analysis.set_op_handle(**flops.fvcore_handles()).total() == count


TABLES = torch.arange(17, dtype=torch.int32).expand(2, 17).contiguous()
OUT_OF_RANGE = [torch.where(TABLES == 5, value, TABLES) for value in (17, -2)]
BAD = [
    (dict(x=torch.zeros(2, 17, 7)), ValueError, r"`x` is \(2, 17, 7\)"),
    (dict(x=torch.zeros(2, 3, 17, 7)), ValueError, r"`x` is \(2, 3, 17, 7\): expected \(batch, 1 or 2, tokens, 7\)"),
    (dict(x=torch.zeros(2, 1, 17, 6)), ValueError, r"`x` is \(2, 1, 17, 6\)"),
    (dict(x=torch.zeros(2, 1, 0, 7)), ValueError, r"`x` is \(2, 1, 0, 7\): expected at least one token"),
    (dict(x=torch.zeros(2, 1, 17, 7, dtype=torch.int64)), TypeError, "`x` is torch.int64"),
    (dict(x=torch.zeros(2, 1, 17, 7, dtype=torch.complex64)), TypeError, "`x` is torch.complex64"),
    (dict(weight=torch.zeros(7, 4)), ValueError, r"`weight` \(7, 4\)"),
    (dict(weight=torch.zeros(2, 7, 4, dtype=torch.int32)), TypeError, "`weight` is torch.int32"),
    (dict(weight=torch.zeros(2, 7, 4, device="meta")), ValueError, "`weight` is on meta: expected cpu"),
    (dict(bias=torch.zeros(7)), ValueError, r"`bias` is \(7,\): expected \(2, 7\)"),
    (dict(bias=torch.zeros(2, 7, device="meta")), ValueError, "`bias` is on meta: expected cpu"),
    (dict(mirrored=[True]), ValueError, "`mirrored` has 1 entries: expected one for each of 2 paths"),
    (dict(tables=TABLES.long()), TypeError, "`tables` is torch.int64: expected torch.int32"),
    (dict(tables=TABLES[0]), ValueError, r"`tables` is \(17,\): expected a contiguous \(2, steps\)"),
    (dict(tables=TABLES[:1]), ValueError, r"`tables` is \(1, 17\)"),
    (dict(tables=TABLES[:, ::2]), ValueError, "`tables` is"),
    (dict(tables=TABLES.to("meta")), ValueError, "`tables` is on meta: expected cpu"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_wrong_arguments(changes, kind, message):
    tensors, options = arguments()
    with pytest.raises(kind, match=message):
        causal_conv1d(**(tensors | options | changes))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tables", OUT_OF_RANGE, ids=["too large", "too small"])
def test_tokens_out_of_range(backend, tables):
    tensors, options = arguments(tables=tables)
    with use_backend(backend), pytest.raises(ValueError, match="`tables` holds a token that is out of range"):
        causal_conv1d(**tensors, **options)
