import pytest
import torch

from vision_ssm.benchmark import ops
from vision_ssm.benchmark.timing import interleaved, machine
from vision_ssm.errors import InputError


def test_contestants_take_turns():
    calls = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=4)
    assert calls == list("ab") * 5  # one warm-up, four rounds
    assert all(t["fastest"] <= t["median"] <= t["slowest"] and t["rounds"] == 4 for t in times.values())


def test_cold_calls_are_told_apart():
    calls = []
    times = interleaved({"a": lambda: calls.append("a")}, rounds=3, twice=True)
    assert len(calls) == 1 + 2 * 3
    assert times["a"]["cold"] > 0


def test_machine_names_what_figures_depend_on():
    assert {"cpu", "threads", "torch", "timm", "commit", "instruction_set"} <= machine().keys()


@pytest.mark.parametrize("case", [ops.Case("row", 1, 16, (13,), 4), ops.Case("cross", 4, 16, (4, 5), 1)])
@pytest.mark.parametrize("grad", [False, True])
def test_peers_compute_what_we_compute(case, grad):
    """Without this a ratio of times would mean nothing."""
    calls = ops._contestants(case, None, grad)
    ours = next(iter(calls.values()))().detach()
    for name, call in calls.items():
        assert ops._error(ours, call().detach(), case, name) < 1e-5, name
        if grad:
            assert len(torch.autograd.grad(call().sum(), call.leaves)) == 7


def test_missing_sdist_is_an_error(tmp_path):
    with pytest.raises(InputError, match="sdist"):
        ops.load_published_reference(tmp_path)
