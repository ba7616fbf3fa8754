"""The tools around the benchmarks: figures of the README, and the peer's build."""

import sys
from pathlib import Path

import pytest
from benchmark.wall_meter import WallMeter

import vision_ssm
from vision_ssm.benchmark import gpu_models, gpu_ops, peers
from vision_ssm.benchmark.cases import Case

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    for folder in (ROOT / "tools" / "gpu", ROOT / "tools"):
        monkeypatch.syspath_prepend(folder)


def _file(**results) -> dict:
    machine = dict.fromkeys(("driver", "cuda", "torch", "triton", "timm"), "0") | dict(gpu="G", date="2000-01-01")
    return dict(machine=machine, copy_gb_s=1000.0, **results)


# Figures of the README


def test_without_gpu_results_the_readme_says_so():
    from readme_gpu import gpu_speed

    assert gpu_speed([], []).startswith("No GPU figures have been measured yet.")


def test_a_rehearsal_is_no_figure():
    from readme_gpu import gpu_speed

    file = _file(ops=[])
    file["machine"]["rehearsal"] = True
    with pytest.raises(ValueError, match="rehearsal"):
        gpu_speed([file], [])


def test_gpu_results_become_tables(monkeypatch):
    from readme_gpu import gpu_speed

    monkeypatch.setattr(peers, "load_mamba_ssm", lambda: vision_ssm.selective_scan)
    monkeypatch.setattr(gpu_models, "MODELS", ("vim_test",))
    case = Case("plain", "a plain scan", 1, 8, (19,), 4)
    scans = list(gpu_ops.run(WallMeter(), ["plain"], 1e9, 3, 0.1, "mamba_ssm,chunked", (case,)))
    nets = list(gpu_models.run(WallMeter(), ["inference_b1"], 3, 0.1))
    share = dict(case="scan_share", label="", model="m", batch=2, share=0.25, share_of_operators=0.5)
    times = {"a, fused": dict(median=1.5), "b over c": dict(median=20.0)}
    large = dict(
        case="large_training", label="training", times_ms=times, absent={}, peak_mib=dict.fromkeys(times, 2048)
    )
    failed = dict(scans[0], what="backward", error="broken")
    text = gpu_speed([_file(ops=[*scans, failed])], [_file(models=[*nets, share, large])])
    assert text.count("| a plain scan, forward") == 2
    assert "| `vim_test` |" in text and "broken" not in text
    assert "the scan kernels take 25%" in text
    assert "Training: `a`, fused 1.50 ms and 2.0 GiB; `b` over c 20.0 ms and 2.0 GiB." in text
    assert "(1000 GB/s, read and written)" in text


def test_gpu_results_of_two_gpus_are_refused():
    from readme_gpu import gpu_speed

    other = _file(ops=[])
    other["machine"]["gpu"] = "H"
    with pytest.raises(ValueError, match="several GPUs: G, H"):
        gpu_speed([_file(ops=[]), other], [])


def test_later_results_replace_earlier():
    from readme_gpu import gpu_speed

    time = dict(median=1.0)
    result = dict(case="a", what="forward", label="a", ours="t", times_ms=dict(t=time), roofline=dict(t=0.5))
    result |= dict(peak_mib=dict(t=1), failed={})
    text = gpu_speed([_file(ops=[result]), _file(ops=[result | dict(times_ms=dict(t=dict(median=3.0)))])], [])
    assert "| a, forward | 3.00 ms | 50% | 1 MiB | – | – | – |" in text


def test_blocks_are_filled_and_must_exist():
    from readme_figures import filled

    begin = "<!-- {}: tools/readme_figures.py -->"
    readme = f"x {begin.format('a')}1<!-- /a --> y\n{begin.format('b')}\nold\n<!-- /b -->\n"
    expected = f"x {begin.format('a')}2<!-- /a --> y\n{begin.format('b')}\nnew\nlines\n<!-- /b -->\n"
    assert filled(readme, dict(a="2", b="new\nlines")) == expected
    with pytest.raises(ValueError, match="no block from <!-- c:"):
        filled(readme, dict(c="3"))


# Figures of the networks


