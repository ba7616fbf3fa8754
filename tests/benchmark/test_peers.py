"""The contestants of a GPU benchmark compute the same, and those that are absent say why."""

import sys
import time
from types import SimpleNamespace

import pytest
import timm
import torch

import vision_ssm
from vision_ssm.benchmark import copies, gpu_ops, peers
from vision_ssm.benchmark.cases import Case, make_problem
from vision_ssm.scan import Hilbert, cross

PLAIN = Case("plain", "a plain scan", 2, 8, (19,), 4, gate=True)
CORE = Case("core", "a cross-scan", 2, 8, (4, 5), 1, cross(), 2)
VOLUME = Case("volume", "three orders", 1, 8, (3, 4, 5), 4, cross(3)[:3], 2)


@pytest.mark.parametrize("case", [PLAIN, CORE, VOLUME], ids=lambda case: case.name)
@pytest.mark.parametrize("backward", [False, True])
def test_peers_compute_what_we_compute(monkeypatch, case, backward):
    # ours has the signature of mamba_ssm's function, so it can stand in for it
    monkeypatch.setattr(peers, "load_mamba_ssm", lambda: vision_ssm.selective_scan)
    problem = make_problem(case, "cpu")
    ours = None
    for name, make in peers.contestants(problem, 1, backward):
        if name in ("flash-linear-attention", "compiled chunked"):
            continue
        results = make().results(backward)
        ours = ours or results
        assert results.keys() == ours.keys()
        assert {n: results[n].shape for n in results} == {n: ours[n].shape for n in ours}
        assert max(gpu_ops.deviations(ours, results).values()) < 1e-2, name


def test_chunked_goes_back_through_chunked(monkeypatch):
    """The backward pass is its own too, and not the default backend's."""
    problem = make_problem(PLAIN, "cpu")
    made = dict(peers.contestants(problem, 1, True))["chunked"]()
    monkeypatch.setattr("vision_ssm.ops.cpu.scan_backward", None)
    made.results(True)


@pytest.mark.parametrize("name", ["vmamba_test", "vim_test"])
def test_models_over_copies_are_the_same_models(name):
    model = timm.create_model(name).eval()
    images = torch.randn(2, *model.default_cfg["input_size"])
    weight = next(value for key, value in model.named_parameters() if key.endswith("x_proj"))

    def results():
        out = model(images)
        return out, *torch.autograd.grad(out.square().sum(), weight)

    expected = results()
    copies.over_copies(model, vision_ssm.selective_scan)
    torch.testing.assert_close(results(), expected, rtol=1e-4, atol=1e-5)


def test_copies_know_only_orders_of_axes():
    with pytest.raises(ValueError, match="no order of the axes"):
        copies._axes(Hilbert(), 2)


def test_peers_that_are_absent_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    with pytest.raises(peers.Absent, match=r"not installed.*tools/gpu/build_mamba_ssm\.py"):
        peers.load_mamba_ssm()
    with pytest.raises(peers.Absent, match="not installed"):
        peers._fla()


def test_mamba_ssm_is_taken_out_of_its_source(monkeypatch, tmp_path):
    """Importing the package would import all that its models need."""
    folder = tmp_path / "mamba_ssm" / "ops"
    folder.mkdir(parents=True)
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("raise ImportError('tilelang')")
    (folder / "selective_scan_interface.py").write_text(
        "import tilelang\n"
        "class SelectiveScanFn(torch.autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(ctx, u, *args):\n"
        "        return selective_scan_cuda.fwd(u)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kernel = SimpleNamespace(fwd=lambda u: u + 1)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", kernel)
    scan = peers.load_mamba_ssm()
    assert scan(torch.zeros(2), None, None, None, None).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("from mamba_ssm.ops.selective_scan_interface import selective_scan_fn", "a contestant itself"),
        ("from fla.ops.mamba import selective_scan_fn", "does not know"),
    ],
)
def test_flash_linear_attention_is_looked_at(monkeypatch, tmp_path, line, reason):
    layers = tmp_path / "fla" / "layers"
    layers.mkdir(parents=True)
    (tmp_path / "fla" / "__init__.py").write_text("raise ImportError")
    (layers / "mamba.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(peers.Absent, match=reason):
        peers._fla()


def test_time_limit():
    with pytest.raises(peers.Absent, match="not ready after 1 s"), peers.time_limit(1):
        try:
            time.sleep(5)
        except Exception:  # what stops is not taken for an error of the compiler
            time.sleep(5)
    with peers.time_limit(1):
        pass


def test_long_sequences_are_not_compiled():
    problem = make_problem(Case("", "", 1, 2, (5000,), 1), "cpu")
    with pytest.raises(peers.Absent, match="4096"):
        peers._compiled(problem, [], False)
