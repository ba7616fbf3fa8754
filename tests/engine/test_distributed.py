"""Two processes that share the data: equal weights, and resumed with the bits of an unbroken run."""

import signal
import socket

import pytest

pytest.importorskip("mmengine")
from engine.tiny import assert_same_end, config, files, last, same, start


def a_free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def launch(cfg, folder, *hooks, world=2, **options):
    """As torchrun starts the processes; returns their exit codes."""
    env = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(a_free_port()), WORLD_SIZE=str(world))
    ranks = [
        start(cfg, folder, *hooks, env=dict(env, RANK=str(rank), LOCAL_RANK=str(rank)), launcher="pytorch", **options)
        for rank in range(world)
    ]
    for process in ranks:
        process.join(60)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in ranks]


KILL, COMPARE = dict(type="Kill", step=13), dict(type="Compare")


def a_config(**changes):
    return config(**{"randomness.diff_rank_seed": True}, **changes)


@pytest.mark.parametrize(
    "changes", [{}, dict(by_epoch=True, workers=1, steps=48)], ids=["iterations", "epochs, workers"]
)
def test_two_processes_end_alike_and_resume(changes, tmp_path):
    assert launch(a_config(**changes), tmp_path / "unbroken", COMPARE) == [0, 0]
    states = last(tmp_path / "unbroken")["process_states"]
    assert len(states) == 2 and not same(states[0]["random"], states[1]["random"])
    codes = launch(a_config(**changes), tmp_path / "killed", KILL)
    assert -signal.SIGKILL in codes and 0 not in codes
    between = last(tmp_path / "killed")
    assert between["meta"]["iter"] in (10, 12)
    if between["meta"]["iter"] == 10:  # gradients of one step wait for two more
        gradients = [state["gradients"] for state in between["process_states"]]
        assert gradients[0] and not same(*gradients)
    assert launch(a_config(**changes), tmp_path / "killed", COMPARE) == [0, 0]
    assert_same_end(tmp_path / "killed", tmp_path / "unbroken")


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2)])
def test_another_number_of_processes_is_a_warning(worlds, tmp_path):
    assert set(launch(a_config(), tmp_path, KILL, world=worlds[0])) != {0}
    cfg = a_config(log_level="WARNING")
    assert launch(cfg, tmp_path, world=worlds[1]) == [0] * worlds[1]
    logs = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert f"holds the states of {worlds[0]} processes, this run has {worlds[1]}: it continues, but not" in logs
    assert last(tmp_path)["meta"]["iter"] == 24 and files(tmp_path)