def _network_file(**machine) -> dict:
    time = lambda ms: dict(median=ms)  # noqa: E731
    runs = {
        "forward": dict(times_ms=time(1500.0), peak_mib=2048.0),
        "training": dict(stopped="more than 12 GiB"),
        "training, recomputing": dict(refused="expected multiples of 16"),
    }
    windows = [
        dict(kind="same volume", volume=[126, 64, 64], overlap=0.25, windows=2, peak_mib=512.0, volume_mib=30.0),
        dict(kind="same volume", volume=[126, 64, 64], overlap=0.5, stopped="more than 12 GiB"),
    ]
    where = dict(cpu="C", threads=2, torch="2.0", date="2000-01-01") | machine
    return dict(
        machine=where,
        networks=[
            dict(
                case="sequential_n", network="n", patch=[32, 64, 64], ratio=20.4, contender="published reference",
                times_ms={"ours": time(500.0), "published reference": time(10200.0)},
            ),
            dict(case="share_n", network="n", patch=[96] * 3, share=0.123),
            dict(case="memory_n", network="n", patch=[96] * 3, amp=None, runs=runs),
            dict(case="memory_m", error="broken"),
            dict(case="windows", network="n", window=[64] * 3, amp=None, runs=windows),
        ],
    )  # fmt: skip


def test_network_results_become_text_and_tables():
    from readme_networks import network_figures

    text = network_figures([_network_file()])
    assert "Measured on C, 2 threads, torch 2.0, 2000-01-01, batch 1." in text
    assert "`n` at 32x64x64, forward, float32: 0.500 s; with mamba_ssm's sequential scan" in text
    assert "20 times as long" in text and "take 12% of a forward pass of `n` at 96x96x96" in text
    assert "| `n` | 96x96x96 | 1.5 s, 2.0 GiB | more than 12 GiB | does not take this size |" in text
    assert text.count("| 126x64x64 |") == 1 and "| 126x64x64 | 0.25 | 2 | 512 MiB | 30 MiB |" in text
    assert "broken" not in text


def test_network_results_of_several_machines_stand_apart():
    from readme_networks import network_figures

    text = network_figures([_network_file(), _network_file(gpu="G")])
    assert "Measured on C, 2 threads" in text and "Measured on G, torch" in text
    assert network_figures([]).startswith("No figures of the networks")


def test_later_network_results_replace_earlier():
    from readme_networks import network_figures

    later = _network_file()
    later["networks"] = [dict(later["networks"][1], share=0.5)]
    text = network_figures([_network_file(), later])
    assert "50%" in text and "12%" not in text and "| `n` | 96x96x96 |" in text


# The peer's build


def test_setup_loses_its_choices():
    from build_mamba_ssm import BuildError, without_choices

    setup = (
        'if bare_metal_version >= Version("11.8"):\n'
        '    cc_flag.append("-gencode")\n'
        '    cc_flag.append("arch=compute_90,code=sm_90")\n'
        'extra = {"cxx": ["-O3", "-std=c++17"], "nvcc": ["-O3",\n"-std=c++17",\n"-lineinfo"]}\n'
    )
    scope = dict(bare_metal_version=2, Version=lambda text: 1)
    changed = without_choices(setup)
    exec(changed, scope)
    assert scope["extra"] == {"cxx": ["-O3"], "nvcc": ["-O3", "-lineinfo"]}
    assert "arch" not in changed
    with pytest.raises(BuildError, match="another way"):
        without_choices('flags = ["-gencode=arch=compute_90,code=sm_90"]')


def test_architectures_of_compile_commands():
    from build_mamba_ssm import architectures

    assert architectures("nvcc -gencode=arch=compute_90,code=sm_90 -O3") == {"90"}
    assert architectures("-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a") == {"80", "90a"}


def test_build_needs_a_toolkit(monkeypatch, capsys, tmp_path):
    import build_mamba_ssm

    def nothing() -> Path:
        raise build_mamba_ssm.BuildError("no CUDA toolkit was found")

    monkeypatch.setattr(build_mamba_ssm, "_cuda_home", nothing)
    monkeypatch.setattr(sys, "argv", ["build_mamba_ssm.py", "-o", str(tmp_path)])
    assert build_mamba_ssm.main() == 2
    assert "no CUDA toolkit" in capsys.readouterr().err
