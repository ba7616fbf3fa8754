"""The selective scan on a GPU: shapes, options, dtypes, layouts, extremes, launch plans and long sequences."""

import logging

import pytest
import torch
from gpu.on_device import FLOAT32_GPU, check, compare, float64, moved
from ops import oracle
from ops.scan_cases import (
    BFLOAT16,
    DTYPES,
    LAYOUTS,
    STEP_SIZES,
    TABLE_KINDS,
    arguments,
    convert,
    growing,
    operator,
    random_tables,
    results,
    with_dt,
)

from vision_ssm.ops import current_backend, scan_tokens
from vision_ssm.ops.gpu import MOST_STATES
from vision_ssm.ops.gpu.launch import intercepted
from vision_ssm.ops.gpu.plan import CHUNK, use_plan

# Every case compiles kernels of its own, in seconds: few values of what they are specialised for (d_state, rank, pads,
# masks, dtypes), many of what they are not (batch, paths, lengths, groups of one width).
SHAPES = [
    dict(batch=3, tokens=1, channels=7, d_state=1, paths=4),
    dict(batch=1, tokens=200, channels=7, d_state=1, paths=3),
    dict(batch=2, tokens=65, channels=96, d_state=1, paths=4, rank=6),
    dict(batch=1, tokens=197, channels=64, d_state=2, paths=2, rank=4, merge=False),
    dict(batch=2, tokens=33, channels=33, d_state=3, paths=1, groups=3, rank=1, softplus=False),
    dict(batch=1, tokens=130, channels=70, d_state=4, paths=2, groups=1, rank=3, shared=False),
    dict(batch=2, tokens=64, channels=128, d_state=5, paths=1, groups=2, skip=False, gate=False),
    dict(batch=1, tokens=129, channels=40, d_state=8, paths=3, rank=2, bias=False),
    dict(batch=1, tokens=70, channels=48, d_state=17, paths=2, merge=False),
]


@pytest.fixture
def few(sized):
    """Sizes that the interpreter manages."""

    def cut(case: dict) -> dict:
        small = dict(tokens=min(case["tokens"], 9), channels=min(case["channels"], 12), batch=1, paths=1)
        small["groups"] = 1 if small["channels"] % case.get("groups", 1) else case.get("groups", 1)
        return sized(case, case | small)

    return cut


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_matches_the_definition(case, few, device):
    check(device, *arguments(**few(case)))


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8, 9, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 300])
def test_lengths(tokens, few, device):
    check(device, *arguments(**few(dict(tokens=tokens, channels=5, d_state=1, paths=3, batch=2))))


@pytest.mark.parametrize("kind", TABLE_KINDS)
@pytest.mark.parametrize("merge", [True, False])
def test_every_kind_of_table(kind, merge, sized, device):
    tokens = sized(150, 9)
    tables, out_tokens = random_tables(kind, 3, tokens)
    check(
        device,
        *arguments(
            tokens=tokens, channels=20, paths=3, d_state=1, tables=tables, out_tokens=out_tokens, merge=merge, batch=1
        ),
    )


@pytest.mark.parametrize("kind", DTYPES)
def test_reduced_precision(kind, sized, device):
    dtypes, tolerance = DTYPES[kind]
    tables, _ = random_tables("padded", 2, 17)
    tensors, options = arguments(channels=sized(96, 6), d_state=1, rank=3, tables=tables)
    check(device, convert(tensors, dtypes), options, {k: max(v, FLOAT32_GPU[k]) for k, v in tolerance.items()})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_sequences_in_reduced_precision(dtype, sized, device):
    """Rounding of inputs and outputs does not add up along the sequence: states are float32."""
    tensors, options = arguments(tokens=sized(4000, 70), channels=sized(64, 4), d_state=1, paths=1, rank=2)
    tensors = moved(convert(tensors, dict.fromkeys(("u", "dt", "B", "C", "z"), dtype)), device)
    compare(results(operator, tensors, options), float64(tensors, options), BFLOAT16)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(layout, dtype, sized, device):
    tensors, options = arguments(
        channels=sized(34, 6), d_state=1, groups=2, paths=2, shared=False, tokens=sized(35, 5), batch=sized(2, 1)
    )
    tensors = {name: LAYOUTS[layout](x.to(dtype)) for name, x in tensors.items()}
    check(device, tensors, options, FLOAT32_GPU if dtype == torch.float32 else BFLOAT16)


def test_broadcast_inputs(sized, device):
    tensors, options = arguments(batch=sized(3, 2), channels=16, paths=2, merge=False, tokens=sized(70, 5), d_state=1)
    tensors = moved(tensors, device)
    tensors |= {name: tensors[name][:, :1].expand(-1, 2, *[-1] * (tensors[name].dim() - 2)) for name in ("u", "dt")}
    tensors |= {name: tensors[name][:1].expand(len(tensors["u"]), *[-1] * 4) for name in "BC"}
    compare(results(operator, tensors, options), float64(tensors, options), FLOAT32_GPU)


