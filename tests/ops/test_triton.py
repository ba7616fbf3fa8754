"""The Triton kernels, interpreted on the CPU: every part of them against the definition.

A program takes 32 or 64 channels, tiles of 2 to 16 steps, chunks of 64 steps; the shapes here lie at these limits.
"""

import contextlib
import importlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ops import oracle
from ops.interpreter import interpreted
from ops.scan_cases import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    LAYOUTS,
    STEP_SIZES,
    TABLE_KINDS,
    arguments,
    cases,
    check,
    convert,
    growing,
    operator,
    random_tables,
    results,
    with_dt,
)

from vision_ssm.ops import gpu, scan_tokens, selective_scan, use_backend
from vision_ssm.ops.gpu.plan import CHUNK, use_plan

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl, conv_kernels, tiles = map(
    importlib.import_module, ("triton.language", "vision_ssm.ops.gpu.conv_kernels", "vision_ssm.ops.gpu.tiles")
)
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the kernels on this machine's GPU"),
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # NumPy's, of infinities
]


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


def _check(tensors: dict, options: dict, tolerance: dict = FLOAT32) -> None:
    check(tensors, options, tolerance, ["triton"])


def _one(**kwargs) -> tuple[dict, dict]:
    """Arguments of a single program where nothing else is asked for: programs are interpreted one by one."""
    return arguments(**dict(batch=1, paths=1, tokens=9, channels=6, d_state=3) | kwargs)


def _with_tables(kind: str, tokens: int = 9, paths: int = 2, seed: int = 0, **kwargs) -> tuple[dict, dict]:
    tables, out_tokens = random_tables(kind, paths, tokens, seed)
    return _one(tokens=tokens, paths=paths, tables=tables, out_tokens=out_tokens, **kwargs)


@st.composite
def small_cases(draw):
    """Arguments of every shape and with every option, of few programs."""
    case = draw(cases(tokens=(1, 2, 3, 5, 9), channels=(1, 3, 7, 16, 33), d_state=(1, 2, 3, 4, 5, 16, 17, 20)))
    few = dict(groups=case["groups"] if case["groups"] <= 3 else 1, batch=1 if case["paths"] > 2 else case["batch"])
    return case | few | dict(rank=draw(st.sampled_from([0, 1, 2, 3, 4])))


@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])  # shrinking would take minutes
@given(small_cases())
def test_matches_the_definition(case):
    _check(*arguments(**case))


# Shapes


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17])
def test_around_a_tile(tokens):
    _check(*_one(tokens=tokens, d_state=1 if tokens > 9 else 4))


@pytest.mark.parametrize("tokens", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
@pytest.mark.parametrize("segments", [1, 9])
def test_around_a_chunk(tokens, segments):
    with use_plan(f"segments={segments}"):
        _check(*_one(tokens=tokens, d_state=1, channels=3))


@pytest.mark.parametrize("d_state", [2, 4, 8, 16, 20, 33, 64])
def test_states(d_state):
    _check(*_one(tokens=3, channels=3, d_state=d_state, rank=2))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize("d_state", [1, 5])
def test_ranks(rank, d_state):
    """Rows (dt, B, C) of an odd length are not read in pairs."""
    _check(*_one(tokens=5, rank=rank, d_state=d_state, paths=2))


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 3), (32, 1), (33, 1), (66, 2), (70, 1)])
def test_blocks_and_groups(channels, groups):
    """Gradients of B and C are sums over the blocks of a group."""
    _check(*_one(channels=channels, groups=groups, paths=3 if channels == 1 else 1))


@pytest.mark.parametrize("kind", TABLE_KINDS)
@pytest.mark.parametrize("merge", [True, False])
def test_every_kind_of_table(kind, merge):
    _check(*_with_tables(kind, rank=2, merge=merge))


@pytest.mark.parametrize("off", ["skip", "gate", "bias", "softplus", "shared"])
@pytest.mark.parametrize("merge", [True, False])
def test_without_an_option(off, merge):
    _check(*_one(paths=2, merge=merge, tokens=5, **{off: False}))


def test_one_gate_for_outputs_that_stay_apart():
    tensors, options = _one(paths=3, merge=False, shared=False)
    assert tensors["z"].shape[1] == 3
    _check(tensors | dict(z=tensors["z"][:, :1]), options)


