"""Selective scan: every backend against the definition, over shapes, dtypes, layouts and instruction sets."""

import pytest
import torch
from hypothesis import given, settings
from ops.scan_cases import (
    BFLOAT16,
    DTYPES,
    FLOAT32,
    FLOAT64,
    INSTRUCTION_SETS,
    LAYOUTS,
    TABLE_KINDS,
    arguments,
    cases,
    check,
    convert,
    instruction_set,
    operator,
    random_tables,
    results,
)

from vision_ssm.ops import available_backends, cpu, scan_tokens, selective_scan_nd, use_backend

BACKENDS = available_backends()
needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the compiled kernels were not built")


@settings(max_examples=100)
@given(cases())
def test_matches_the_definition(case):
    check(*arguments(**case))


@pytest.mark.parametrize("kind", TABLE_KINDS)
@pytest.mark.parametrize("merge", [True, False])
def test_every_kind_of_table(kind, merge):
    tables, out_tokens = random_tables(kind, paths=3, tokens=40)
    check(*arguments(paths=3, tokens=40, channels=20, tables=tables, out_tokens=out_tokens, merge=merge))


@pytest.mark.parametrize("tokens", [1, 2, 64, 65])
@pytest.mark.parametrize("d_state", [1, 3])
def test_a_single_channel(tokens, d_state):
    check(*arguments(tokens=tokens, channels=1, d_state=d_state, paths=1, batch=1, seed=2))


@pytest.mark.parametrize(("d_state", "rank", "kind"), [(1, 3, "permuted"), (16, 0, "none"), (5, 2, "padded")])
def test_long_sequences(d_state, rank, kind):
    tables, _ = random_tables(kind, paths=2, tokens=1003)
    check(*arguments(tokens=1003, channels=18, d_state=d_state, rank=rank, tables=tables))


def test_a_step_without_a_token_still_decays_the_state():
    """At a pad u, dt, B and C are zero; delta is softplus of the bias alone."""
    tensors, options = arguments(batch=1, tokens=1, channels=1, d_state=1, paths=1, skip=False, gate=False)
    options["tables"] = torch.tensor([[[0, -1, -1]], [[-1, -1, 0]]], dtype=torch.int32)
    expected = tensors["u"] * tensors["B"][..., 0]
    softplus = torch.nn.functional.softplus
    expected = expected * softplus(tensors["dt"] + tensors["dt_bias"])
    expected = expected * torch.exp(2 * softplus(tensors["dt_bias"]) * tensors["A"][..., 0])
    for backend in BACKENDS:
        with use_backend(backend):
            y, last_state = operator(**tensors, **options)
        torch.testing.assert_close(last_state, expected, rtol=1e-5, atol=0)
        assert y.item() == 0  # C is zero at the step that writes


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@settings(max_examples=40)
@given(case=cases())
def test_every_instruction_set(name, case):
    with instruction_set(name):
        check(*arguments(**case), backends=["cpu"])


@settings(max_examples=15)
@given(cases(tokens=(1, 5, 40), channels=(1, 7, 20), d_state=(1, 3, 16)))
def test_float64(case):
    tensors, options = arguments(**case)
    check({name: x.double() for name, x in tensors.items()}, options, FLOAT64)


@pytest.mark.parametrize("kind", DTYPES)
@settings(max_examples=10)
@given(case=cases(tokens=(2, 33, 65), channels=(7, 33), d_state=(1, 3, 16)))
def test_reduced_precision(kind, case):
    dtypes, tolerance = DTYPES[kind]
    tensors, options = arguments(**case)
    check(convert(tensors, dtypes), options, tolerance)


