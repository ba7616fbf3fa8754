"""`vision-ssm benchmark`: its options, and what it prints and writes of given results."""

import json

import pytest
import torch

from vision_ssm.cli import main


def test_benchmark_bad_options(fails, tmp_path):
    assert "--cases has no meaning with --device cpu" in fails("benchmark", "ops", "--cases", "vim*")
    assert "--threads has no meaning with --device cuda" in fails(
        "benchmark", "ops", "--device", "cuda", "--threads", 2
    )
    assert "--limit-gib has no meaning with models" in fails("benchmark", "models", "--limit-gib", 3)
    assert "--peers has no meaning with networks" in fails("benchmark", "networks", "--peers", "mamba*")
    assert "expected one side or three" in fails("benchmark", "networks", "--patch", "96x96")
    assert "expected a number above 0" in fails("benchmark", "networks", "--limit-gib", "none")
    assert "no case matches 'paint'" in fails("benchmark", "networks", "--cases", "paint")
    assert "holds no mamba_ssm" in fails("benchmark", "networks", "--mamba-ssm", tmp_path)
    assert "no folder" in fails("benchmark", "ops", "-o", tmp_path / "missing" / "ops.json")
    for what in ("ops", "models"):
        assert "no case matches 'paint'" in fails("benchmark", what, "--device", "cuda", "--cases", "paint")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmark_without_a_gpu(fails):
    assert fails("benchmark", "ops", "--device", "cuda").startswith("--device cuda: ")
    assert fails("benchmark", "networks", "--device", "cuda").startswith("--device cuda: ")


@pytest.fixture
def measured(monkeypatch):
    """A GPU whose results are given: set `measured.results`."""
    from vision_ssm.benchmark import gpu_models, gpu_ops, meter

    class Given:
        results = ()

        def copy_rate(self):
            return 1e12

    given = Given()
    machine = dict.fromkeys(("gpu", "driver", "cuda", "torch", "triton", "timm"), "none")
    monkeypatch.setattr(meter, "Meter", lambda: given)
    monkeypatch.setattr(meter, "gpu_machine", lambda: machine)
    monkeypatch.setattr("vision_ssm.ops.available_backends", lambda: ["triton"])
    for module in (gpu_ops, gpu_models):
        monkeypatch.setattr(module, "run", lambda *args, **kwargs: iter(given.results))
    return given


def _op(case: str, **more) -> dict:
    time = dict(median=1.0, fastest=0.5, slowest=2.0, rounds=3, calls=1)
    return dict(case=case, label=case, what="forward", ours="triton", times_ms=dict(triton=time, chunked=time)) | (
        dict(roofline=dict(triton=0.5, chunked=0.5), peak_mib=dict(triton=1.0), predicted_ms=None, absent={}) | more
    )


def test_benchmark_on_a_gpu_writes_case_by_case(measured, prints, tmp_path):
    path = tmp_path / "ops.json"

    def results():
        yield _op("first", absent=dict(mamba_ssm="not built"))
        assert [r["case"] for r in json.loads(path.read_text())["ops"]] == ["first"]
        yield _op("second", predicted_ms=[0.1, 0.2])

    measured.results = results()
    printed = prints("benchmark", "ops", "--device", "cuda", "-o", path)
    assert "mamba_ssm: absent, not built" in printed and "predicted: 0.100 to 0.200 ms" in printed
    whole = json.loads(path.read_text())
    assert [r["case"] for r in whole["ops"]] == ["first", "second"]
    assert whole["machine"]["gpu"] == "none" and whole["copy_gb_s"] == 1000


def test_benchmark_tells_of_a_peer_that_deviates(measured, capsys):
    measured.results = [_op("first", failed=dict(chunked="differs from ours in u")), dict(_op("last"), error="broken")]
    assert main(["benchmark", "ops", "--device", "cuda"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "vision-ssm: error: first forward: chunked differs from ours in u",
        "vision-ssm: error: last forward: broken",
    ]


def test_benchmark_of_models_on_a_gpu(measured, prints):
    time = dict(median=1.0, fastest=0.5, slowest=2.0, rounds=3, calls=1)
    shares = dict(case="scan_share", label="scans", share=0.25, longest_kernels_ms=dict(gemm=0.5))
    runs = dict(case="a", label="inference", times_ms=dict(m=time), images_per_second=dict(m=9.0), peak_mib=dict(m=4.0))
    measured.results = [runs | dict(absent={}), shares]
    printed = prints("benchmark", "models", "--device", "cuda")
    assert "images/s" in printed and "0.25" in printed and "gemm" in printed


def test_benchmark_of_networks_writes_case_by_case(monkeypatch, capsys, tmp_path):
    from vision_ssm.benchmark import networks

    path, seen = tmp_path / "networks.json", []
    time = dict(median=1000.0, fastest=900.0, slowest=1100.0, rounds=3)
    cube = dict(network="n", patch=[96] * 3)
    found = dict(forward=dict(times_ms=time, peak_mib=2.0), training=dict(stopped="more than 2 GiB"))
    volume = dict(kind="same volume", volume=[63, 32, 32], overlap=0.5)

    def run(names, settings):
        seen.append((names, settings))
        yield dict(case="sequential_n", contender="c", ratio=15.55, times_ms=dict(ours=time, c=time)) | cube
        assert [r["case"] for r in json.loads(path.read_text())["networks"]] == ["sequential_n"]
        yield dict(case="share_n", layers=4, share=0.05, times_ms=dict(n=time)) | cube
        yield dict(case="memory_n", amp="bfloat16", runs=found) | cube
        runs = [volume | dict(windows=8, peak_mib=7.0, volume_mib=5.0), volume | dict(refused="too small")]
        yield dict(case="windows", network="n", window=[32] * 3, runs=runs)
        yield dict(case="memory_m", error="broken")

    monkeypatch.setattr(networks, "run", run)
    options = "--cases", "memory*", "--patch", "48x160x224", "64", "--amp", "bfloat16", "--limit-gib", "2.5"
    assert main(["benchmark", "networks", "-o", str(path), *options]) == 1
    printed = capsys.readouterr()
    assert printed.err == "vision-ssm: error: memory_m: broken\n"
    for text in ("c takes 15.6 times ours", "5%", "stopped: more than 2 GiB", "refused: too small", "63x32x32"):
        assert text in printed.out
    names, settings = seen[0]
    assert names == [f"memory_{name}" for name in networks.MEMORY]
    assert settings.patches == ((48, 160, 224), (64, 64, 64))
    assert (settings.limit_gib, settings.amp, settings.rounds, settings.reference) == (2.5, "bfloat16", 3, None)
    assert len(json.loads(path.read_text())["networks"]) == 5