@pytest.mark.parametrize("kind", ["one way", "any"])
def test_tokens_left_out_or_met_twice_by_one_side_only(kind):
    """The side with tokens met twice adds up; the other one writes in place."""
    tensors, options = _with_tables("permuted", seed=1)
    other, out_tokens = random_tables(kind, 2, 9, seed=2)
    if kind == "any":
        other, options["tables"] = other[..., :9].contiguous(), options["tables"].clone()
    read, written = options["tables"], other
    _check(tensors, options | dict(tables=torch.stack([written[0], read[1]])))
    if kind == "any":
        tensors["z"] = tensors["z"][:, :, :out_tokens]
        _check(tensors, options | dict(tables=torch.stack([read[0], written[1]]), out_tokens=out_tokens))


@pytest.mark.parametrize("merge", [True, False])
def test_tokens_left_out(merge):
    """No token twice, but some of both sides never: their outputs and gradients are zero."""
    random = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(12, generator=random) for _ in range(4)]).view(2, 2, 12)[..., :7].int()
    orders[1, 0, 3] = orders[0, 1, 5] = -1
    tensors, options = _one(tokens=12, paths=2, merge=merge, tables=orders.contiguous(), out_tokens=15)
    _check(tensors, options)
    _check(tensors | dict(u=tensors["u"].repeat(1, 2, 1, 1)), options)


# Plans


@pytest.mark.parametrize("kind", ["none", "padded", "any"])
def test_segments(kind):
    """What a segment ends with decays over the next ones, in both directions."""
    with use_plan("segments=3"):
        _check(*_with_tables(kind, tokens=150, paths=1, channels=3, d_state=2, rank=1))


def test_segments_of_several_chunks():
    with use_plan("segments=2"):
        _check(*_one(tokens=200, channels=2, d_state=1, groups=2, paths=2, bias=False))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("segments", [2, 64, 130])
def test_carries(segments, first, reverse):
    """Any number of segments, of which a program takes 64 at a time."""
    from vision_ssm.ops.gpu.carry import carry_over
    from vision_ssm.ops.gpu.launch import launch

    rows, paths, states, channels = 2, 2, 2, 5
    ends, sums = torch.randn(rows, segments, states, channels), torch.rand(rows, segments, channels)
    A, entry = -torch.rand(paths, states, channels), torch.randn(rows, states, channels)
    carries = torch.full_like(ends, torch.nan)
    launch(
        carry_over, rows * states, ends, ends, sums, A, entry if first else None, carries, channels, paths, segments,
        STATES=states, SEGMENTS=64, BLOCK=8, REVERSE=reverse, warps=4,
    )  # fmt: skip
    h = entry.double() if first else torch.zeros(rows, states, channels, dtype=torch.float64)
    for s in reversed(range(segments)) if reverse else range(segments):
        torch.testing.assert_close(carries[:, s].double(), h, rtol=1e-5, atol=1e-6)
        h = ends[:, s] + torch.exp2(sums[:, s, None] * A).double() * h


@pytest.mark.parametrize(
    ("channels", "groups", "plan"),
    [
        (64, 1, "pack=2"),
        (96, 1, "pack=2 tile=4"),
        (128, 2, "pack=2 tile=2"),
        (10, 1, "pack=2 segments=2"),
        (33, 1, "pack=2"),  # an odd width cannot be packed
        (4, 1, "tile=2"),
        (4, 1, "tile=32"),
        (4, 1, "tile=64 registers=64"),
    ],
)
@pytest.mark.parametrize("rank", [0, 2])
def test_forced_plans(channels, groups, plan, rank):
    with use_plan(plan):
        _check(*_one(tokens=66 if "segments" in plan else 7, channels=channels, groups=groups, d_state=2, rank=rank))


def test_packed_with_everything_else():
    tables, out_tokens = random_tables("any", 2, 12)
    with use_plan("pack=2"):
        _check(
            *arguments(tokens=12, channels=70, rank=3, tables=tables, out_tokens=out_tokens, d_state=5, shared=False)
        )
        _check(*_one(channels=64, merge=False, paths=2, d_state=4, softplus=False))


def test_packed_with_odd_strides():
    """Tensors whose rows start at odd places are not packed; a gate is copied."""
    tensors, options = _one(channels=64, merge=False, paths=2)
    for name in ("u", "dt", "z"):
        odd = torch.full((*tensors[name].shape[:3], 65), torch.nan)[..., 1:].copy_(tensors[name])
        with use_plan("pack=2"):
            _check(tensors | {name: odd}, options)


