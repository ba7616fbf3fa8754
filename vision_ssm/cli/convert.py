"""`vision-ssm convert`: an official checkpoint as a safetensors file of this package."""

import argparse

import timm

from ..checkpoints import load_checkpoint, safetensors_bytes
from ..command_line import CommandError, check_output, check_weights_file, location, nonempty, printable
from ..registry import model_names
from .console import write
from .inputs import add_model_arguments, check_model_name

NAME = "convert"
HELP = "convert an official checkpoint to safetensors in this package's names"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("checkpoint", type=nonempty, metavar="CHECKPOINT", help="file or address of the checkpoint")
    add_model_arguments(parser)
    parser.add_argument("-o", "--output", type=location, required=True, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    parser.epilog = "example: vision-ssm convert vim_t.pth --model vim_tiny_patch16_224 -o vim_t.safetensors"


def run(args: argparse.Namespace) -> int:
    """Load strictly, then write."""
    name = check_model_name(args.model, model_names())
    if args.output.suffix != ".safetensors":
        raise CommandError(f"{printable(args.output)} does not end in .safetensors")
    check_weights_file(args.checkpoint)
    check_output(args.output, [args.checkpoint])
    if args.output.exists() and not args.force:
        raise CommandError(f"{printable(args.output)} exists: give --force to overwrite it")
    model = timm.create_model(name, num_classes=args.num_classes)
    load_checkpoint(model, args.checkpoint)
    tensors = model.state_dict()
    write(args.output, safetensors_bytes(tensors, {"model": name}))
    print(f"{printable(args.output)}: {len(tensors)} tensors for {name}")
    return 0
