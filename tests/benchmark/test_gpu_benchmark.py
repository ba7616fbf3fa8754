"""The benchmark for GPUs, as far as it needs none: what it computes, counts, compares and writes."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
from benchmark.wall_meter import WallMeter

import vision_ssm
from vision_ssm.benchmark import gpu_models, gpu_ops, meter, peers, traffic
from vision_ssm.benchmark.cases import CASES, Case, make_problem, select
from vision_ssm.ops import gpu
from vision_ssm.scan import cross

PLAIN = Case("plain", "a plain scan", 2, 8, (19,), 4, gate=True)
CORE = Case("core", "a cross-scan", 2, 8, (4, 5), 1, cross(), 2)


@pytest.fixture
def mamba_ssm(monkeypatch):
    """Our operator has the signature of mamba_ssm's, so it can stand in for it."""
    monkeypatch.setattr(peers, "load_mamba_ssm", lambda: vision_ssm.selective_scan)
    monkeypatch.setattr(gpu_models, "load_mamba_ssm", lambda: vision_ssm.selective_scan)


# Cases


def test_cases_are_chosen_by_patterns():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert select(names, None) == names
    assert select(names, "ss2d*_b1,sequence") == ["ss2d_96_b1", "ss2d_192_b1", "sequence"]
    with pytest.raises(ValueError, match=r"no case matches 'vmamba'.*vim_b128"):
        select(names, "vmamba")


def test_problems_are_the_same_each_time():
    first, second = (make_problem(CORE, "cpu") for _ in range(2))
    assert all(torch.equal(value, second.inputs[name]) for name, value in first.inputs.items())
    assert first.inputs["x"].dtype == torch.bfloat16
    assert set(first.shared) == {"x_proj", "dt_proj", "dt_bias", "A_log", "D"}


# Clocks and copies of inputs


@pytest.mark.parametrize(("set_bytes", "expected"), [(50, 4), (100, 2), (150, 2), (200, 1), (10**6, 1)])
def test_copies_exceed_the_cache_twice(set_bytes, expected):
    assert meter.copies_needed(set_bytes, 100) == expected
    assert expected * set_bytes >= 2 * 100


def test_rotation_takes_each_in_turn():
    calls = []
    rotation = meter.Rotation(calls.append, "abc")
    for _ in range(4):
        rotation()
    rotation.once_each()
    assert "".join(calls) == "abcaabc"


def test_inputs_have_memory_of_their_own():
    problem = make_problem(PLAIN, "cpu")
    _, make = next(peers.contestants(problem, 1 << 16, False))
    sets = make().sets
    count = meter.copies_needed(
        traffic.size([problem.inputs[n] for n in problem.varying] + [problem.gradient]), 1 << 16
    )
    assert len(sets) == count > 10
    assert len({leaves["u"].data_ptr() for leaves, _ in sets}) == count
    assert len({leaves["A"].data_ptr() for leaves, _ in sets}) == 1


def test_times_are_those_of_one_call():
    ticks = iter(range(10**6))
    clock = SimpleNamespace(seconds=lambda run: (run(), 0.004)[1] if next(ticks) >= 0 else None)
    calls = []
    times = meter.time_calls(clock, {"a": lambda: calls.append(1)}, 3, 1.0, sample=0.02, calls_inside={"a": 2})
    assert times["a"]["calls"] == 5 * 2
    assert times["a"]["median"] == pytest.approx(0.4)  # 4 ms for ten calls
    assert len(calls) == 2 + 5 * (1 + 3)  # a first one, the estimate, a warm-up round and three rounds


# Results


@pytest.mark.usefixtures("mamba_ssm")
def test_results_of_scans(monkeypatch):
    monkeypatch.setattr(gpu_ops, "_GRAPHED", ("mamba_ssm",))
    found = gpu_ops.run(WallMeter(), ["core", "plain"], 1e9, 3, 0.1, "mamba*,fla*", (PLAIN, CORE))
    results = json.loads(json.dumps(list(found)))
    assert [(r["case"], r["what"]) for r in results] == [
        ("plain", "forward"), ("plain", "forward+backward"), ("core", "forward"), ("core", "forward+backward"),
    ]  # fmt: skip
    for r in results:
        assert "error" not in r
        taking_part = [r["ours"], "mamba_ssm"]
        assert list(r["times_ms"]) == taking_part
        assert set(r["roofline"]) == set(r["peak_mib"]) == set(taking_part)
        assert set(r["deviation"]) == {"mamba_ssm"}
        assert r["absent"]["mamba_ssm, graph"] == "RuntimeError: a CPU has no graphs"
        assert r["absent"]["chunked"] == "not asked for"
        assert r["bytes"]["ours"] > r["bytes"]["must_move"] > 0
        assert all(t["fastest"] <= t["median"] <= t["slowest"] for t in r["times_ms"].values())


