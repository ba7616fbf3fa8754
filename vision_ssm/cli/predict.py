"""`vision-ssm predict`: the most probable classes of images."""

import argparse
from pathlib import Path

import torch
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from ..command_line import CommandError, check_input, location, whole
from ..pictures import read_image
from .console import print_json, print_table, rich_console
from .image_folder import class_names
from .inputs import add_model_arguments, add_weight_arguments, build, check_weights

NAME = "predict"
HELP = "classify images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("images", nargs="+", type=location, metavar="IMAGE", help="image file")
    add_model_arguments(parser)
    add_weight_arguments(parser)
    parser.add_argument("--top-k", type=whole(), default=5, metavar="K", help="classes an image (default: 5)")
    parser.add_argument(
        "--labels",
        "--class-map",
        type=location,
        metavar="FILE",
        help="names of the classes: one a line, or JSON of indices by name (default: ImageNet's for 1000 classes)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "example: vision-ssm predict cat.jpg --model vmamba_tiny_s1l8 --pretrained"


def _labels(path: Path | None, num_classes: int) -> list[str] | None:
    """Names of the classes, where they are known."""
    if path is None:
        return ImageNetInfo().label_descriptions() if num_classes == 1000 else None
    check_input(path, "labels")
    names = class_names(path, num_classes)
    if len(names) != num_classes:
        raise CommandError(f"{path} has {len(names)} labels, the model {num_classes} classes")
    return names


def run(args: argparse.Namespace) -> int:
    """Print the predictions image by image, or all of them as JSON."""
    console = None if args.json else rich_console()
    for image in args.images:
        check_input(image, "image")
    check_weights(args)
    labels = _labels(args.labels, args.num_classes)
    model = build(args)
    transform = create_transform(**resolve_model_data_config(model))
    results = []
    for path in args.images:
        with torch.inference_mode():
            probabilities = model(transform(read_image(path)).unsqueeze(0)).softmax(-1)[0]
        top = probabilities.topk(min(args.top_k, args.num_classes))
        predictions = [
            {"index": index, "label": labels and labels[index], "probability": probability}
            for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        results.append({"image": str(path), "predictions": predictions})
        if console:
            rows = [[str(p["index"]), p["label"] or "-", f"{p['probability']:.2%}"] for p in predictions]
            print_table(console, rows, ("Class", "Label", "Probability"), title=str(path))
    if args.json:
        print_json(results)
    return 0
