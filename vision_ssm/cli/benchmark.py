"""`vision-ssm benchmark`: speed of operators, models and networks on this machine, beside their peers."""

import argparse

import torch

from ..benchmark.timing import machine
from ..command_line import CommandError, check_output, location, nonempty, printable, threads, whole
from ..files import write_json
from . import benchmark_gpu, benchmark_networks
from .console import print_table, rich_console

NAME = "benchmark"
HELP = "time the operators, the models or the medical networks, beside their peers and in turns"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "what", choices=("ops", "models", "networks"),
        help="ops: selective scans; models: backbones beside timm's; networks: time and memory of those for volumes",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the current NVIDIA GPU")
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="threads of PyTorch, on CPUs (default: its own choice)"
    )
    parser.add_argument(
        "--rounds",
        type=whole(1, 10**6),
        metavar="N",
        help="turns of each contestant (default: 30; models 20, networks 3)",
    )
    parser.add_argument(
        "--seconds",
        type=whole(1, 10**6),
        metavar="S",
        help="limit of each case (default: 60; on GPUs ops 10, models 30)",
    )
    parser.add_argument(
        "--mamba-ssm",
        type=location,
        metavar="PATH",
        help="ops on CPUs, networks: mamba_ssm's sdist, whose PyTorch reference joins",
    )
    parser.add_argument(
        "--cases",
        type=nonempty,
        metavar="PATTERN",
        help="on GPUs, and networks: shell patterns of the cases, by commas (default: all)",
    )
    parser.add_argument(
        "--peers",
        type=nonempty,
        metavar="PATTERN",
        help="ops on GPUs: shell patterns of the peers, likewise (default: all)",
    )
    benchmark_networks.add_arguments(parser)
    parser.add_argument("-o", "--output", type=location, metavar="FILE.json", help="also write the results as JSON")
    parser.epilog = (
        "example: vision-ssm benchmark ops --threads 2 --mamba-ssm mamba_ssm-2.3.2.tar.gz -o ops.json\n"
        "         vision-ssm benchmark ops --device cuda --cases 'vim*,ss2d*' -o gpu-ops.json\n"
        "         vision-ssm benchmark networks --threads 2 --cases 'memory*' --patch 64 96 --limit-gib 12"
    )


def _check_arguments(args: argparse.Namespace) -> None:
    unheard = dict(cuda=("threads", "mamba_ssm"), cpu=("cases", "peers"))[args.device]
    meaningless = dict.fromkeys(unheard, f"--device {args.device}")
    if args.what == "networks":
        meaningless = dict.fromkeys(("threads",) if args.device == "cuda" else (), "--device cuda")
        meaningless["peers"] = "networks"
    else:
        meaningless |= dict.fromkeys(("patch", "amp", "limit_gib"), args.what)
    for name, where in meaningless.items():
        if getattr(args, name) is not None:
            raise CommandError(f"--{name.replace('_', '-')} has no meaning with {where}")


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    console = rich_console()
    _check_arguments(args)
    if args.output:
        check_output(args.output, [args.mamba_ssm])
    if args.what == "networks":
        return benchmark_networks.run(console, args)
    if args.device == "cuda":
        return benchmark_gpu.run(console, args)
    args.seconds = args.seconds or 60
    if args.threads:
        torch.set_num_threads(args.threads)
    where = machine()
    console.print(
        f"{where['cpu']}, {where['threads']} threads, {where['instruction_set'] or 'no compiled kernels'}, "
        f"torch {where['torch']}, timm {where['timm']}"
    )
    results = _ops(console, args) if args.what == "ops" else _models(console, args)
    if args.output:
        write_json(args.output, dict(machine=where, **results))
        console.print(f"results: {printable(args.output)}")
    return 0


def _ops(console, args: argparse.Namespace) -> dict:
    from ..benchmark import ops

    reference = ops.load_published_reference(args.mamba_ssm) if args.mamba_ssm else None
    results = ops.run(reference, args.rounds or 30, args.seconds)
    rows = []
    for result in results:
        times = result["times_ms"]
        ours = next(iter(times.values()))
        for name, time in times.items():
            figures = [f"{time[key]:.3f}" for key in ("median", "cold")]
            ratios = [f"{time[key] / ours[key]:.1f}x" for key in ("median", "cold")]
            rows.append([result["case"], result["what"], name, *figures, *ratios])
    columns = ("case", "what", "implementation", "median ms", "cold ms", "against the first", "cold")
    print_table(console, rows, columns)
    return dict(ops=results)


def _models(console, args: argparse.Namespace) -> dict:
    from ..benchmark import models

    pairs = models.run_pairs(args.rounds or 20, args.seconds)
    rows = [
        [p["model"], p["peer"], str(p["side"]), str(p["batch"]), f"{p['times_ms'][p['model']]['median']:.1f}",
         f"{p['times_ms'][p['peer']]['median']:.1f}", f"{p['ratio']:.2f}"]
        for p in pairs
    ]  # fmt: skip
    print_table(console, rows, ("model", "peer", "side", "batch", "ms", "peer's ms", "ratio"))
    scaling = models.run_scaling(rounds=5, seconds=args.seconds)
    rows = [[s["model"], *(f"{t:.0f}" for t in s["times_ms"].values()), f"{s['exponent']:.2f}"] for s in scaling]
    print_table(console, rows, ("ms by image side", *map(str, models.SIDES), "exponent"))
    memory = models.run_memory()
    rows = [[m["model"], str(m["side"]), f"{m['peak_mib']:.0f}"] for m in memory]
    print_table(console, rows, ("model", "side", "peak MiB of a forward pass"))
    return dict(pairs=pairs, scaling=scaling, memory=memory)