@pytest.mark.parametrize("rank", [2, 3])
def test_views_of_one_projection(rank, sized, device):
    tensors, options = arguments(tokens=sized(197, 5), channels=sized(96, 6), d_state=2, rank=rank, paths=2)
    x = torch.cat([tensors["dt"], tensors["B"].squeeze(3), tensors["C"].squeeze(3)], -1).to(device)
    dt, B, C = x.split([rank, 2, 2], -1)
    on_device = moved(tensors, device) | dict(dt=dt, B=B.unsqueeze(3), C=C.unsqueeze(3))
    compare(results(operator, on_device, options), results(oracle.scan, tensors, options), FLOAT32_GPU)


def test_an_empty_batch(device):
    tensors, options = arguments(batch=0)
    ours = results(operator, moved(tensors, device), options)
    assert ours["y"].shape == (0, 1, 17, 7) and ours["last_state"].shape == (0, 2, 7, 4)
    assert not ours["A"].any() and ours["u"].shape == (0, 1, 17, 7)


# Extremes: one shape, whose kernels are compiled once


@pytest.mark.parametrize("kind", STEP_SIZES)
def test_step_sizes(kind, sized, device):
    check(device, *with_dt(STEP_SIZES[kind], d_state=1, channels=sized(20, 4), batch=1, paths=1))


