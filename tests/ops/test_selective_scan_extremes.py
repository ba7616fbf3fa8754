"""Selective scan at the edges of its numbers: overflow, underflow, NaN, long memory, tensors beyond 2^31 elements."""

import shutil

import pytest
import torch
from ops import oracle
from ops.scan_cases import (
    FLOAT32,
    INSTRUCTION_SETS,
    STEP_SIZES,
    arguments,
    check,
    growing,
    instruction_set,
    operator,
    random_tables,
    results,
    with_dt,
)

from vision_ssm.ops import available_backends, scan_tokens, use_backend

BACKENDS = available_backends()
PLAIN = [name for name in BACKENDS if name != "cpu"]  # the kernels compute in float32 only


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize(
    "kind",
    [dict(groups=2), dict(rank=2, merge=False), dict(softplus=False, gate=False, shared=False), dict(skip=False)],
)
def test_gradcheck(backend, kind):
    tables, out_tokens = random_tables("any", 2, 6, seed=3)
    tensors, options = arguments(tokens=6, channels=2, d_state=2, tables=tables, out_tokens=out_tokens, **kind)
    names = list(tensors)
    with use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda *values: operator(**dict(zip(names, values, strict=True)), **options),
            [tensors[name].double().requires_grad_() for name in names],
        )


@pytest.mark.parametrize("kind", STEP_SIZES)
@pytest.mark.parametrize("skip", [True, False])
def test_step_sizes(kind, skip):
    check(*with_dt(STEP_SIZES[kind], skip=skip))


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("kind", STEP_SIZES)
def test_step_sizes_on_every_instruction_set(name, kind):
    with instruction_set(name):
        check(*with_dt(STEP_SIZES[kind]), backends=["cpu"])


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5])
def test_steps_without_softplus(value):
    check(*with_dt(lambda dt: torch.full_like(dt, value), softplus=False))


def test_negative_steps():
    """Without softplus a state may grow: the roundings of all 70 decays are carried to the end."""
    tensors, options = with_dt(lambda dt: torch.full_like(dt, -0.01), softplus=False)
    check(tensors, options, {name: limit + 70 * 6e-8 for name, limit in FLOAT32.items()})


def test_steps_of_minus_100_everywhere_leave_the_skip():
    tensors, options = with_dt(lambda dt: torch.full_like(dt, -100.0), gate=False)
    for backend in BACKENDS:
        with use_backend(backend):
            y = scan_tokens(**tensors, **options)
        torch.testing.assert_close(y, (tensors["u"] * tensors["D"][:, None]).sum(1, keepdim=True), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_growth_by_one_step(name):
    """Up to the largest float32, exp(88.72), a decay above one is exact; beyond it is infinite."""
    exponents = torch.tensor([0.5, 10.0, 60.0, 87.0, 87.9, 88.1, 88.4, 88.7, 88.8, 100.0, 1e10, 0.0, -87.5, -60.0])
    tensors, options = growing(2, exponents, 1e-30)
    expected = oracle.scan(**tensors, **options)[0][0, 0, 1].float()
    expected[exponents > 88.72] = torch.inf
    with instruction_set(name), use_backend("cpu"):
        y = scan_tokens(**tensors, **options)[0, 0, 1]
    # Rounding exponent * log2(e) to float32 alone may cost 88 * 6e-8 of the result.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_growth_to_infinity(backend):
    tensors, options = growing(200, torch.tensor([0.1, 0.5, 1.0, 3.0, 7.0]), 1.0)
    expected = oracle.scan(**tensors, **options)[0].float()
    with use_backend(backend):
        y = scan_tokens(**tensors, **options)
    assert expected.isinf().any()
    assert torch.equal(y.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    torch.testing.assert_close(y[finite], expected[finite], rtol=2e-5, atol=0)  # 200 roundings of state and decay


@pytest.mark.parametrize("backend", BACKENDS)
def test_growth_from_nothing(backend):
    """What would have grown to infinity leaves a state of zero as it is."""
    tensors, options = growing(200, torch.tensor([0.1, 1.0, 7.0, 40.0]), 0.0)
    tensors["u"][:, :, 198] = 1
    with use_backend(backend):
        y = scan_tokens(**tensors, **options)
    torch.testing.assert_close(y.double(), oracle.scan(**tensors, **options)[0], rtol=2e-5, atol=0)


def test_pure_integrator():
    """A = 0 forgets nothing: ten thousand roundings add up, to about 100 * 6e-8 of the state in the mean."""
    tensors, options = arguments(batch=1, tokens=10_000, channels=5, d_state=2, paths=1)
    tensors["A"] = torch.zeros_like(tensors["A"])
    check(tensors, options, {name: max(limit, 5e-6) for name, limit in FLOAT32.items()})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["u", "dt"])
def test_nan_stays_in_its_channel(backend, where):
    tensors, options = arguments(batch=2, tokens=70, channels=20, d_state=5, paths=1, gate=False)
    with use_backend(backend):
        clean = results(operator, tensors, options)
        tensors[where] = tensors[where].clone()
        tensors[where][0, 0, 30, 3] = torch.nan
        ours = results(operator, tensors, options)
    for name in ("y", "u", "dt"):
        own = torch.zeros_like(clean[name], dtype=torch.bool)
        own[0, 0, :, 3] = True
        assert torch.equal(ours[name][~own], clean[name][~own])
    assert torch.equal(ours["y"][0, 0, :30], clean["y"][0, 0, :30])
    assert ours["y"][0, 0, 30:, 3].isnan().all()
    others = [c for c in range(20) if c != 3]
    for name in ("A", "D", "dt_bias"):
        assert torch.equal(ours[name][:, others], clean[name][:, others])
    assert ours["A"][:, 3].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["u", "dt", "B", "C"])