def test_a_peer_that_deviates_is_named_and_not_timed(monkeypatch):
    monkeypatch.setattr(peers, "load_mamba_ssm", lambda: lambda *args: 1.5 * vision_ssm.selective_scan(*args))
    forward, backward = gpu_ops.run(WallMeter(), ["plain"], 1e9, 3, 0.1, "mamba_ssm", (PLAIN,))
    assert "y by 5.0e-01 (tolerance 2e-02)" in forward["failed"]["mamba_ssm"]
    assert "u by" in backward["failed"]["mamba_ssm"]
    assert "mamba_ssm" not in forward["times_ms"]


def test_what_is_not_finite_deviates():
    nan = gpu_ops.deviations({"y": torch.ones(3)}, {"y": torch.tensor([1.0, 1.0, float("nan")])})["y"]
    assert not nan <= 1


def test_a_case_that_fails_does_not_end_the_run(monkeypatch):
    def fail(*args):
        raise ValueError("broken\nkernel")

    monkeypatch.setattr(peers.Contestant, "run", fail)
    results = list(gpu_ops.run(WallMeter(), ["plain"], 1e9, 3, 0.1, None, (PLAIN,)))
    assert [r["error"] for r in results] == ["ValueError: broken kernel"] * 2


# Models


@pytest.mark.usefixtures("mamba_ssm")
def test_results_of_models(monkeypatch):
    monkeypatch.setattr(gpu_models, "MODELS", ("vim_test", "no_such_model"))
    found = gpu_models.zoo(WallMeter(), 3, 0.1, batch=1, training=False)
    assert list(found["times_ms"]) == ["vim_test"]
    assert found["images_per_second"]["vim_test"] == pytest.approx(1e3 / found["times_ms"]["vim_test"]["median"])
    assert "no_such_model" in found["absent"] and "no graphs" in found["absent"]["vim_test, graph"]
    trained = gpu_models._compare(
        WallMeter(),
        {"plain": lambda: gpu_models.Contestant(WallMeter(), "vim_test", 2, True, 64)},
        2, 3, 0.1,
    )  # fmt: skip
    assert trained["times_ms"]["plain"]["rounds"] == 3


def test_every_model_of_the_cases_exists():
    assert all(timm.is_model(name) for name in gpu_models.MODELS)


def test_a_case_of_models_that_fails_does_not_end_the_run(monkeypatch):
    monkeypatch.setattr(gpu_models, "CASES", {"a": ("first", lambda *args: 1 / 0), "b": ("second", lambda *args: {})})
    found = list(gpu_models.run(WallMeter(), ["a", "b"]))
    assert found[0]["error"].startswith("ZeroDivisionError")
    assert found[1] == dict(case="b", label="second")


def test_share_of_the_scans():
    def event(key, device, own, total=0, annotation=False):
        kind = getattr(torch.autograd.DeviceType, device)
        return SimpleNamespace(
            key=key,
            device_type=kind,
            self_device_time_total=own,
            device_time_total=total,
            is_user_annotation=annotation,
        )

    events = [
        event("scan_forward", "CUDA", 30),
        event("gemm", "CUDA", 60),
        event("cast", "CUDA", 10),
        event("Optimizer.step", "CUDA", 500, annotation=True),
        event("vision_ssm::selective_scan", "CPU", 0, total=40),
    ]
    found = gpu_models.scan_share(events, {"scan_forward"}, steps=2)
    assert found["share"] == pytest.approx(0.3) and found["share_of_operators"] == pytest.approx(0.4)
    assert found["total_ms"] == pytest.approx(0.05)
    assert list(found["longest_kernels_ms"]) == ["gemm", "scan_forward", "cast"]


def test_names_of_our_kernels():
    assert {"scan_forward", "scan_backward", "merge_paths", "carry_over"} <= gpu_models.kernel_names()


def test_machine_names_what_figures_depend_on(monkeypatch):
    about = SimpleNamespace(
        name="G", major=9, minor=0, multi_processor_count=2, total_memory=2**31, L2_cache_size=3 * 2**20
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(meter.subprocess, "run", lambda *args, **options: SimpleNamespace(stdout="580.1\n"))
    monkeypatch.setattr(meter, "machine", lambda: dict(commit=None, torch="2"))
    monkeypatch.setenv("VISION_SSM_COMMIT", "abc")
    where = meter.gpu_machine()
    assert where["gpu"] == "G" and where["compute_capability"] == "9.0" and where["driver"] == "580.1"
    assert where["memory_gib"] == 2.0 and where["l2_mib"] == 3.0
    assert {"cuda", "triton", "torch"} <= where.keys() and where["commit"] == "abc"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_meter_says_so():
    with pytest.raises(RuntimeError, match=r"no NVIDIA GPU|without CUDA"):
        meter.Meter()


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and gpu.available()), reason="needs an NVIDIA GPU and Triton")
def test_on_a_gpu():
    instrument = meter.Meter()
    assert instrument.copy_rate() > 1e10
    small = Case("small", "a small scan", 4, 64, (100,), 16, gate=True)
    for result in gpu_ops.run(instrument, ["small"], 1e12, 3, 1.0, "chunked", (small,)):
        assert "error" not in result, result["error"]
        assert {"triton", "triton, graph", "chunked"} <= result["times_ms"].keys()
        assert result["peak_mib"]["triton"] > 0
    assert meter.gpu_machine()["gpu"]
