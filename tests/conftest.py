"""What all tests share: small, reproducible hypothesis runs, and uninitialised memory that shows."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # so that every test finds `ops.oracle` and `parity`

settings.register_profile(
    "light", deadline=None, max_examples=20, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("light")


def pytest_configure(config: pytest.Config) -> None:
    """Several test processes share the cores: a thread each, in the processes that they start too."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def nan_in_new_memory(request):
    """In the tests of operators `torch.empty` returns NaN: a value that no kernel wrote then reaches the comparison."""
    if TESTS / "ops" not in request.path.parents:
        yield
        return
    torch.use_deterministic_algorithms(True)  # with it PyTorch fills new memory
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    """Layers and models start alike in every run."""
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets PyTorch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
