"""`vision-ssm list`: the registered models."""

import argparse

import timm

from ..cards import all_facts, task
from ..command_line import CommandError, nonempty
from ..registry import model_names
from .console import close_matches, print_json, print_table, rich_console

NAME = "list"
HELP = "list the models by what they are for, with their size, accuracy, licence and weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="shell pattern (default: all)")
    parser.add_argument(
        "--task",
        type=nonempty,
        metavar="WORDS",
        help="only those for a task: segmentation, 3D, 'classification 2D' ...",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example: vision-ssm list 'vmamba_tiny*'\n         vision-ssm list --task 'segmentation 3D'"


def parameter_count(name: str) -> int:
    """Parameters of a registered model, counted without allocating them."""
    return sum(p.numel() for p in timm.create_model(name, device="meta").parameters())


def _entry(name: str, facts: dict) -> dict:
    return {
        "name": name,
        "task": task(name),
        "params": facts.get("params") or parameter_count(name),
        "gflops": facts.get("gflops"),
        "top1": facts.get("top1"),
        "license": facts.get("license"),
        "weights": bool(facts.get("checkpoint_url")),
    }


def _row(entry: dict) -> list[str]:
    return [
        entry["name"],
        f"{entry['params'] / 1e6:.1f}",
        "-" if entry["gflops"] is None else f"{entry['gflops']:.1f}",
        "-" if entry["top1"] is None else f"{entry['top1']:.1f}",
        entry["license"] or "-",
        "yes" if entry["weights"] else "no",
    ]


def _for_task(names: list[str], words: str | None) -> list[str]:
    """Those of `names` whose task has all words."""
    if words is None:
        return names
    tasks = {name: task(name) for name in names}
    wanted = set(words.lower().split())
    found = [name for name, what in tasks.items() if wanted <= set(what.lower().split())]
    if not found:
        raise CommandError(f"no model is for {words!r}: expected words of {', '.join(sorted(set(tasks.values())))}")
    return found


def run(args: argparse.Namespace) -> int:
    """Print the models that match."""
    names = model_names(args.pattern)
    if not names:
        raise CommandError(f"no model matches {args.pattern!r}: {close_matches(args.pattern, model_names())}")
    names = _for_task(names, args.task)
    console = None if args.json else rich_console()
    facts = all_facts()
    entries = [_entry(name, facts.get(name, {})) for name in names]
    if console is None:
        print_json(entries)
    else:
        columns = ("Model", "Params\n(M)", "GFLOPs", "ImageNet\ntop-1", "Licence", "Weights")  # fits 80 characters
        for what in dict.fromkeys(entry["task"] for entry in entries):
            print_table(console, [_row(entry) for entry in entries if entry["task"] == what], columns, title=what)
    return 0
