"""timm's own model tests pass on the package's small models."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timm_suite
def test_timm_model_tests() -> None:
    command = [sys.executable, str(Path(__file__).with_name("run.py"))]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout[-10_000:]
