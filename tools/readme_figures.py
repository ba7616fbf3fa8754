"""Write the figures of the README from the files of measurements (`tools/results/*.json`).

python tools/readme_figures.py            # write
python tools/readme_figures.py --check    # exit 1 if the README differs from what would be written

Each block of the README stands between `<!-- NAME: tools/readme_figures.py -->` and `<!-- /NAME -->`.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tools" / "results"

sys.path.insert(0, str(ROOT / "tools"))

from readme_gpu import gpu_speed  # noqa: E402
from readme_networks import network_figures  # noqa: E402

_WORDS = {1: "one", 2: "two", 4: "four", 8: "eight", 16: "sixteen"}
_SETS = {"avx512": "AVX-512", "avx2": "AVX2"}
_PUBLISHED = "published reference"


def _number(count: int) -> str:
    return _WORDS.get(count, str(count))


def _version(text: str) -> str:
    """2.15 of 2.15.0+cu132."""
    return ".".join(text.split(".")[:2])


def _short(model: str) -> str:
    """vim_tiny of vim_tiny_patch16_224."""
    return model.split("_patch")[0]


def _ratio(result: dict, peer: str, key: str) -> float | None:
    times = result["times_ms"]
    return times[peer][key] / times["cpu"][key] if peer in times else None


def cpu_scans(ops: dict, models: dict) -> str:
    """How many times as fast as the published scan: the range."""
    ratios = [ratio for r in ops["ops"] if (ratio := _ratio(r, _PUBLISHED, "median")) is not None]
    return f"{min(ratios):.0f} to {max(ratios):.0f}"


def _cpu_ops_table(ops: dict) -> list[str]:
    lines = [
        f"| selective scan, {_number(ops['machine']['threads'])} threads | ours | published reference (mamba_ssm, "
        "PyTorch) | mambapy | our `chunked` |",
        "|---|---|---|---|---|",
    ]
    for r in ops["ops"]:
        shape = f"K {r['paths']}, D {r['channels']}, L {r['tokens']}, N {r['d_state']}"
        ours = r["times_ms"]["cpu"]
        cells = [f"{r['case']} ({shape}), {r['what']}", f"{ours['median']:.2f} ms ({ours['cold']:.2f})"]
        for peer in (_PUBLISHED, "mambapy", "chunked"):
            warm, cold = (_ratio(r, peer, key) for key in ("median", "cold"))
            cells.append("–" if warm is None else f"{warm:.0f}× ({cold:.0f}×)")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cpu_models_table(models: dict) -> list[str]:
    lines = ["| model (224x224 unless said) | against | batch 1 | batch 8 |", "|---|---|---|---|"]
    rows: dict[tuple, dict[int, str]] = {}
    for p in models["pairs"]:
        cells = rows.setdefault((p["model"], p["peer"], p["side"]), {})
        cells[p["batch"]] = f"{p['ratio']:.2f}× its time ({p['times_ms'][p['model']]['median']:.0f} ms)"
    for (model, peer, side), cells in rows.items():
        size = "" if side == 224 else f" at {side}x{side}"
        lines.append(f"| `{model}`{size} | `{peer}` | {cells.get(1, '–')} | {cells.get(8, '–')} |")
    return lines


def cpu_speed(ops: dict, models: dict) -> str:
    """Operators and models on CPUs."""
    where = ops["machine"]
    sides = list(models["scaling"][0]["times_ms"])
    exponents = ", ".join(f"{s['exponent']:.2f} (`{s['model']}`)" for s in models["scaling"])
    ours, peer = models["memory"]
    return "\n".join(
        [
            f"Measured on {_number(where['cores'])} cores of an {where['cpu']} with {_SETS[where['instruction_set']]}, "
            f"float32, torch {_version(where['torch'])}, contestants in turns, medians; the files with all figures, "
            "versions and commit are in [tools/results](tools/results). Ratios are the contestant's time over ours: of "
            "calls that repeat, as in a network, and in parentheses of calls right after other work has displaced the "
            "caches.",
            "",
            *_cpu_ops_table(ops),
            "",
            *_cpu_models_table(models),
            "",
            f"Time grows with the number of pixels ({sides[0]} to {sides[-1]} pixels a side, batch 1) with exponent "
            f"{exponents}. `{_short(ours['model'])}` at {ours['side']}x{ours['side']} adds {ours['peak_mib']:.0f} MiB, "
            f"`{_short(peer['model'])}` {peer['peak_mib']:.0f} MiB (its attention is fused and never stored) of "
            "resident memory in a forward pass.",
        ]
    )


def _read(pattern: str) -> list[dict]:
    """Files of results, older ones first."""
    files = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in RESULTS.glob(pattern)]
    return [content for _, content in sorted(files, key=lambda pair: (pair[1]["machine"]["date"], pair[0]))]


def blocks() -> dict[str, str]:
    """The content of every block."""
    ops, models = (json.loads((RESULTS / f"cpu-{what}.json").read_text(encoding="utf-8")) for what in ("ops", "models"))
    return dict(
        cpu_scans=cpu_scans(ops, models),
        cpu_speed=cpu_speed(ops, models),
        gpu_speed=gpu_speed(_read("gpu-ops*.json"), _read("gpu-models*.json")),
        network_figures=network_figures([*_read("cpu-networks*.json"), *_read("gpu-networks*.json")]),
    )


def filled(readme: str, contents: dict[str, str]) -> str:
    """The README with every block's content.

    Raises:
        ValueError: a block is missing.
    """
    for name, content in contents.items():
        begin, end = f"<!-- {name}: tools/readme_figures.py -->", f"<!-- /{name} -->"
        before, found, rest = readme.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the README has no block from {begin} to {end}")
        line = "\n" if "\n" in content else ""
        readme = f"{before}{begin}{line}{content}{line}{end}{after}"
    return readme


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = filled(before, blocks())
    if before == after:
        return 0
    if not check:
        path.write_text(after, encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if check else 0


if __name__ == "__main__":
    sys.exit(main())
