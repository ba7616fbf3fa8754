"""The kernels' own threads, for a PyTorch that does not lend its pool."""

import ctypes
import shutil

import pytest
import torch

from vision_ssm.ops import cpu, scan_tokens

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the CPU kernels were not built")


@pytest.fixture
def own_pool(tmp_path, monkeypatch):
    """The library loaded once more, without PyTorch's threads."""
    copy = shutil.copy(cpu.library()._name, tmp_path / "own_pool.so")
    lib = ctypes.CDLL(str(copy))
    lib.torch_threads = False
    for name in ("scan_forward", "scan_backward", "conv_forward", "conv_backward"):
        function = getattr(lib, f"vssm_{name}")
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p]
    lib.vssm_scan_parts.restype = ctypes.c_int64
    return lambda: monkeypatch.setattr(cpu, "library", lambda: lib)


def _run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = scan_tokens(*leaves)
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


def test_same_bits_as_on_pytorchs_threads(own_pool, threads):
    g = torch.Generator().manual_seed(0)
    shapes = (3, 2, 70, 48), (3, 2, 70, 48), (2, 48, 4), (3, 2, 70, 1, 4), (3, 2, 70, 1, 4)
    u, dt, A, B, C = (torch.randn(shape, generator=g) for shape in shapes)
    inputs = [u, dt, -A.abs(), B, C]
    expected = _run(inputs)
    own_pool()
    for count in (1, 2, 4, 3):  # the pool grows, and leaves the rest of its threads asleep
        threads(count)
        for _ in range(20):
            for got, want in zip(_run(inputs), expected, strict=True):
                assert torch.equal(got, want)
