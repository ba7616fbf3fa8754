"""What the benchmark of the medical networks measures, on small ones: contestants, shares, memory, windows."""

import sys
from pathlib import Path

import pytest
import torch
from benchmark import apart_calls

import vision_ssm
from vision_ssm.benchmark import footprint, networks
from vision_ssm.benchmark.apart import run_apart
from vision_ssm.benchmark.networks import Settings
from vision_ssm.benchmark.sequential import our_reference, over_sequences, scanned_by
from vision_ssm.layers import SS2D, Mamba
from vision_ssm.ops import scan_tokens
from vision_ssm.ops.backends import current_backend

SMALL = Settings(threads=1, rounds=1, seconds=1)
SEGMAMBA = "segmamba_test", (32, 32, 32)


def _loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """The selective scan by its definition, in mamba_ssm's layout."""
    delta = delta + delta_bias[:, None]
    delta = torch.nn.functional.softplus(delta) if delta_softplus else delta
    h, ys = torch.zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[:, None, :, t]
        ys.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(ys, 2) + D[:, None] * u


# Sequential scans


@pytest.mark.parametrize("scan", [our_reference, over_sequences(_loop), over_sequences(vision_ssm.selective_scan)])
def test_layers_compute_the_same_by_other_scans(scan):
    torch.manual_seed(0)
    for layer, x in ((Mamba(8), torch.randn(2, 9, 8)), (SS2D(8, d_state=4), torch.randn(2, 3, 4, 8))):
        with torch.no_grad():
            expected = layer(x)
            with scanned_by(scan):
                torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_only_scans_are_exchanged():
    seen = []

    def scan(*args, **kwargs):
        seen.append(current_backend())
        return our_reference(*args, **kwargs)

    layer = Mamba(8)
    with scanned_by(scan):
        layer(torch.randn(1, 5, 8))
    layer(torch.randn(1, 5, 8))
    assert seen == [current_backend()]  # once, and outside of the scan the default backend stays


def test_unmerged_paths_keep_their_axis():
    torch.manual_seed(0)
    u, dt = torch.randn(1, 1, 6, 4), torch.randn(1, 2, 6, 4)
    A, B, C = -torch.rand(2, 4, 3), torch.randn(1, 2, 6, 1, 3), torch.randn(1, 2, 6, 1, 3)
    tables = torch.stack([torch.arange(6), torch.arange(6).flip(0)]).expand(2, 2, 6).int()
    args = u, dt, A, B, C, torch.randn(2, 4), None, torch.randn(2, 4), None, tables
    for merge in (True, False):
        expected = scan_tokens(*args, merge=merge)
        torch.testing.assert_close(over_sequences(_loop)(*args, merge=merge), expected, rtol=1e-4, atol=1e-5)


def test_paths_with_gaps_are_refused():
    x = torch.zeros(1, 1, 3, 2)
    B = torch.zeros(1, 1, 3, 1, 1)
    tables = torch.tensor([0, -1, 2]).expand(2, 1, 3)
    with pytest.raises(ValueError, match="no token"):
        over_sequences(_loop)(x, x, torch.zeros(1, 2, 1), B, B, tables=tables)


def test_networks_are_compared():
    published = networks.compare_scans(*SEGMAMBA, Settings(rounds=1, reference=vision_ssm.selective_scan))
    own = networks.compare_scans("umamba_3d_test", (16,) * 3, SMALL)
    assert (published["contender"], own["contender"]) == ("published reference", "our reference backend")
    for result in (published, own):
        ours, contender = (t["median"] for t in result["times_ms"].values())
        assert result["deviation"] < 1e-4
        assert result["ratio"] == pytest.approx(contender / ours)


def test_a_scan_that_computes_something_else_is_no_contestant():
    with pytest.raises(RuntimeError, match="outputs differ"):
        networks.compare_scans(
            "umamba_3d_test", (16,) * 3, Settings(rounds=1, reference=lambda u, *args: torch.zeros_like(u))
        )


# Shares


def test_share_of_the_mixers():
    result = networks.mixer_share(*SEGMAMBA, SMALL)
    assert result["layers"] == 4 and 0 < result["share"] < 1


def test_share_counts_the_time_inside(monkeypatch):
    """A mixer that takes 1 s by the clock and a forward pass that takes 8 s: four mixers are a half."""
    ticks = iter([1.0, 1.0, 1.0, 1.0, 8.0] * 2)

    def clock(device):
        def seconds(run):
            run()
            return next(ticks)

        return seconds

    monkeypatch.setattr(networks, "clock", clock)
    assert networks.mixer_share(*SEGMAMBA, SMALL)["share"] == 0.5


