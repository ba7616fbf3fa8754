"""MMEngine reports every parameter and every step; the tests' output is theirs alone."""

import logging

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def quiet():
    """No log below an error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(before)


@pytest.fixture(autouse=True)
def seeded_crops():
    """Samples that are drawn without an engine follow NumPy's generator."""
    np.random.seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is noted as checked stays in the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
