"""The networks' side of `vision-ssm benchmark`."""

import argparse
import sys
from pathlib import Path

from ..command_line import CommandError, number, printable, whole
from ..files import write_json
from .console import print_table

__all__ = ["add_arguments", "run"]


def _patch(text: str) -> tuple[int, ...]:
    """Argument type: 96, or 48x160x224."""
    sides = text.split("x")
    if len(sides) not in (1, 3):
        raise argparse.ArgumentTypeError(f"expected one side or three, as 96 or 48x160x224, got {text[:50]!r}")
    return tuple(whole(1, 4096)(side) for side in (sides * 3 if len(sides) == 1 else sides))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that only the networks have."""
    parser.add_argument(
        "--patch", type=_patch, nargs="+", metavar="SIDES",
        help="networks: voxels a side, as 96 or 48x160x224, for time and memory (default: 96; on GPUs 128)",
    )  # fmt: skip
    parser.add_argument(
        "--amp", choices=("bfloat16", "float16"), help="networks: autocast for time and memory (default: none)"
    )
    parser.add_argument(
        "--limit-gib",
        type=number(),
        metavar="N",
        help="networks: end a measurement of memory that takes more than N GiB",
    )


def run(console, args: argparse.Namespace) -> int:
    """Measure, print and write case by case, so that a run that is cut off leaves what it has.

    Returns the exit status: 1 if a case failed.
    """
    import torch

    from ..benchmark import cases, meter, networks, timing

    names = cases.select(networks.CASES, args.cases)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError(f"--device cuda: PyTorch {torch.__version__} finds no NVIDIA GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    where = meter.gpu_machine() if args.device == "cuda" else timing.machine()
    console.print(
        f"{where['gpu'] if args.device == 'cuda' else where['cpu']}, {where['threads']} threads, "
        f"torch {where['torch']}, commit {where['commit']}"
    )
    settings = networks.Settings(
        args.device, tuple(args.patch or ()), args.amp, args.threads, args.rounds or 3, args.seconds or 60,
        args.limit_gib, _reference(args.mamba_ssm),
    )  # fmt: skip
    results = dict(machine=where, networks=[])
    failed = 0
    for result in networks.run(names, settings):
        results["networks"].append(result)
        if args.output:
            write_json(args.output, results)
        if "error" in result:
            print(f"vision-ssm: error: {result['case']}: {printable(result['error'])}", file=sys.stderr)
            failed = 1
        else:
            _PRINT[result["case"].partition("_")[0]](console, result)
    if args.output:
        console.print(f"results: {printable(args.output)}")
    return failed


def _reference(sdist: Path | None):
    """mamba_ssm's sequential scan, or None without an sdist."""
    from ..benchmark.ops import load_published_reference

    return load_published_reference(sdist) if sdist else None


def _title(result: dict) -> str:
    return f"{result['network']}, {'x'.join(map(str, result['patch']))}"


def _print_sequential(console, result: dict) -> None:
    rows = [
        [name, f"{t['median']:.0f}", f"{t['fastest']:.0f}", f"{t['slowest']:.0f}", str(t["rounds"])]
        for name, t in result["times_ms"].items()
    ]
    title = f"{_title(result)}: {result['contender']} takes {result['ratio']:.1f} times ours"
    print_table(console, rows, ("scans", "median ms", "fastest", "slowest", "rounds"), title)


def _print_share(console, result: dict) -> None:
    time = result["times_ms"][result["network"]]["median"]
    rows = [[str(result["layers"]), f"{100 * result['share']:.2g}%", f"{time:.0f}"]]
    print_table(console, rows, ("token mixers", "share of the forward pass", "median ms"), _title(result))


def _what_came(found: dict) -> list[str]:
    """Time and memory, or why there are none."""
    if "times_ms" in found:
        peak = found["peak_mib"]
        return [f"{found['times_ms']['median']:.0f}", "-" if peak is None else f"{peak:.0f}", ""]
    return ["-", "-", "; ".join(f"{how}: {why}" for how, why in found.items())]


def _print_memory(console, result: dict) -> None:
    rows = [[what, *_what_came(found)] for what, found in result["runs"].items()]
    title = _title(result) + (f", {result['amp']}" if result["amp"] else "")
    print_table(console, rows, ("what", "median ms", "peak MiB", ""), title)


def _print_windows(console, result: dict) -> None:
    rows = []
    for r in result["runs"]:
        volume = "x".join(map(str, r["volume"]))
        if "windows" in r:
            peak = "-" if r["peak_mib"] is None else f"{r['peak_mib']:.0f}"
            rows.append([r["kind"], volume, str(r["windows"]), peak, f"{r['volume_mib']:.0f}", ""])
        else:
            why = "; ".join(f"{how}: {text}" for how, text in r.items() if how in ("refused", "stopped", "failed"))
            rows.append([r["kind"], volume, "-", "-", "-", why])
    columns = ("volumes", "voxels", "windows", "peak MiB", "image and probabilities MiB", "")
    print_table(console, rows, columns, f"{result['network']} in windows of {'x'.join(map(str, result['window']))}")


_PRINT = dict(sequential=_print_sequential, share=_print_share, memory=_print_memory, windows=_print_windows)
