"""A check-up's results in at most 40 lines."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["summary"]

_LINES = 40
_WIDTH = 160
_SHOWN = 6  # families, tests and cases that went wrong


def summary(out: Path, outcomes: Sequence) -> list[str]:
    """What the parts found, from their files.

    Args:
        out: the folder of results; files may be missing or hold a part of what they would.
        outcomes: how the parts ended (`checkup.Outcome`).
    """
    lines = ["parts: " + ", ".join(f"{one.part} {one.state} ({one.seconds:.0f} s)" for one in outcomes)]
    lines += [f"  {one.part} said last: {one.said}" for one in outcomes if one.state != "ok" and one.said]
    for part in (_environment, _kernels, _tests, _operators, _models, _plans):
        lines += part(out)
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"... and {len(lines) - _LINES + 1} more lines: see the files"]
    return [line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..." for line in lines]


def _read(out: Path, name: str) -> dict:
    try:
        return json.loads((out / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _environment(out: Path) -> Iterator[str]:
    found = _read(out, "environment.json")
    machine = found.get("machine", {})
    if machine.get("rehearsal"):
        yield "REHEARSAL on a CPU: no figure below is one of a GPU"
    versions = ", ".join(f"{name} {machine.get(name) or found.get(name)}" for name in ("torch", "triton", "timm"))
    where = f"{machine.get('gpu')}, driver {machine.get('driver')}, CUDA {machine.get('cuda')}"
    yield f"{where}, {versions}, commit {machine.get('commit')}"
    if rate := found.get("copy_gb_s"):
        yield f"a copy moves {rate:.0f} GB/s, read and written"
    if missing := [name for name, there in found.get("packages", {}).items() if not there]:
        yield f"not installed: {', '.join(missing)}"


def _kernels(out: Path) -> Iterator[str]:
    found = _read(out, "kernels.json")
    families, compiled = found.get("families", []), found.get("compiled", [])
    wrong = [r for r in families if r["wrong"]]
    yield f"kernel families: {len(families)} run, {len(wrong)} wrong ({found.get('seconds_of_families', '?')} s)"
    for r in wrong[:_SHOWN]:
        yield f"  {r['family']}: {'; '.join(r['wrong'])}"
    failed = [r for r in compiled if "error" in r]
    slowest = max(compiled, key=lambda r: r["seconds"], default=None)
    if slowest:
        seconds = found.get("seconds_of_compiling", "?")
        longest = f"{slowest['kernel']} of {slowest['case']} {slowest['plan']} {slowest['seconds']:.1f} s"
        yield f"compiled: {len(compiled)} kernels ({seconds} s), {len(failed)} failed; longest {longest}"
    for r in failed[:2]:
        yield f"  {r['case']} {r['plan']} {r['kernel']}: {r['error']}"


def _tests(out: Path) -> Iterator[str]:
    try:
        text = (out / "tests.jsonl").read_text(encoding="utf-8")
    except OSError:
        return
    results = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    counts = Counter(r["outcome"] for r in results)
    yield f"tests/gpu: {', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())}"
    for r in [r for r in results if r["outcome"] == "failed"][:_SHOWN]:
        reason = r["message"].strip().splitlines()
        told = next((line for line in reversed(reason) if line.startswith("E ")), reason[-1] if reason else "")
        yield f"  {r['test'].rpartition('/')[2]}: {told.removeprefix('E').strip()}"


def _operators(out: Path) -> Iterator[str]:
    for r in _read(out, "gpu-ops.json").get("ops", []):
        name = f"{r['case']}, {r['what']}"
        if "error" in r:
            yield f"{name}: {r['error']}"
            continue
        times, ours = r["times_ms"], r["ours"]
        best = f"{ours}, graph" if f"{ours}, graph" in times else ours
        peer = best.replace(ours, "mamba_ssm")
        ratio = f", mamba_ssm takes {times[peer]['median'] / times[best]['median']:.2f}x" if peer in times else ""
        wrong = f"; {'; '.join(f'{peer} {how}' for peer, how in r['failed'].items())}" if r["failed"] else ""
        share = (
            f"{r['roofline'][best]:.0%} of the copy rate on what must move, {r['bandwidth_of_ours']:.0%} on what moves"
        )
        yield f"{name}: {times[best]['median']:.3f} ms, {share}{ratio}{wrong}"


def _models(out: Path) -> Iterator[str]:
    for r in _read(out, "gpu-models.json").get("models", []):
        if "error" in r:
            yield f"{r['case']}: {r['error']}"
        elif "times_ms" in r:
            each = ", ".join(
                f"{name.split('_patch')[0]} {time['median']:.1f} ms"
                + (f" {r['peak_mib'][name] / 1024:.1f} GiB" if r["peak_mib"].get(name) else "")
                for name, time in r["times_ms"].items()
            )
            yield f"{r['case']}: {each}"
        elif r.get("share") is not None:
            operators = f"{r['share_of_operators']:.0%} with what surrounds them"
            yield f"{r['case']}: scan kernels take {r['share']:.0%} of a step, {operators}"
        for name, reason in list(r.get("absent", {}).items())[:2]:
            yield f"  {name}: {reason}"


def _plans(out: Path) -> Iterator[str]:
    for r in _read(out, "gpu-plans.json").get("cases", []):
        table, best = (r["times_ms"][name][0] for name in ("table", r["best"]))
        yield f"plan of {r['case']}, {r['what']}: table {table:.3f} ms, best {best:.3f} ms ({r['best']})"