def test_pure_integrator(sized, device):
    """The roundings of all steps add up, to about 100 * 6e-8 of the state in the mean."""
    tensors, options = arguments(batch=1, tokens=sized(10_000, 140), channels=5, d_state=1, paths=1)
    tensors = moved(tensors | dict(A=torch.zeros_like(tensors["A"])), device)
    compare(results(operator, tensors, options), float64(tensors, options), FLOAT32_GPU)


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_growth(first, device):
    """To infinity; and what would have grown to infinity leaves a state of zero as it is."""
    tensors, options = growing(200, torch.tensor([0.1, 0.5, 1.0, 3.0, 7.0, 40.0]), first)
    tensors["u"][:, :, 198] = 1
    expected = oracle.scan(**tensors, **options)[0].float()
    y = scan_tokens(**moved(tensors, device), **options).cpu()
    assert expected.isfinite().all() == (first == 0)
    assert torch.equal(y.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    torch.testing.assert_close(y[finite], expected[finite], rtol=2e-4, atol=0)


@pytest.mark.parametrize("where", ["u", "dt"])
def test_nan_stays_in_its_channel(where, sized, device):
    tensors, options = arguments(batch=1, tokens=70, channels=sized(70, 5), d_state=1, paths=1, gate=False)
    clean = results(operator, moved(tensors, device), options)
    tensors[where] = tensors[where].clone()
    tensors[where][0, 0, 30, 3] = torch.nan
    ours = results(operator, moved(tensors, device), options)
    for name in ("y", "u", "dt"):
        own = torch.zeros_like(clean[name], dtype=torch.bool)
        own[0, 0, :, 3] = True
        assert torch.equal(ours[name][~own], clean[name][~own])
    assert torch.equal(ours["y"][0, 0, :30], clean["y"][0, 0, :30])
    assert ours["y"][0, 0, 30:, 3].isnan().all() and ours["A"][:, 3].isnan().all()


@pytest.mark.parametrize("where", ["u", "dt", "B", "C"])
def test_pads_read_zeros_whatever_the_tokens_hold(where, device):
    tensors, options = arguments(batch=1, tokens=6, channels=3, paths=1, d_state=1, gate=False, bias=False)
    order = torch.tensor([[-1, 5, 4, -1, 3, 2, 1, 0]], dtype=torch.int32)
    options = moved(options | dict(tables=torch.stack([order, order])), device)
    clean = scan_tokens(**moved(tensors, device), **options)
    tensors[where] = tensors[where].clone()
    tensors[where][:, :, 0] = torch.nan
    y = scan_tokens(**moved(tensors, device), **options)
    assert torch.equal(y[:, :, 1:], clean[:, :, 1:])


# Plans and long sequences


def test_float64_is_a_reference(device):
    """The plain backend, against which longer scans are held here, agrees with the definition on this device."""
    tables, out_tokens = random_tables("any", 2, 40)
    tensors, options = arguments(tokens=40, rank=2, tables=tables, out_tokens=out_tokens)
    ours = float64(moved(tensors, device), moved(options, device))
    compare(
        ours, results(oracle.scan, {k: x.double() for k, x in tensors.items()}, options), dict.fromkeys(ours, 1e-10)
    )


@pytest.mark.parametrize("segments", [1, 2, 7, 200])
@pytest.mark.parametrize(("pack", "rank"), [(1, 0), (2, 0), (2, 4)])
def test_plans(segments, pack, rank, sized, device):
    """Any number of segments, one or two channels a lane: the same result."""
    tokens, channels = sized((8000, 192), (130, 4))
    tensors, options = arguments(batch=1, tokens=tokens, channels=channels, d_state=1, paths=1, rank=rank)
    tensors = moved(tensors, device)
    with use_plan(f"segments={segments} pack={pack}"):
        ours = results(operator, tensors, options)
    compare(ours, float64(tensors, options), FLOAT32_GPU)


@pytest.mark.parametrize("tile", [2, 4, 16])
def test_tiles(tile, sized, device):
    tensors, options = arguments(batch=1, tokens=100, channels=sized(32, 2), d_state=1, paths=1)
    with use_plan(f"tile={tile}"):
        check(device, tensors, options)


@pytest.mark.parametrize(("d_state", "rank", "kind"), [(16, 12, "permuted"), (1, 6, "padded"), (2, 0, "any")])
def test_long_sequences(d_state, rank, kind, sized, device):
    """Shapes of Vim and VMamba layers, batch 1, which plans cut into segments by themselves."""
    (tokens, channels), paths = sized((6005, 96), (70, 3)), sized(2, 1)
    tables, out_tokens = random_tables(kind, paths, tokens)
    tensors, options = arguments(
        batch=1, tokens=tokens, channels=channels, d_state=d_state, rank=rank, paths=paths, tables=tables,
        out_tokens=out_tokens,
    )  # fmt: skip
    tensors, options = moved(tensors, device), moved(options, device)
    compare(results(operator, tensors, options), float64(tensors, options), FLOAT32_GPU)


def test_a_very_long_sequence(sized, device):
    tensors, options = arguments(batch=1, tokens=sized(2**18, 200), channels=sized(64, 2), d_state=1, paths=1, rank=2)
    tensors = moved(tensors, device)
    compare(results(operator, tensors, options), float64(tensors, options), FLOAT32_GPU)


@pytest.mark.parametrize(
    ("d_state", "rank", "kind", "batch"), [(16, 12, "permuted", 8), (1, 6, "padded", 500), (2, 0, "any", 1)]
)
def test_same_bits_in_twenty_runs(d_state, rank, kind, batch, sized, device):
    """Forward and backward, with whatever else has used the memory in between."""
    tokens, channels = sized((501, 96), (9, 3))
    tables, out_tokens = random_tables(kind, 2, tokens)
    tensors, options = arguments(
        batch=sized(batch, 1), tokens=tokens, channels=channels, d_state=d_state, rank=rank, tables=tables,
        out_tokens=out_tokens,
    )  # fmt: skip
    tensors, options = moved(tensors, device), moved(options, device)
    first = results(operator, tensors, options)
    for run in range(sized(20, 2)):
        other = torch.full((1 + run, 10**5), float(run), device=device)
        again = results(operator, tensors, options)
        del other
        assert all(torch.equal(first[name], again[name]) for name in first), f"run {run}"


def test_results_do_not_depend_on_the_batch_around_them(sized, device):
    """Under one plan each image is computed alone."""
    tensors, options = arguments(batch=3, tokens=sized(300, 9), channels=sized(64, 3), d_state=1, rank=2)
    tensors = moved(tensors, device)
    with use_plan("tile=4 pack=1 segments=1"):
        together = results(operator, tensors, options)
        alone = {name: x[1:2] if name in ("u", "dt", "B", "C", "z") else x for name, x in tensors.items()}
        assert torch.equal(operator(**alone, **options)[0], together["y"][1:2])


# What the kernels do not take


def test_the_default(cuda):
    assert current_backend(cuda) == current_backend("cuda", torch.bfloat16) == "triton"
    assert current_backend(cuda, torch.float64) == "chunked"


def test_too_many_states_run_on_the_plain_backend(caplog, sized, device):
    launched, case = [], dict(d_state=MOST_STATES + 1, channels=3, tokens=9, paths=1)
    with caplog.at_level(logging.INFO, "vision_ssm"), intercepted(lambda *args: launched.append(args)):
        check(device, *arguments(**case))
        check(device, *arguments(**case, seed=1))
    assert not launched
    assert len([r for r in caplog.records if "beyond the triton backend's" in r.message]) <= 1


@pytest.mark.parametrize(("row", "value"), [(0, 9), (0, -2), (1, 9), (1, -2)])
def test_tokens_out_of_range(row, value, device):
    tables, _ = random_tables("permuted", 2, 9)
    tables[row, 1, 5] = value
    tensors, options = arguments(tokens=9, tables=tables)
    with pytest.raises(ValueError, match="`tables` holds a token that is out of range"):
        scan_tokens(**moved(tensors, device), **moved(options, device))