# Numbers


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("rank", [0, 3])
def test_reduced_precision(kind, rank):
    dtypes, tolerance = DTYPES[kind]
    tensors, options = _with_tables("padded", rank=rank)
    _check(convert(tensors, dtypes), options, tolerance)


@pytest.mark.parametrize("tables", ["none", "any"])
def test_reduced_precision_apart(tables):
    tensors, options = _with_tables(tables, merge=False, shared=False)
    _check(convert(tensors, dict.fromkeys(tensors, torch.float16)), options, FLOAT16)
    _check(convert(tensors, dict.fromkeys(tensors, torch.bfloat16)), options, BFLOAT16)


@pytest.mark.parametrize("wide", ["u", "dt", "A", "B", "z", "D", "dt_bias", "dt_weight"])
def test_one_float64_among_float32(wide):
    """It is computed at least as precisely as float32 alone."""
    tensors, options = _one(rank=3, tokens=5)
    _check(convert(tensors, {wide: torch.float64}), options)


@pytest.mark.parametrize("kind", STEP_SIZES)
@pytest.mark.parametrize("tokens", [9, 70])
def test_step_sizes(kind, tokens):
    _check(*with_dt(STEP_SIZES[kind], batch=1, paths=1, channels=4, tokens=tokens, d_state=2))


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5])
def test_steps_without_softplus(value):
    change = lambda dt: torch.full_like(dt, value)  # noqa: E731
    _check(*with_dt(change, softplus=False, batch=1, paths=1, channels=4, tokens=9))


def test_pure_integrator():
    tensors, options = _one(tokens=140, channels=2, d_state=1)
    _check(tensors | dict(A=torch.zeros_like(tensors["A"])), options)


