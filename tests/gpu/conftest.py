"""Tests on an NVIDIA GPU. They need neither the compiled CPU kernels nor a network.

Without a GPU they are skipped; `TRITON_INTERPRET=1` runs those that do not need one on the CPU, with smaller inputs.
"""

import os
from pathlib import Path

import pytest
import torch
from ops.interpreter import interpreted

from vision_ssm.ops import gpu, use_backend

GPU = torch.cuda.is_available()
# cuBLAS has reproducible results with a workspace of its own; to be set before its first use.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skip(reason="no NVIDIA GPU")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not GPU and (not gpu.interpreting() or "cuda" in item.fixturenames):
                item.add_marker(missing)


@pytest.fixture(scope="session")
def device():
    """What the kernels run on: the GPU, or the CPU where they are interpreted."""
    if GPU:
        assert not gpu.interpreting(), "TRITON_INTERPRET is set: nothing would run on the GPU"
        yield torch.device("cuda", torch.cuda.current_device())
        return
    with interpreted():
        yield torch.device("cpu")


@pytest.fixture
def cuda(device):
    """The GPU, for tests that make no sense without one."""
    return device


@pytest.fixture(autouse=True)
def on_triton(device):
    """The backend; it is the default on a GPU only."""
    with use_backend("triton"):
        yield


@pytest.fixture(scope="session")
def sized(device):
    """`sized(full, small)`: sizes for a GPU, and for the interpreter."""
    return lambda full, small: full if device.type == "cuda" else small


@pytest.fixture(autouse=True)
def nan_in_new_memory(request):
    """As in the tests of operators; models and compilers use operations that are not deterministic."""
    if request.module.__name__.endswith(("test_models", "test_torch")):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def exact_products():
    """Matrix products and convolutions of float32 in float32, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
