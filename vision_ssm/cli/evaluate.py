"""`vision-ssm evaluate`: accuracy on a folder of images."""

import argparse
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.nn as nn
from timm.data import ImageNetInfo, create_loader, resolve_model_data_config

from ..command_line import CommandError, check_input, check_output, location, nonempty, whole
from ..files import json_text
from ..pictures import read_image
from .console import print_table, rich_console, warn, write
from .image_folder import ImageFolder, class_names
from .inputs import add_model_arguments, add_weight_arguments, build, check_weights, published

NAME = "evaluate"
HELP = "measure the accuracy on a folder with one sub-folder of images a class"

_VALIDATION = ("val", "validation", "valid")
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--data", type=location, required=True, metavar="DIR", help="data set in ImageNet's folder layout"
    )
    add_model_arguments(parser)
    add_weight_arguments(parser)
    parser.add_argument(
        "--split", type=nonempty, help="sub-folder of DIR (default: val or the like, or DIR itself without splits)"
    )
    parser.add_argument(
        "--class-map",
        type=location,
        metavar="FILE",
        help="folders in the order of the model's classes: one a line, or JSON of indices by folder "
        "(default: the folders in natural order; ImageNet's synsets keep their numbers)",
    )
    parser.add_argument("--batch-size", type=whole(), default=64, metavar="N", help="default: 64")
    parser.add_argument("--workers", type=whole(0, 1024), default=2, metavar="N", help="loading processes (default: 2)")
    parser.add_argument("--img-size", type=whole(1, 8192), metavar="N", help="pixels a side (default: the model's)")
    parser.add_argument("--amp", choices=list(_AMP), help="mixed precision (default: none)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--limit", type=whole(), metavar="N", help="only N images, spread evenly over the data set")
    parser.add_argument("-o", "--output", type=location, metavar="FILE", help="write the result as JSON")
    parser.epilog = "example: vision-ssm evaluate --data imagenet --model vmamba_tiny_s1l8 --pretrained -o result.json"


def _folder(data: Path, split: str | None) -> Path:
    if not data.is_dir():
        raise CommandError(f"no folder {data}")
    if split:
        inside = not Path(split).is_absolute() and ".." not in Path(split).parts
        if not inside or not (data / split).is_dir():
            raise CommandError(f"no split {split!r} in {data}")
        return data / split
    found = next((data / name for name in _VALIDATION if (data / name).is_dir()), data)
    if found == data and (data / "train").is_dir():
        raise CommandError(f"{data} has a folder train, but none of {', '.join(_VALIDATION)}: give --split")
    return found


def _dataset(folder: Path, num_classes: int, class_map: Path | None, limit: int | None) -> ImageFolder:
    names = class_names(class_map, num_classes) if class_map else None
    if num_classes == 1000 and not names:  # any subset of ImageNet's classes keeps their numbers
        synsets = ImageNetInfo().label_names()
        folders = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
        names = synsets if folders <= set(synsets) else None
    dataset = ImageFolder(folder, names)
    if not names and len(dataset.classes) != num_classes:
        raise CommandError(
            f"{folder} has folders of {len(dataset.classes)} classes, the model {num_classes}: give --num-classes, "
            "or --class-map for some of the classes"
        )
    for line in dataset.notes:
        warn(line)
    if limit:
        dataset.keep(limit)
    return dataset


def _data_config(model: nn.Module, img_size: int | None) -> dict:
    config = resolve_model_data_config(model)
    if img_size:
        smallest = model.feature_info[-1]["reduction"]
        if img_size < smallest:
            raise CommandError(f"argument --img-size: expected at least {smallest} for this model, got {img_size}")
        config["input_size"] = (config["input_size"][0], img_size, img_size)
    return config


def _loader(dataset: ImageFolder, config: dict, args: argparse.Namespace):
    return create_loader(
        dataset,
        batch_size=args.batch_size,
        num_workers=min(args.workers, math.ceil(len(dataset) / args.batch_size)),  # others would find nothing to do
        use_prefetcher=False,
        pin_memory=args.device == "cuda",
        persistent_workers=False,
        **config,
    )


def _ranks(model: nn.Module, loader, dataset: ImageFolder, device: str, amp: str | None) -> Iterator[torch.Tensor]:
    """For each batch whether each of an image's most probable classes, in order, is its own: (images, 5 or fewer)."""
    for images, targets in loader:
        if (unreadable := targets[targets < 0]).numel():
            path = dataset.files[-1 - int(unreadable[0])][0]
            read_image(path)  # says why
            raise CommandError(f"{path} could not be read, and now can: it changes while it is read")
        with torch.inference_mode(), torch.autocast(device, _AMP.get(amp), enabled=amp is not None):
            logits = model(images.to(device, non_blocking=True))
        top = logits.topk(min(5, logits.shape[1])).indices.cpu()
        yield top == targets[:, None]


def _measure(model: nn.Module, loader, dataset: ImageFolder, args: argparse.Namespace) -> dict:
    from rich import progress

    console = rich_console(stderr=True)
    columns = (*progress.Progress.get_default_columns(), progress.MofNCompleteColumn())
    hits = []
    start = time.perf_counter()
    try:
        with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(args.model, total=len(dataset))
            for batch in _ranks(model, loader, dataset, args.device, args.amp):
                hits.append(batch)
                bar.advance(task, len(batch))
    except torch.OutOfMemoryError as error:
        raise CommandError("the GPU has not enough memory: give a smaller --batch-size") from error
    seconds = time.perf_counter() - start
    hit = torch.cat(hits).double()
    return {
        "top1": 100 * hit[:, 0].mean().item(),
        "top5": 100 * hit.sum(1).mean().item(),
        "images": len(hit),
        "seconds": seconds,
        "images_per_second": len(hit) / seconds,
    }


def _order(classes: dict[str, int]) -> str:
    """Folders by the class that each is taken for."""
    shown = [f"{index} {name}" for name, index in sorted(classes.items(), key=lambda item: item[1])]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]])


def _versions() -> dict[str, str]:
    from .. import __version__

    return {
        "vision_ssm": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def _check(args: argparse.Namespace) -> None:
    """Find what is wrong before the images are counted and the weights are loaded."""
    check_weights(args)
    if args.class_map:
        check_input(args.class_map, "class map")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("no CUDA device is available")
    if args.output:
        check_output(args.output, [args.data, args.checkpoint, args.class_map])


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    console = rich_console()
    _check(args)
    folder = _folder(args.data, args.split)
    dataset = _dataset(folder, args.num_classes, args.class_map, args.limit)
    model = build(args, args.img_size)
    config = _data_config(model, args.img_size)
    measured = _measure(model.to(args.device), _loader(dataset, config, args), dataset, args)
    size = config["input_size"][1:]
    result = {
        "model": args.model,
        "checkpoint": published(args.model) if args.pretrained else args.checkpoint,
        "data": str(folder),
        **measured,
        "classes": dataset.classes,
        "img_size": list(size),
        "amp": args.amp,
        "device": args.device,
        "versions": _versions(),
    }
    rows = [
        ["Top-1", f"{result['top1']:.3f} %"],
        [f"Top-{min(5, args.num_classes)}", f"{result['top5']:.3f} %"],
        ["Images", str(result["images"])],
        ["Classes", _order(dataset.classes)],
        ["Image size", "x".join(map(str, size))],
        ["Time", f"{result['seconds']:.1f} s"],
        ["Throughput", f"{result['images_per_second']:.1f} images/s"],
    ]
    print_table(console, rows, title=f"{args.model} on {folder}")
    if args.output:
        write(args.output, (json_text(result) + "\n").encode())
    return 0
