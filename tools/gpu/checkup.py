"""All that a few minutes on a GPU can show, in one call, the most important first.

    python tools/gpu/checkup.py --out RESULTS              # on a machine with an NVIDIA GPU, at most 9 minutes
    python tools/gpu/checkup.py --out RESULTS --rehearse   # the same on a CPU, interpreted and tiny

A bare source tree is enough: nothing is installed or downloaded. Each part is a process of its own that ends by a fixed
time and writes its results as it gets them, so that one that hangs or dies costs its own rest alone. What an early part
leaves of its time goes to the next. `docs/gpu.md` says what to bring along and how results become the README's figures.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from summary import summary  # noqa: E402

# The part and its seconds on a GPU, in order of importance.
SHARES = dict(environment=25, kernels=110, tests=140, operators=80, models=120, plans=45)
REHEARSAL = 600  # seconds at most, for a busy machine; two idle cores need less than 60
_LONGEST_LOG = 2 * 2**20  # bytes of each part


class Outcome(NamedTuple):
    """How a part ended."""

    part: str
    state: str  # "ok", "wrong", "out of time", "not started"
    seconds: float
    said: str = ""  # its last line


def run_part(name: str, out: Path, rehearse: bool, limit: float) -> Outcome:
    """Run a part for `limit` seconds at most; what it prints goes to log.txt."""
    if limit < 2:
        return Outcome(name, "not started", 0)
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    if rehearse:
        environment |= dict(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, str(HERE / "parts.py"), name, str(out), *(["--rehearse"] if rehearse else [])]
    start = time.monotonic()
    with open(out / "log.txt", "ab") as log:
        log.write(f"\n===== {name}, {limit:.0f} s at most\n".encode())
        log.flush()
        before = log.tell()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            state = "wrong" if process.wait(limit) else "ok"
        except subprocess.TimeoutExpired:
            state = "out of time"
        with contextlib.suppress(ProcessLookupError):  # also what it started and left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Outcome(name, state, time.monotonic() - start, _shorten(out / "log.txt", before))


def _shorten(log: Path, begin: int) -> str:
    """Keep the end of what a part wrote; returns its last line."""
    content = log.read_bytes()
    if len(content) - begin > _LONGEST_LOG:
        log.write_bytes(content[:begin] + b"[...]\n" + content[-_LONGEST_LOG:])
    lines = content[begin:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, print the summary; returns 1 if anything was wrong or is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the results: at most 8 files")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, interpreted, with tiny shapes")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (default: 9)")
    parser.add_argument("--parts", default=",".join(SHARES), help="only some, by commas (default: all, in this order)")
    args = parser.parse_args(arguments)
    chosen = args.parts.split(",")
    if unknown := sorted(set(chosen) - set(SHARES)):
        parser.error(f"unknown part {', '.join(unknown)}: expected some of {', '.join(SHARES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if left := [path.name for path in args.out.iterdir()]:
        parser.error(f"{args.out} is not empty ({left[0]}): results of several runs must not mix")
    shares = {name: SHARES[name] for name in SHARES if name in chosen}
    available = REHEARSAL if args.rehearse else 60 * args.minutes - 5  # for the summary and the interpreter's end
    begin, end, outcomes = time.monotonic(), 0.0, []
    for name, share in shares.items():
        end += available * share / sum(shares.values())
        outcomes.append(run_part(name, args.out, args.rehearse, begin + end - time.monotonic()))
        print(f"{name}: {outcomes[-1].state}, {outcomes[-1].seconds:.0f} s", flush=True)
    text = "\n".join(summary(args.out, outcomes))
    (args.out / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(any(outcome.state != "ok" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
