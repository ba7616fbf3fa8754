"""One measurement in a process of its own, whose memory is that measurement's alone."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["reset_peak", "run_apart", "status"]

_CODE = "import json, sys; from {module} import {name}; print(json.dumps({name}(**json.loads(sys.argv[1]))))"


def status(field: str, process: int | str = "self") -> int:
    """A memory figure of a process, in KiB. Linux only.

    Raises:
        OSError: the process is no more.
        StopIteration: it has ended, and nobody has asked for its exit status yet.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def reset_peak() -> None:
    """Let the high-water mark of this process's memory (`VmHWM`) start again from here."""
    Path("/proc/self/clear_refs").write_text("5")


def run_apart(function: Callable[..., dict], limit_gib: float | None = None, **arguments) -> dict:
    """What a function of this package returns for arguments that JSON can hold, called in a process of its own.

    Returns:
        Its result; or, with one key, "stopped" if the process took more than `limit_gib` of resident memory and was
        ended (Linux only), "failed" with the last line of its messages if it broke.
    """
    code = _CODE.format(module=function.__module__, name=function.__name__)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as messages:
        command = [sys.executable, "-c", code, json.dumps(arguments)]
        with subprocess.Popen(command, stdout=out, stderr=messages) as process:
            try:
                stopped = _watch(process, limit_gib)
            finally:
                process.kill()  # nothing is left of it, whatever interrupts
        if stopped:
            return dict(stopped=f"more than {limit_gib:g} GiB")
        out.seek(0), messages.seek(0)
        if process.returncode:
            last = messages.read().strip().rsplit("\n", 1)[-1]
            return dict(failed=last or f"ended with status {process.returncode}")
        return json.loads(out.read().splitlines()[-1])


def _watch(process: subprocess.Popen, limit_gib: float | None) -> bool:
    """Wait for the end of a process, or until it takes more than the limit."""
    while process.poll() is None:
        if limit_gib is not None and sys.platform == "linux":
            try:
                if status("VmRSS", process.pid) > limit_gib * 2**20:
                    return True
            except (OSError, StopIteration):
                continue  # it ends just now
        time.sleep(0.02)
    return False
