"""`vision-ssm train CONFIG`: segmentation and detection by config."""

import argparse

from ..command_line import CommandError, check_weights_file, nonempty
from .by_config import add_shared_arguments

NAME = "train"
HELP = "train by a config: segmentation, detection, medical volumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", type=nonempty, metavar="CONFIG", nargs="?", help="file, or packaged name")
    parser.add_argument("--list", action="store_true", help="show the packaged configs")
    parser.add_argument(
        "--resume",
        type=nonempty,
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="continue from the latest checkpoint of the work folder, or from this one",
    )
    parser.add_argument(
        "--amp", nargs="?", const="bf16", choices=("bf16", "fp16"), help="mixed precision (default: bf16)"
    )
    parser.add_argument(
        "--keep-head",
        action="store_true",
        help="start from the weights of `load_from` without their heads, which are for other classes",
    )
    add_shared_arguments(parser)
    parser.epilog = (
        "examples:\n"
        "  vision-ssm train segmentation/vmamba_tiny_upernet_ade20k --resume\n"
        "  torchrun --standalone --nproc_per_node=4 -m vision_ssm train CONFIG --launcher pytorch"
    )


def run(args: argparse.Namespace) -> int:
    """Train."""
    from .. import engine

    if args.list:
        print(*engine.packaged_configs(), sep="\n")
        return 0
    if args.config is None:
        raise CommandError("expected a CONFIG (--list shows the packaged ones)")
    if isinstance(args.resume, str):
        check_weights_file(args.resume)
    engine.train(args.config, args.work_dir, args.resume, args.amp, args.launcher, args.cfg_options, args.keep_head)
    return 0