@pytest.mark.parametrize("segments", [1, 4])
def test_growth_to_infinity(segments, on_triton):
    tensors, options = growing(200, torch.tensor([0.1, 0.5, 1.0, 3.0, 7.0]), 1.0)
    expected = oracle.scan(**tensors, **options)[0].float()
    with use_plan(f"segments={segments}"):
        y = scan_tokens(**tensors, **options)
    assert expected.isinf().any()
    assert torch.equal(y.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    torch.testing.assert_close(y[finite], expected[finite], rtol=2e-5, atol=0)


@pytest.mark.parametrize("segments", [1, 4])
def test_growth_from_nothing(segments, on_triton):
    """What would have grown to infinity leaves a state of zero as it is."""
    tensors, options = growing(200, torch.tensor([0.1, 1.0, 7.0, 40.0]), 0.0)
    tensors["u"][:, :, 198] = 1
    with use_plan(f"segments={segments}"):
        y = scan_tokens(**tensors, **options)
    torch.testing.assert_close(y.double(), oracle.scan(**tensors, **options)[0], rtol=2e-5, atol=0)


@pytest.mark.parametrize("where", ["u", "dt"])
def test_nan_stays_in_its_channel(where, on_triton):
    tensors, options = _one(tokens=70, channels=5, d_state=2, gate=False)
    clean = results(operator, tensors, options)
    tensors[where] = tensors[where].clone()
    tensors[where][0, 0, 30, 3] = torch.nan
    ours = results(operator, tensors, options)
    for name in ("y", "u", "dt"):
        own = torch.zeros_like(clean[name], dtype=torch.bool)
        own[0, 0, :, 3] = True
        assert torch.equal(ours[name][~own], clean[name][~own])
    assert torch.equal(ours["y"][0, 0, :30], clean["y"][0, 0, :30])
    assert ours["y"][0, 0, 30:, 3].isnan().all() and ours["last_state"][0, 0, 3].isnan().all()
    for name in ("A", "D", "dt_bias"):
        assert torch.equal(ours[name][:, [0, 1, 2, 4]], clean[name][:, [0, 1, 2, 4]])
    assert ours["A"][:, 3].isnan().all()


@pytest.mark.parametrize("where", ["u", "dt", "B", "C", "A", "D", "z", "dt_bias", "dt_weight"])
def test_nan_reaches_the_output(where, on_triton):
    tensors, options = _one(rank=2, tokens=3)
    tensors[where] = torch.full_like(tensors[where], torch.nan)
    assert scan_tokens(**tensors, **options).isnan().all()


@pytest.mark.parametrize("where", ["u", "dt", "B", "C"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_pads_read_zeros_whatever_the_tokens_hold(where, value, on_triton):
    """The first token is not finite: nothing of it may reach the steps before it, where pads stand."""
    tensors, options = _one(tokens=6, channels=3, gate=False, bias=False)
    order = torch.tensor([[-1, 5, 4, -1, 3, 2, 1, 0]], dtype=torch.int32)
    options["tables"] = torch.stack([order, order])
    clean = scan_tokens(**tensors, **options)
    tensors[where] = tensors[where].clone()
    tensors[where][:, :, 0] = value
    assert torch.equal(scan_tokens(**tensors, **options)[:, :, 1:], clean[:, :, 1:])


@pytest.mark.parametrize("where", ["u", "dt", "B", "C"])
def test_pads_receive_no_gradient_whatever_the_tokens_hold(where, on_triton):
    """The first token is met first: nothing of it may reach the gradients of the steps after it, where pads stand."""
    tensors, options = _one(tokens=6, channels=3, gate=False, bias=False, skip=False)
    order = torch.tensor([[0, 5, 4, -1, 3, 2, 1, -1]], dtype=torch.int32)
    options["tables"] = torch.stack([order, order])
    clean = results(operator, tensors, options)
    tensors[where] = tensors[where].clone()
    tensors[where][:, :, 0] = torch.nan
    ours = results(operator, tensors, options)
    if where == "C":  # the states do not know of it
        for name in ("u", "dt", "B", "C"):
            assert torch.equal(ours[name][:, :, 1:], clean[name][:, :, 1:]), name
    assert torch.equal(ours["u"][:, :, 1:], clean["u"][:, :, 1:])  # dt B times the adjoint, which looks ahead


# Memory


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(layout, rank, dtype):
    tensors, options = arguments(channels=6, d_state=2, groups=2, rank=rank, shared=False, tokens=5, batch=2, paths=2)
    tensors = {name: LAYOUTS[layout](x.to(dtype)) for name, x in tensors.items()}
    _check(tensors, options, FLOAT32 if dtype == torch.float32 else BFLOAT16)


def test_broadcast_inputs():
    """Values shared by expanding a dimension (stride 0) have a gradient for each place."""
    tensors, options = _one(batch=2, channels=3, paths=2, merge=False, tokens=5)
    tensors |= {name: tensors[name][:, :1].expand(-1, 2, *[-1] * (tensors[name].dim() - 2)) for name in ("u", "dt")}
    tensors |= {name: tensors[name][:1].expand(2, *[-1] * 4) for name in "BC"}
    tensors |= {name: tensors[name][:1].expand(2, *[-1] * (tensors[name].dim() - 1)) for name in ("A", "D", "dt_bias")}
    _check(tensors, options)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("gate", [True, False])
def test_gradients_of_any_strides(layout, gate, on_triton):
    tensors, options = _one(paths=2, merge=False, gate=gate, tokens=5)
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    dy = torch.randn(1, 2, 5, 6)
    dy = dy[..., :1].expand_as(dy) if layout == "expanded" else LAYOUTS[layout](dy)
    ours = torch.autograd.grad(scan_tokens(**leaves, **options), list(leaves.values()), dy)
    expected = torch.autograd.grad(oracle.scan(**leaves, **options)[0], list(leaves.values()), dy.double())
    for name, a, b in zip(leaves, ours, expected, strict=True):
        assert oracle.error(a, b) <= FLOAT32[name], name


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output(output, on_triton):
    """Of y alone, or of the last state alone."""
    tensors, options = _one(rank=2)
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    used = [name for name in leaves if output == 0 or name not in ("C", "D", "z")]
    ours, expected = (
        torch.autograd.grad(f(**leaves, **options)[output].square().sum(), list(leaves.values()), allow_unused=True)
        for f in (operator, oracle.scan)
    )
    for name, a, b in zip(leaves, ours, expected, strict=True):
        if name in used:
            assert oracle.error(a, b) <= FLOAT32[name], name
        else:
            assert a is None or not a.any()


@pytest.fixture
def launched(on_triton):
    """What would have been launched: the arguments of scans, of which none runs."""
    from vision_ssm.ops.gpu.launch import intercepted

    scans = []

    def keep(kernel, args, options):
        if hasattr(args[0], "inputs"):
            scans.append(args)

    with intercepted(keep):
        yield scans


@pytest.mark.parametrize("rank", [0, 3, 4])
def test_a_projection_is_not_copied(rank, launched):
    """(dt, B, C) as views of one tensor, which is how `SelectiveSSM` has them."""
    d_state = 2
    x = torch.randn(2, 5, 3, rank + 2 * d_state).transpose(1, 2)  # [b, k, t, r + n + n]
    dt, B, C = x.split([rank, d_state, d_state], -1)
    tensors, options = arguments(tokens=5, paths=3, d_state=d_state, rank=rank)
    tensors |= dict(B=B.unsqueeze(3), C=C.unsqueeze(3)) | (dict(dt=dt) if rank else {})
    scan_tokens(**tensors, **options)
    rows = launched[-1][0].inputs.x
    assert rows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert torch.equal(rows, x)


@pytest.mark.parametrize("change", ["dtype", "order", "groups", "apart"])
def test_rows_that_lie_otherwise_are_copied(change, launched):
    x = torch.randn(2, 3, 5, 9, dtype=torch.float16 if change == "dtype" else torch.float32)
    dt, B, C = x.split([3, 3, 3], -1)
    B, C = B.unsqueeze(3), C.unsqueeze(3)
    if change == "order":
        B, C = C, B
    elif change == "groups":
        B, C = x[..., 3:].unflatten(-1, (2, 3)), x[..., 3:].unflatten(-1, (2, 3))
    elif change == "apart":
        C = C.clone()
    tensors, options = arguments(tokens=5, paths=3, channels=6, d_state=3, rank=3, groups=B.shape[3])
    scan_tokens(**tensors | dict(dt=dt, B=B, C=C), **options)
    rows = launched[-1][0].inputs.x
    assert rows.dtype == torch.float32
    assert rows.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert torch.equal(rows[..., :3], dt.float())
    assert torch.equal(rows[..., 3:].view(*B.shape[:-1], 6), torch.cat([B, C], -1).float())


def test_views_of_one_projection():
    for rank, d_state in ((2, 2), (3, 3), (1, 4)):
        tensors, options = _one(rank=rank, d_state=d_state, paths=2, tokens=5)
        x = torch.cat([tensors["dt"], tensors["B"].squeeze(3), tensors["C"].squeeze(3)], -1)
        dt, B, C = x.split([rank, d_state, d_state], -1)
        _check(tensors | dict(dt=dt, B=B.unsqueeze(3), C=C.unsqueeze(3)), options)


def test_an_empty_batch(on_triton):
    ours = results(operator, *arguments(batch=0))
    assert ours["y"].shape == (0, 1, 17, 7) and ours["last_state"].shape == (0, 2, 7, 4)
    assert not ours["A"].any() and ours["u"].shape == (0, 1, 17, 7)


# Offsets beyond 2^31


def _scan_offset(out, path, strides):
    tl.store(out, tiles.along(tl.program_id(0).to(tl.int64), path, strides, 2))


def _conv_offset(out, path, strides):
    batch = tl.program_id(0).to(tl.int64)
    tl.store(out, conv_kernels._row(batch, batch, path, strides))


@pytest.mark.parametrize("path", [1, 3, 61])
@pytest.mark.parametrize("stride", [5, 2**29 + 3, 2**30 - 1, 2**32])
def test_offsets_of_paths(path, stride):
    """Also where the stride fits into 32 bits and path times stride does not."""
    out = torch.zeros(1, dtype=torch.int64)
    triton.jit(_scan_offset)[(1,)](out, path, (1, 2 * stride + 1, 1))
    assert out.item() == 2 * path * stride
    triton.jit(_conv_offset)[(1,)](out, path, (0, stride, 0))
    assert out.item() == path * stride


def _meta(tokens: int, channels: int, far: str = "") -> tuple[list, list]:
    """Arguments of one path without memory, around those of z; the token stride of `far` is 16 times what it needs."""

    def new(name: str, width: int) -> torch.Tensor:
        return torch.empty(1, 1, tokens, width * (16 if name == far else 1), device="meta")[..., :width]

    B, C = (x.unsqueeze(3) for x in new("rows", 8).split([4, 4], -1))
    u, dt, z = (new(name, channels) for name in ("u", "dt", "z"))
    A, D, bias = (torch.empty(shape, device="meta") for shape in ((1, channels, 4), (1, channels), (1, channels)))
    return [u, dt, A, B, C, D], [z, bias, None]


def _last_offset(args, tokens: int) -> int:
    """Of the tokens in the sequences, [b, k, t, d], among the arguments of a kernel."""
    if isinstance(args, torch.Tensor):
        return (tokens - 1) * args.stride(2) if args.dim() == 4 and args.shape[2] == tokens else 0
    return max((_last_offset(x, tokens) for x in args), default=0) if isinstance(args, tuple) else 0


@pytest.mark.parametrize("tokens", [2**20, 2**21 + 64])
@pytest.mark.parametrize("far", ["u", "dt", "z", "dy", "rows", "none"])
def test_wide_offsets_are_noticed(far, tokens, launched):
    """64-bit offsets wherever a token's place in some tensor passes 2^31, and nowhere else."""
    scan, (before, (z, *after)) = gpu.load("scan"), _meta(tokens, 128 if far == "none" else 64, far)
    _, _, states, _ = scan.forward(*before, z, *after, None, tokens, True, False, True)
    forwards = len(launched)
    dy = torch.empty(*z.shape[:3], 64 * 16, device="meta")[..., :64] if far == "dy" else torch.empty_like(z)
    scan.backward(dy, None, *before, *after, None, states, True, False)
    assert 0 < forwards < len(launched)
    found = [(args[0].c.WIDE.value, _last_offset(args, tokens) >= 2**31) for args in launched]
    assert all(wide or not needed for wide, needed in found), found
    assert any(needed for _, needed in found) or not any(wide for wide, _ in found), found


@pytest.mark.parametrize("row", [0, 1])
def test_wide_offsets_of_steps_are_noticed(row, launched):
    """With tokens that are met twice, the kernels write in the order of the steps, which may be many more."""
    steps, channels = 2**21 + 64, 1024
    tables = torch.zeros(2, 1, steps, dtype=torch.int32)
    tables[1 - row] = -1
    tables[1 - row, :, 0] = 0
    scan, (before, (_, *after)) = gpu.load("scan"), _meta(64, channels)
    if row == 1:
        scan.forward(*before, None, *after, tables, 64, True, False, False)
    else:
        states = torch.empty(gpu.states_shape(1, 1, steps, channels, 4), device="meta")
        dy = torch.empty(1, 1, 64, channels, device="meta")
        scan.backward(dy, None, *before, *after, tables, states, True, False)
    assert _last_offset(launched[-1], steps) >= 2**31 and launched[-1][0].c.WIDE.value


@pytest.mark.parametrize("kind", ["none", "padded", "any"])
def test_wide_offsets_change_nothing(kind, monkeypatch, on_triton):
    tensors, options = _with_tables(kind, rank=1, d_state=2, tokens=70, channels=3)
    narrow = results(operator, tensors, options)
    problem = importlib.import_module("vision_ssm.ops.gpu.problem")
    constants, seen = problem.Constants, []

    def wide(*args, **kwargs):
        seen.append(kwargs)
        return constants(*args) if args else constants(**kwargs | dict(WIDE=True))

    monkeypatch.setattr(problem, "Constants", wide)
    ours = results(operator, tensors, options)
    assert seen and all(torch.equal(ours[name], narrow[name]) for name in narrow)


_FAR = """
import sys, torch
from ops.interpreter import interpreted
from ops.scan_cases import arguments, check

def far(x, dimension):
    strides = [s * (x.shape[dimension] if i < dimension else 1) for i, s in enumerate(x.contiguous().stride())]
    strides[dimension] = (2**31 - 1) // (x.shape[dimension] - 1) + 1
    return memory.as_strided(x.shape, strides).copy_(x)

path, dimension = sys.argv[1], int(sys.argv[2])
memory = torch.from_file(path, shared=True, size=2**31 + 2**12, dtype=torch.float32)
with interpreted():
    # Five of each: a stride of a quarter of 2^31 fits into 32 bits even when doubled.
    tensors, options = arguments(batch=1, tokens=5, channels=3, d_state=2, paths=5, merge=False, shared=False)
    for name in ("u", "dt", "B", "C", "z"):
        check(tensors | {name: far(tensors[name], dimension)}, options, backends=["triton"])
print("equal")
"""


@pytest.mark.parametrize("dimension", [1, 2])
def test_offsets_beyond_32_bits(tmp_path, dimension):
    """Inputs whose strides reach past 2^31 elements, in a sparse file and a process that a wrong address may end."""
    file = tmp_path / "memory"
    file.touch()
    with contextlib.suppress(OSError), file.open("wb") as stream:
        stream.truncate(4 * (2**31 + 2**12))
    if file.stat().st_size < 2**33 or file.stat().st_blocks * 512 > 2**31:
        pytest.skip("this filesystem has no sparse files of 8 GB")
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", _FAR, str(file), str(dimension)],
        capture_output=True, text=True, cwd=root, env=_environment(root),
    )  # fmt: skip
    file.unlink()
    assert run.returncode == 0 and run.stdout.strip() == "equal", run.stderr[-2000:]


def _environment(root: Path) -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]), "OMP_NUM_THREADS": "1"}