def test_pads_read_zeros_whatever_the_tokens_hold(backend, where):
    """The pads stand before the token that is not finite: nothing of it may reach the steps before."""
    tensors, options = arguments(batch=1, tokens=6, channels=3, paths=1, gate=False, bias=False)
    order = torch.tensor([[-1, 5, 4, -1, 3, 2, 1, 0]], dtype=torch.int32)
    options["tables"] = torch.stack([order, order])
    with use_backend(backend):
        clean = scan_tokens(**tensors, **options)
        tensors[where] = tensors[where].clone()
        tensors[where][:, :, 0] = torch.nan
        y = scan_tokens(**tensors, **options)
    assert torch.equal(y[:, :, 1:], clean[:, :, 1:])


@pytest.mark.parametrize("dimension", range(4))
def test_offsets_beyond_32_bits(tmp_path, dimension):
    """Inputs whose strides reach past 2^31 elements, in a sparse file: only the touched pages exist."""
    size = 2**31 + 2**12
    if shutil.disk_usage(tmp_path).free < 4 * size:
        pytest.skip("a filesystem of that size is not there")
    try:
        memory = torch.from_file(str(tmp_path / "memory"), shared=True, size=size, dtype=torch.float32)
    except RuntimeError as error:
        pytest.skip(f"no file of 8 GB: {error}")
    if (tmp_path / "memory").stat().st_blocks * 512 > size:
        pytest.skip("this filesystem has no sparse files")

    tensors, options = arguments(batch=2, tokens=3, channels=17, paths=2, merge=False, shared=False)
    far = {}
    for name in ("u", "dt", "B", "C", "z"):
        x = tensors[name]
        d = dimension if x.dim() == 4 or dimension < 3 else 4
        # One step along the dimension takes `far`; what lies in between fits into a page or two.
        strides = [s * (x.shape[d] if i < d else 1) for i, s in enumerate(x.contiguous().stride())]
        strides[d] = (2**31 - 1) // (x.shape[d] - 1) + 1
        far[name] = memory.as_strided(x.shape, strides)
    for name, view in far.items():
        view.copy_(tensors[name])
        check(tensors | {name: view}, options)
    (tmp_path / "memory").unlink()
