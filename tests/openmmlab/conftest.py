"""MMEngine reports every parameter and every step; the tests' output is theirs alone."""

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet():
    """No log below an error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(before)