# What the kernels do not take


@pytest.mark.parametrize(("row", "value"), [(0, 9), (0, -2), (1, 9), (1, -2)])
def test_tokens_out_of_range(row, value, on_triton):
    tensors, options = _with_tables("permuted")
    options["tables"][row, 1, 5] = value
    with pytest.raises(ValueError, match="`tables` holds a token that is out of range"):
        scan_tokens(**tensors, **options)


def test_too_many_states_run_on_the_plain_backend(caplog, launched):
    """It says so once, and gives the same as that backend."""
    module = importlib.import_module("vision_ssm.ops.scan_operator")
    module._log_fallback.cache_clear()
    case = _one(d_state=gpu.MOST_STATES + 1, rank=1)
    with caplog.at_level(logging.INFO, "vision_ssm"):
        ours = [results(operator, *case) for _ in range(2)]
    assert not launched
    assert [record.message for record in caplog.records] == [
        "d_state 65 is beyond the triton backend's 64: the chunked backend runs"
    ]
    with use_backend("chunked"):
        expected = results(operator, *case)
    assert all(torch.equal(run[name], expected[name]) for run in ours for name in expected)


def test_float64_runs_on_the_plain_backend(launched):
    tensors, options = _one()
    scan_tokens(**{name: x.double() for name, x in tensors.items()}, **options)
    assert not launched
    scan_tokens(**tensors, **options)
    assert launched


