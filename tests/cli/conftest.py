"""Commands run in this process."""

import pytest

from vision_ssm.cli import main


@pytest.fixture
def fails(capsys):
    """Run arguments that are wrong; returns the one line of the error. Warnings may come before it."""

    def run(*argv) -> str:
        assert main([str(arg) for arg in argv]) == 2
        *warnings, error = capsys.readouterr().err.splitlines()
        assert all(line.startswith("vision-ssm: warning: ") for line in warnings)
        assert error.startswith("vision-ssm: error: ")
        return error.removeprefix("vision-ssm: error: ")

    return run


@pytest.fixture
def prints(capsys):
    """Run arguments that are right; returns what is printed."""

    def run(*argv) -> str:
        assert main([str(arg) for arg in argv]) == 0
        return capsys.readouterr().out

    return run
