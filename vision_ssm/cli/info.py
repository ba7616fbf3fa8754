"""`vision-ssm info`: what is known of one model."""

import argparse
import inspect
import itertools

import timm
import torch.nn as nn
from timm.data import resolve_model_data_config

from ..cards import all_facts, task
from ..registry import model_names
from .console import print_json, print_table, rich_console
from .inputs import check_model_name

NAME = "info"
HELP = "show one model: paper, accuracy, weights, arguments, feature maps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="registered name, see `vision-ssm list`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example: vision-ssm info vim_tiny_patch16_224"


def _arguments(model: nn.Module) -> dict:
    """What the constructor is called with: its defaults, and the variant's own values."""
    parameters = inspect.signature(type(model)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    given = {p.name: model.variant[p.name] for p in parameters if p.name in model.variant}
    return {key: value for key, value in (defaults | given).items() if key not in ("device", "dtype")}


def _input_size(model: nn.Module, facts: dict) -> list[int]:
    """Channels and sides; those of a volume are among the facts, since timm's configs know images alone."""
    if "input" in facts:
        return list(map(int, facts["input"].split("x")))
    if model.pretrained_cfg.get("input_size") is None:
        return [model.in_chans]
    return list(resolve_model_data_config(model)["input_size"])


def _describe(name: str) -> dict:
    facts = all_facts().get(name, {})
    model = timm.create_model(name, device="meta")
    return {
        "name": name,
        "published_name": facts.get("published_name"),
        "task": task(name),
        "family": facts.get("family"),
        "paper": facts.get("paper"),
        "paper_url": f"https://arxiv.org/abs/{facts['arxiv']}" if facts else None,
        "venue": facts.get("venue") or None,
        "reference": f"https://github.com/{facts['reference']}" if facts else None,
        "license": facts.get("license"),
        "params": sum(p.numel() for p in model.parameters()),
        "gflops": facts.get("gflops"),
        "top1": facts.get("top1"),
        "top5": facts.get("top5"),
        "training": facts.get("training"),
        "weights": facts.get("checkpoint_url"),
        "weights_note": facts.get("checkpoint_note"),
        "input_size": _input_size(model, facts),
        "arguments": _arguments(model),
        "features": [
            {"module": f["module"], "channels": f["num_chs"], "reduction": f["reduction"]}
            for f in getattr(model, "feature_info", ())  # networks for dense prediction have none
        ],
    }


def _feature_rows(features: list[dict]) -> list[list[str]]:
    """One row for neighbours that look the same: the blocks of a plain backbone."""
    rows = []
    for (channels, reduction), group in itertools.groupby(features, lambda f: (f["channels"], f["reduction"])):
        modules = [feature["module"] for feature in group]
        span = modules[0] if len(modules) == 1 else f"{modules[0]} to {modules[-1]}"
        rows.append([span, str(channels), str(reduction)])
    return rows


def _rows(about: dict) -> list[list[str]]:
    facts = {
        "Model": about["name"],
        "Published as": about["published_name"],
        "For": about["task"],
        "Family": about["family"],
        "Paper": about["paper"],
        "Paper link": about["paper_url"],
        "Venue": about["venue"],
        "Reference code": about["reference"],
        "Licence": about["license"],
        "Parameters": f"{about['params'] / 1e6:.2f} M",
        "GFLOPs": about["gflops"],
        "ImageNet top-1": about["top1"],
        "ImageNet top-5": about["top5"],
        "Training": about["training"],
        "Weights": about["weights"] or "no file is known",
        "Note on weights": about["weights_note"],
        "Input size": "x".join(map(str, about["input_size"])),
        "Arguments": "\n".join(f"{name}={value!r}" for name, value in about["arguments"].items()),
    }
    return [[name, str(value)] for name, value in facts.items() if value is not None]


def run(args: argparse.Namespace) -> int:
    """Print what is known."""
    name = check_model_name(args.model, model_names())
    if args.json:
        print_json(_describe(name))
        return 0
    console = rich_console()
    about = _describe(name)
    print_table(console, _rows(about))
    if about["features"]:
        print_table(console, _feature_rows(about["features"]), ("Feature maps", "Channels", "Reduction"))
    return 0
