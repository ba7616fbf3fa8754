"""`vision-ssm test CONFIG CHECKPOINT`: metrics and predictions of a trained model."""

import argparse

from ..command_line import check_weights_file, location, nonempty
from .by_config import add_shared_arguments

NAME = "test"
HELP = "evaluate a checkpoint by a config: segmentation, detection, medical volumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", type=nonempty, metavar="CONFIG", help="file, or packaged name")
    parser.add_argument(
        "checkpoint", type=nonempty, metavar="CHECKPOINT", help="trained with that config, or published for it"
    )
    parser.add_argument("--out", type=location, metavar="DIR", help="write predictions and metrics.json")
    parser.add_argument("--show-dir", type=location, metavar="DIR", help="write images with the predictions drawn")
    parser.add_argument("--tta", action="store_true", help="multi-scale and flipped, as the config says")
    add_shared_arguments(parser)
    parser.epilog = "example: vision-ssm test segmentation/vmamba_tiny_upernet_ade20k best_mIoU_iter_160000.pth --tta"


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    from .. import engine

    check_weights_file(args.checkpoint)
    engine.test(
        args.config, args.checkpoint, args.work_dir, args.out, args.show_dir, args.tta, args.launcher, args.cfg_options
    )
    return 0