@pytest.mark.parametrize("wide", ["u", "dt", "A", "B", "dt_weight"])
def test_one_float64_among_float32(wide):
    """It is computed at least as precisely as float32 alone."""
    tensors, options = arguments(rank=3)
    check(convert(tensors, {wide: torch.float64}), options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(layout, rank, dtype):
    tensors, options = arguments(channels=34, d_state=5, groups=2, paths=2, rank=rank, shared=False, tokens=35)
    tensors = {name: LAYOUTS[layout](x.to(dtype)) for name, x in tensors.items()}
    check(tensors, options, FLOAT32 if dtype == torch.float32 else BFLOAT16)


def test_broadcast_inputs():
    """Values shared by expanding a dimension (stride 0) have a gradient for each place."""
    tensors, options = arguments(batch=3, channels=16, paths=4, merge=False)
    tensors |= {name: tensors[name][:, :1].expand(-1, 4, *[-1] * (tensors[name].dim() - 2)) for name in ("u", "dt")}
    tensors |= {name: tensors[name][:1].expand(3, *[-1] * 4) for name in "BC"}
    tensors |= {name: tensors[name][:1].expand(4, *[-1] * (tensors[name].dim() - 1)) for name in ("A", "D", "dt_bias")}
    check(tensors, options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend):
    tensors, options = arguments(batch=0)
    with use_backend(backend):
        ours = results(operator, tensors, options)
    assert ours["y"].shape == (0, 1, 17, 7) and ours["last_state"].shape == (0, 2, 7, 4)
    assert not ours["A"].any() and ours["u"].shape == (0, 1, 17, 7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_grids(backend):
    """`selective_scan_nd` is `scan_tokens` on flattened grids."""
    tensors, options = arguments(tokens=12, paths=3, shared=False, merge=False, gate=False, rank=2)
    tables, _ = random_tables("permuted", 3, 12)
    options["tables"] = tables
    grids = {name: tensors[name].unflatten(2, (3, 4)) for name in ("u", "dt", "B", "C")}
    flat = {name: x for name, x in tensors.items() if name not in grids}
    with use_backend(backend):
        expected = scan_tokens(**tensors, **options)
        x, B, C = grids["u"], grids["B"].squeeze(4), grids["C"].squeeze(4)
        y = selective_scan_nd(x, grids["dt"], B=B, C=C, **flat, tables=tables, merge=False)
        assert torch.equal(y, expected.unflatten(2, (3, 4)))
        z = torch.randn(2, 3, 4, 7)
        y = selective_scan_nd(x[:, 0], grids["dt"], B=B, C=C, z=z, **flat, tables=tables)
        options["merge"] = True
        tensors |= dict(u=tensors["u"][:, :1], z=z.flatten(1, 2).unsqueeze(1))
        assert torch.equal(y, scan_tokens(**tensors, **options).view(2, 3, 4, 7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_on_repeat(backend):
    tables, _ = random_tables("any", paths=4, tokens=200)
    tensors, options = arguments(tokens=200, channels=48, paths=4, rank=3, tables=tables, out_tokens=198)
    with use_backend(backend):
        first, second = (results(operator, tensors, options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_kernels
@pytest.mark.parametrize(("channels", "groups"), [(200, 1), (33, 3)])
def test_same_bits_for_any_number_of_threads(threads, channels, groups):
    tables, _ = random_tables("permuted", paths=2, tokens=300)
    tensors, options = arguments(
        batch=3, tokens=300, channels=channels, groups=groups, rank=4, tables=tables, d_state=16
    )
    runs = []
    with use_backend("cpu"):
        for number in (1, 2, 3):
            threads(number)
            runs.append(results(operator, tensors, options))
    for run in runs[1:]:
        assert all(torch.equal(runs[0][name], run[name]) for name in run)


@needs_kernels
@pytest.mark.parametrize(("forward", "backward"), [("cpu", "chunked"), ("chunked", "cpu"), ("reference", "cpu")])
def test_backward_on_another_backend_than_forward(forward, backward):
    tensors, options = arguments(rank=2)
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    with use_backend(forward):
        y = scan_tokens(**leaves, **options)
    with use_backend(backward):
        ours = torch.autograd.grad(y.sum(), list(leaves.values()))
    with use_backend("reference"):
        expected = torch.autograd.grad(scan_tokens(**leaves, **options).sum(), list(leaves.values()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
