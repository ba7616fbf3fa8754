"""What the commands take: models with their weights, and images."""

import argparse

import timm
import torch.nn as nn
from timm.models import get_pretrained_cfg

from .. import medical
from ..checkpoints import load_checkpoint
from ..command_line import CommandError, check_weights_file, nonempty, whole
from ..models import model_names
from .console import close_matches, warn

__all__ = [
    "add_model_arguments",
    "add_weight_arguments",
    "build",
    "check_model_name",
    "check_weights",
    "published",
]


def check_model_name(name: str, names: list[str] | None = None) -> str:
    """`name`, if it is one of `names`: by default of those that classify images."""
    names = model_names() + medical.model_names("medmamba_*") if names is None else names
    if name in medical.model_names() and name not in names:
        raise CommandError(f"{name} is for medical images: `vision-ssm train` and `test` take a config of it")
    if name not in names:
        raise CommandError(f"unknown model {name!r}: {close_matches(name, names)}")
    return name


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and its number of classes."""
    parser.add_argument("--model", required=True, metavar="NAME", help="registered name, see `vision-ssm list`")
    parser.add_argument(
        "--num-classes", type=whole(1, 10**6), default=1000, metavar="N", help="classes of the model (default: 1000)"
    )


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the weights come from: a file, the published ones, or chance, which must be asked for."""
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint", type=nonempty, metavar="FILE", help="weights: an official checkpoint or a converted one"
    )
    weights.add_argument("--pretrained", action="store_true", help="download the published weights")
    weights.add_argument(
        "--random-weights", action="store_true", help="none: to try the command (the *_test models need no flag)"
    )


def published(name: str) -> str:
    """Address of a model's published weights, "" where there are none."""
    cfg = get_pretrained_cfg(name)
    return (cfg and cfg.url) or ""


def check_weights(args: argparse.Namespace) -> None:
    """Refuse a model that is asked for weights that nobody published, or for none without saying so.

    Raises:
        CommandError: no such model, or no weights.
    """
    name = check_model_name(args.model)
    if args.pretrained and not published(name):
        raise CommandError(f"no published weights are known for {name}")
    if args.checkpoint:
        check_weights_file(args.checkpoint)
    if args.checkpoint or args.pretrained:
        return
    if not (args.random_weights or name.endswith("_test")):
        raise CommandError(
            f"no weights for {name}: expected --checkpoint FILE or --pretrained (--random-weights tries the command)"
        )
    warn("neither --checkpoint nor --pretrained is given: the weights are random")


def build(args: argparse.Namespace, img_size: int | None = None) -> nn.Module:
    """The model that the arguments of `add_model_arguments` and `add_weight_arguments` describe, in evaluation mode.

    Its weights were looked at by `check_weights`.
    """
    name = args.model
    try:
        model = timm.create_model(name, pretrained=args.pretrained, num_classes=args.num_classes)
    except (OSError, ValueError) as error:
        raise CommandError(f"no weights from {published(name)}: {error}") from error
    # Between the two ways to load, so that a position table is resized once, straight to this size.
    if img_size and hasattr(model, "set_input_size"):
        try:
            model.set_input_size(img_size)
        except ValueError as error:
            raise CommandError(str(error)) from error
    if args.pretrained and model.num_classes != model.pretrained_cfg["num_classes"]:
        warn(f"the published weights are for {model.pretrained_cfg['num_classes']} classes: the classifier is random")
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint)
    return model.eval()
