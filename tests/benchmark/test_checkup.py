"""The check-up of the GPU kernels: parts that hang or die, and a summary of whatever they left.

The whole of it is rehearsed by `python tools/gpu/checkup.py --rehearse`, in CI.
"""

import json
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkup(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools" / "gpu")
    import checkup

    return checkup


def _part(checkup, monkeypatch, tmp_path, code: str) -> None:
    """Let every part be a script."""
    (tmp_path / "parts.py").write_text(code)
    monkeypatch.setattr(checkup, "HERE", tmp_path)


def test_parts_end_as_they_say(checkup, monkeypatch, tmp_path):
    _part(checkup, monkeypatch, tmp_path, "import sys; print('seen'); sys.exit(sys.argv[1] == 'tests')")
    fine = checkup.run_part("kernels", tmp_path, False, 30)
    wrong = checkup.run_part("tests", tmp_path, False, 30)
    assert (fine.part, fine.state, fine.said) == ("kernels", "ok", "seen")
    assert (wrong.part, wrong.state) == ("tests", "wrong")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("seen") == 2 and "===== tests" in log
    assert checkup.run_part("models", tmp_path, False, 0.5).state == "not started"


def test_a_part_that_hangs_ends_with_what_it_started(checkup, monkeypatch, tmp_path):
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(100)"])
open(r"{tmp_path / "child"}", "w").write(str(child.pid))
print("waiting", flush=True)
time.sleep(100)
"""
    _part(checkup, monkeypatch, tmp_path, code)
    outcome = checkup.run_part("kernels", tmp_path, False, 3)
    assert outcome.state == "out of time" and outcome.said == "waiting"
    pid = int((tmp_path / "child").read_text())
    for _ in range(100):  # until whoever adopted it has taken note
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("a process of the part is still there")


def test_long_logs_are_cut(checkup, monkeypatch, tmp_path):
    _part(checkup, monkeypatch, tmp_path, "print(('.' * 99 + chr(10)) * 10**5)")
    checkup.run_part("kernels", tmp_path, False, 60)
    log = (tmp_path / "log.txt").read_bytes()
    assert len(log) < 3 * 2**20 and log.startswith(b"\n===== kernels") and log.rstrip().endswith(b"." * 20)


def test_results_do_not_mix(checkup, tmp_path, capsys):
    (tmp_path / "gpu-ops.json").write_text("{}")
    with pytest.raises(SystemExit):
        checkup.main(["--out", str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        checkup.main(["--out", str(tmp_path / "other"), "--parts", "kernels,speed"])
    assert "unknown part speed" in capsys.readouterr().err


def test_a_summary_of_nothing(checkup, tmp_path):
    lines = checkup.summary(tmp_path, [checkup.Outcome("environment", "out of time", 25.0, "importing")])
    assert lines[0] == "parts: environment out of time (25 s)"
    assert lines[1] == "  environment said last: importing"


def test_a_summary_names_what_is_wrong_in_40_lines(checkup, tmp_path):
    families = [dict(family=f"scan {i}", wrong=[f"y is off by {i}"] if i else []) for i in range(30)]
    compiled = [dict(case="vim", plan="", kernel="scan_forward", seconds=float(i)) for i in range(5)]
    compiled[3]["error"] = "OutOfResources: registers"
    (tmp_path / "kernels.json").write_text(json.dumps(dict(families=families, compiled=compiled)))
    failed = dict(
        test="tests/gpu/test_scan.py::test_a", outcome="failed", message="def test\nE   assert 1 == 2\nx.py:3"
    )
    lines = [dict(test=f"t{i}", outcome="passed") for i in range(3)] + [failed] * 40
    torn = '{"test": "t4", "outc'
    (tmp_path / "tests.jsonl").write_text("\n".join([*map(json.dumps, lines), torn]))
    (tmp_path / "environment.json").write_text('{"machine": {"rehearsal": true, "gp')  # cut off
    many = [dict(case=f"case {i}", what="forward", error="out of memory") for i in range(40)]
    (tmp_path / "gpu-ops.json").write_text(json.dumps(dict(ops=many)))
    found = checkup.summary(tmp_path, [])
    text = "\n".join(found)
    assert len(found) == 40 and found[-1].startswith("... and ")
    assert "kernel families: 30 run, 29 wrong" in text and "scan 1: y is off by 1" in text
    assert "OutOfResources: registers" in text
    assert "40 failed, 3 passed" in text and "test_scan.py::test_a: assert 1 == 2" in text
    assert "case 0, forward: out of memory" in text
    assert all(len(line) <= 160 for line in found)
