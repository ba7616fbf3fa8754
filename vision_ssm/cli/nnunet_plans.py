"""`vision-ssm nnunet-plans`: nnU-Net plans for a network of this package."""

import argparse
import json
from pathlib import Path

from ..command_line import CommandError, check_input, check_output, location, nonempty, printable
from ..files import write_json
from ..nnunet.factory import NETWORKS, network_traits
from ..nnunet.plans import plans_name, rewrite_plans

NAME = "nnunet-plans"
HELP = "rewrite nnU-Net v2 plans, so that nnU-Net trains a network of this package"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("plans", type=location, metavar="PLANS.json", help="plans that nnU-Net made (nnUNetPlans.json)")
    parser.add_argument(
        "--network",
        type=nonempty,
        required=True,
        metavar="NAME",
        help=f"{', '.join(NETWORKS.values())}, or another segmentation network",
    )
    parser.add_argument(
        "--configurations",
        nargs="+",
        type=nonempty,
        metavar="NAME",
        help="those to keep (default: all of the network's dimensions)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=location,
        metavar="OUT.json",
        help="file to write (default: nnUNet<Network>Plans.json)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    parser.epilog = "example: vision-ssm nnunet-plans nnUNetPlans.json --network umamba_enc"


def _read(path: Path) -> dict:
    name = printable(check_input(path, "plans"))
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{name} is no JSON: {error}") from error
    if not isinstance(plans, dict):
        raise CommandError(f"{name} is no plans file of nnU-Net v2")
    return plans


def run(args: argparse.Namespace) -> int:
    """Rewrite, check by a forward pass without data, write, and say how to train."""
    if not args.network.isidentifier():  # a file will bear it
        raise CommandError(f"no network {args.network!r}: expected one of {', '.join(NETWORKS.values())}, or another")
    plans = _read(args.plans)
    output = args.output or args.plans.with_name(f"{plans_name(args.network)}.json")
    if output.suffix != ".json":
        raise CommandError(f"{printable(output)} does not end in .json")
    check_output(output, [args.plans])
    if output.exists() and not args.force:
        raise CommandError(f"{printable(output)} exists: give --force to overwrite it")
    try:
        new = rewrite_plans(plans, args.network, output.stem, args.configurations)
    except ValueError as error:
        raise CommandError(f"{printable(args.plans)}: {error}") from error
    write_json(output, new)
    print(f"{printable(output)}: {args.network} for {printable(', '.join(new['configurations']))}")
    if left_out := [name for name in plans["configurations"] if name not in new["configurations"]]:
        print(f"left out: {printable(', '.join(left_out))}")
    first = next(iter(new["configurations"]))
    patch = new["configurations"][first]["patch_size"]
    trainer = "" if network_traits(args.network, len(patch)).deep_supervision else " -tr nnUNetTrainerNoDeepSupervision"
    print(printable(f"train: nnUNetv2_train DATASET {first} FOLD -p {output.stem}{trainer}"))
    return 0
