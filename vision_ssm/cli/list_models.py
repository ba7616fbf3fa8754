"""`vision-ssm list`: the registered models."""

import argparse

import timm

from ..cards import all_facts
from ..command_line import CommandError
from ..registry import model_names
from .console import close_matches, print_json, print_table, rich_console

NAME = "list"
HELP = "list the models with their size, accuracy, licence and weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="shell pattern (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example: vision-ssm list 'vmamba_tiny*'"


def parameter_count(name: str) -> int:
    """Parameters of a registered model, counted without allocating them."""
    return sum(p.numel() for p in timm.create_model(name, device="meta").parameters())


def _entry(name: str, facts: dict) -> dict:
    return {
        "name": name,
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


def run(args: argparse.Namespace) -> int:
    """Print the models that match."""
    names = model_names(args.pattern)
    if not names:
        raise CommandError(f"no model matches {args.pattern!r}: {close_matches(args.pattern, model_names())}")
    console = None if args.json else rich_console()
    facts = all_facts()
    entries = [_entry(name, facts.get(name, {})) for name in names]
    if console is None:
        print_json(entries)
    else:
        columns = ("Model", "Params\n(M)", "GFLOPs", "ImageNet\ntop-1", "Licence", "Weights")  # fits 80 characters
        print_table(console, map(_row, entries), columns)
    return 0