# Other entry points


def test_mamba_signature(on_triton):
    """Rows of (channels, length) in memory, B constant over time and C by groups."""
    b, d, n, l = 2, 4, 3, 9  # noqa: E741
    u, delta, z = (torch.randn(b, d, l) for _ in range(3))
    A, B, C, D = -torch.rand(d, n), torch.randn(d, n), torch.randn(b, 2, n, l), torch.randn(d)
    y, last_state = selective_scan(u, delta, A, B, C, D, z, delta_softplus=True, return_last_state=True)
    tokens = lambda x: x.transpose(1, 2).unsqueeze(1)  # noqa: E731
    expected = oracle.scan(
        tokens(u), tokens(delta), A[None], B.expand(b, 1, l, d, n),
        C.repeat_interleave(2, 1).permute(0, 3, 1, 2).unsqueeze(1), D[None], tokens(z), merge=False,
    )  # fmt: skip
    assert oracle.error(y, expected[0].squeeze(1).transpose(1, 2)) <= FLOAT32["y"]
    assert oracle.error(last_state, expected[1].squeeze(1)) <= FLOAT32["last_state"]


def test_same_bits_on_repeat(on_triton):
    case = _with_tables("any", tokens=70, rank=3)
    first, second = (results(operator, *case) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("forward", "backward"), [("triton", "cpu"), ("cpu", "triton"), ("triton", "chunked"), ("chunked", "triton")]
)
def test_backward_on_another_backend_than_forward(forward, backward):
    """Each backend makes what it needs from what another one saved."""
    from vision_ssm.ops import available_backends

    if not {forward, backward} <= set(available_backends()):
        pytest.skip("the compiled kernels were not built")
    tensors, options = _one(tokens=70, channels=7, d_state=5, rank=2)
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    with use_backend(forward):
        y = scan_tokens(**leaves, **options)
    with use_backend(backward):
        ours = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    expected = torch.autograd.grad(oracle.scan(**leaves, **options)[0].square().sum(), list(leaves.values()))
    for name, a, b in zip(leaves, ours, expected, strict=True):
        assert oracle.error(a, b) <= 2 * FLOAT32[name], name  # the gradient of y is rounded, too
