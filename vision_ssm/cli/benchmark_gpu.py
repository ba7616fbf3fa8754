"""The GPU side of `vision-ssm benchmark`."""

import argparse
import sys
from collections.abc import Iterator

from ..command_line import CommandError, printable
from ..files import write_json
from .console import print_table

__all__ = ["run"]


def run(console, args: argparse.Namespace) -> int:
    """Measure, print and write case by case, so that a run that is cut off leaves what it has.

    Returns the exit status: 1 if a peer computed something else than ours, or if a case failed.
    """
    from ..benchmark import meter as meters
    from ..ops import available_backends

    results, names = _cases(args)
    try:
        meter = meters.Meter()
    except RuntimeError as error:
        raise CommandError(f"--device cuda: {error}") from error
    if "triton" not in available_backends():
        raise CommandError("--device cuda: the triton backend is not available: it needs Triton and a GPU from 7.5 on")
    where, copy_rate = meters.gpu_machine(), meter.copy_rate()
    console.print(
        f"{where['gpu']}, driver {where['driver']}, CUDA {where['cuda']}, torch {where['torch']}, triton "
        f"{where['triton']}, timm {where['timm']}; a copy moves {copy_rate / 1e9:.0f} GB/s, read and written"
    )
    whole = dict(machine=where, copy_gb_s=copy_rate / 1e9) | {args.what: []}
    wrong = []
    for result in results(meter, names, copy_rate, args):
        whole[args.what].append(result)
        if args.output:
            write_json(args.output, whole)
        (_print_op if args.what == "ops" else _print_models)(console, result)
        wrong += _complaints(result)
    if args.output:
        console.print(f"results: {printable(args.output)}")
    for complaint in wrong:
        print(f"vision-ssm: error: {printable(complaint)}", file=sys.stderr)
    return 1 if wrong else 0


def _cases(args: argparse.Namespace):
    """How to measure, and the names of the cases."""
    from ..benchmark import cases, gpu_models, gpu_ops

    def ops(meter, names, copy_rate, args) -> Iterator[dict]:
        return gpu_ops.run(meter, names, copy_rate, args.rounds or 30, args.seconds or 10, args.peers)

    def models(meter, names, copy_rate, args) -> Iterator[dict]:
        return gpu_models.run(meter, names, args.rounds or 20, args.seconds or 30)

    every = [case.name for case in cases.CASES] if args.what == "ops" else list(gpu_models.CASES)
    return (ops if args.what == "ops" else models), cases.select(every, args.cases)


def _complaints(result: dict) -> list[str]:
    """What went wrong in a case, a sentence each."""
    what = " ".join(str(result[key]) for key in ("case", "what") if key in result)
    found = [f"{what}: {peer} {how}" for peer, how in result.get("failed", {}).items()]
    return found + ([f"{what}: {result['error']}"] if "error" in result else [])


def _mib(result: dict, name: str) -> str:
    return f"{result['peak_mib'][name]:.0f}" if name in result["peak_mib"] else "-"


def _print_op(console, result: dict) -> None:
    title = f"{result['label']}, {result['what']}"
    if "error" in result:
        console.print(f"{title}: {result['error']}")
        return
    if result["predicted_ms"]:
        title += f" (predicted: {' to '.join(f'{t:.3f}' for t in result['predicted_ms'])} ms)"
    times = result["times_ms"]
    first = times[result["ours"]]["median"]
    rows = [
        [name, f"{t['median']:.3f}", f"{t['fastest']:.3f}", f"{t['slowest']:.3f}", f"{t['median'] / first:.2f}x",
         f"{result['roofline'][name]:.1%}", _mib(result, name)]
        for name, t in times.items()
    ]  # fmt: skip
    columns = ("implementation", "median ms", "fastest", "slowest", "against ours", "of the copy rate", "peak MiB")
    print_table(console, rows, columns, title)
    _print_absent(console, result)


def _print_models(console, result: dict) -> None:
    title = result["label"]
    if "error" in result:
        console.print(f"{title}: {result['error']}")
    elif "times_ms" in result:
        rows = [
            [name, f"{t['median']:.2f}", f"{t['fastest']:.2f}", f"{t['slowest']:.2f}",
             f"{result['images_per_second'][name]:.0f}", _mib(result, name)]
            for name, t in result["times_ms"].items()
        ]  # fmt: skip
        columns = ("model", "median ms", "fastest", "slowest", "images/s", "peak MiB")
        print_table(console, rows, columns, title)
        _print_absent(console, result)
    else:
        rows = [[key, str(value)] for key, value in result.items() if not isinstance(value, dict)]
        rows += [[name, f"{time:.3f} ms"] for name, time in result["longest_kernels_ms"].items()]
        print_table(console, rows, title=title)


def _print_absent(console, result: dict) -> None:
    for name, reason in result["absent"].items():
        console.print(f"{name}: absent, {reason}")