def test_share_needs_mixers():
    with pytest.raises(ValueError, match="no token mixers"):
        networks.mixer_share("mamba_nd_3d_test", (32,) * 3, SMALL)


# Time and memory


@pytest.mark.parametrize("what", footprint.RUNS)
def test_runs_are_measured(what):
    found = footprint.measure_network("umamba_v1_3d_test", (16,) * 3, what, rounds=1, amp="bfloat16")
    assert found["times_ms"]["rounds"] == 1 and found["peak_mib"] is not None


def test_recomputing_is_switched_on(monkeypatch):
    networks_made = []
    monkeypatch.setattr(footprint, "_step", lambda network, x, amp: networks_made.append(network) or (lambda: None))
    for what in footprint.RUNS[1:]:
        footprint.measure_network(*SEGMAMBA, what, rounds=1)
    assert [network.grad_checkpointing for network in networks_made] == [False, True]


def test_a_step_trains():
    network = footprint.create_for("umamba_3d_test", (16,) * 3).train()
    before = [p.detach().clone() for p in network.parameters()]
    footprint._step(network, torch.randn(1, 1, 16, 16, 16), None)()
    assert sum(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)) > 0.9 * len(before)


def test_networks_are_made_for_the_patch():
    assert footprint.create_for("mamba_nd_3d_test", (32, 16, 16)).input_size == (32, 16, 16)
    assert "expected multiples" in footprint.measure_network("segmamba_test", (24,) * 3, "forward")["refused"]
    assert "input_size" in footprint.measure_network("mamba_nd_3d_test", (20,) * 3, "forward")["refused"]


@pytest.fixture
def importable(monkeypatch):
    """Processes that are started find the tests' modules."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def test_what_happens_to_a_process_is_told(importable):
    assert run_apart(apart_calls.divide, by=4) == dict(result=0.25)
    assert run_apart(apart_calls.divide, by=0) == dict(failed="ZeroDivisionError: division by zero")
    assert run_apart(apart_calls.leave, status=3) == dict(failed="ended with status 3")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched on Linux alone")
def test_a_process_that_takes_too_much_is_ended(importable):
    assert run_apart(apart_calls.take_memory, limit_gib=0.2, mib=4000) == dict(stopped="more than 0.2 GiB")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")
def test_memory_is_what_is_added(importable):
    """In a process of its own: one that has freed memory before would take that again, and add nothing."""
    assert 60 < run_apart(apart_calls.hold_and_free, mib=64)["peak_mib"] < 100


# Sliding windows


@pytest.mark.parametrize("side", [32, 64, 96, 128])
def test_one_volume_cut_into_several_numbers_of_windows(side):
    monai = pytest.importorskip("monai.inferers.utils")
    data = pytest.importorskip("monai.data.utils")
    lengths = set()
    for count in (2, 8, 32):
        length, overlap = networks.windows_of(side, count)
        lengths.add(length)
        size, roi = (length, side, side), (side,) * 3
        interval = monai._get_scan_interval(size, roi, 3, (overlap,) * 3)
        assert len(data.dense_patch_slices(size, roi, interval)) == count
    assert len(lengths) == 1


def test_windows_are_counted():
    pytest.importorskip("monai")
    found = footprint.measure_windows("umamba_3d_test", (16,) * 3, (32, 32, 16), overlap=0.5)
    assert found["windows"] == 9
    assert found["volume_mib"] == pytest.approx((1 + 14) * 32 * 32 * 16 * 4 / 2**20)
    assert "expected multiples" in footprint.measure_windows("segmamba_test", (24,) * 3, (32,) * 3, 0.5)["refused"]


# The whole


def test_runs_in_order_and_survives_failures(monkeypatch):
    calls = []

    def apart(function, **arguments):
        calls.append((function.__name__, arguments["network"]))
        return dict(refused="no")

    def broken(*args):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(networks, "run_apart", apart)
    monkeypatch.setattr(networks, "compare_scans", broken)
    names = ["sequential_segmamba", "memory_segmamba", "windows"]
    results = list(networks.run(names, Settings(patches=((16,) * 3, (32,) * 3))))
    assert [r["case"] for r in results] == ["sequential_segmamba", "memory_segmamba", "memory_segmamba", "windows"]
    assert results[0]["error"] == "RuntimeError: two lines"
    assert [r["patch"] for r in results[1:3]] == [[16] * 3, [32] * 3]
    assert calls == [("measure_network", "segmamba")] * 6 + [("measure_windows", "umamba_bot_3d")] * 6
    same = [r for r in results[3]["runs"] if r["kind"] == "same volume"]
    assert len({tuple(r["volume"]) for r in same}) == 1 and len({r["overlap"] for r in same}) == 3
