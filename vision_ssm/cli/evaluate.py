"""`vision-ssm evaluate`: accuracy on a folder of images."""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.nn as nn
from PIL import Image
from timm.data import ImageDataset, ImageNetInfo, create_loader, resolve_model_data_config

from ..command_line import CommandError, check_output, location, nonempty, whole
from .console import print_table, rich_console, write
from .inputs import UNREADABLE, add_model_arguments, add_weight_arguments, build, check_weights, published

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
    parser.add_argument("--batch-size", type=whole(), default=64, metavar="N", help="default: 64")
    parser.add_argument("--workers", type=whole(0, 1024), default=2, metavar="N", help="loading processes (default: 2)")
    parser.add_argument("--img-size", type=whole(1, 8192), metavar="N", help="pixels a side (default: the model's)")
    parser.add_argument("--amp", choices=list(_AMP), help="mixed precision (default: none)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--limit", type=whole(), metavar="N", help="only N images, spread evenly over the data set")
    parser.add_argument("-o", "--output", type=location, metavar="FILE", help="write the result as JSON")
    parser.epilog = "example: vision-ssm evaluate --data imagenet --model vmamba_tiny_s1l8 --pretrained -o result.json"


class _Images(ImageDataset):
    """timm's data set, but an unreadable image is not replaced by its neighbour: its target is -1 - index."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file, target = self.reader[index]
        try:
            with file, Image.open(file) as opened:
                image = opened.convert("RGB")
        except UNREADABLE:
            image, target = Image.new("RGB", (1, 1)), -1 - index
        return self.transform(image), target


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


def _dataset(folder: Path, num_classes: int, limit: int | None) -> _Images:
    class_map = None
    if num_classes == 1000:  # any subset of ImageNet's classes keeps their numbers
        synsets = {synset: i for i, synset in enumerate(ImageNetInfo().label_names())}
        folders = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
        class_map = synsets if folders <= synsets.keys() else None
    try:
        dataset = _Images(str(folder), class_map=class_map)
    except RuntimeError as error:  # timm found no images
        raise CommandError(f"no images in sub-folders of {folder}") from error
    classes = dataset.reader.class_to_idx
    if "" in classes:
        raise CommandError(f"{folder} has images outside of sub-folders: expected one sub-folder a class")
    if len(classes) != num_classes:
        raise CommandError(
            f"{folder} has images of {len(classes)} classes, the model {num_classes}: give --num-classes"
        )
    if limit:
        samples = dataset.reader.samples
        limit = min(limit, len(samples))
        dataset.reader.samples = [samples[i * len(samples) // limit] for i in range(limit)]
    return dataset


def _data_config(model: nn.Module, img_size: int | None) -> dict:
    config = resolve_model_data_config(model)
    if img_size:
        smallest = model.feature_info[-1]["reduction"]
        if img_size < smallest:
            raise CommandError(f"argument --img-size: expected at least {smallest} for this model, got {img_size}")
        config["input_size"] = (config["input_size"][0], img_size, img_size)
    return config


def _loader(dataset: _Images, config: dict, args: argparse.Namespace):
    return create_loader(
        dataset,
        batch_size=args.batch_size,
        num_workers=min(args.workers, math.ceil(len(dataset) / args.batch_size)),  # others would find nothing to do
        use_prefetcher=False,
        pin_memory=args.device == "cuda",
        persistent_workers=False,
        **config,
    )


def _ranks(model: nn.Module, loader, dataset: _Images, device: str, amp: str | None) -> Iterator[torch.Tensor]:
    """For each batch whether each of an image's most probable classes, in order, is its own: (images, 5 or fewer)."""
    for images, targets in loader:
        if (unreadable := targets[targets < 0]).numel():
            path = dataset.filename(-1 - int(unreadable[0]), absolute=True)
            raise CommandError(f"{path} cannot be read as an image")
        with torch.inference_mode(), torch.autocast(device, _AMP.get(amp), enabled=amp is not None):
            logits = model(images.to(device, non_blocking=True))
        top = logits.topk(min(5, logits.shape[1])).indices.cpu()
        yield top == targets[:, None]


def _measure(model: nn.Module, loader, dataset: _Images, args: argparse.Namespace) -> dict:
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
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("no CUDA device is available")
    if args.output:
        check_output(args.output, [args.data, args.checkpoint])


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    console = rich_console()
    _check(args)
    folder = _folder(args.data, args.split)
    dataset = _dataset(folder, args.num_classes, args.limit)
    model = build(args, args.img_size)
    config = _data_config(model, args.img_size)
    measured = _measure(model.to(args.device), _loader(dataset, config, args), dataset, args)
    size = config["input_size"][1:]
    result = {
        "model": args.model,
        "checkpoint": published(args.model) if args.pretrained else args.checkpoint,
        "data": str(folder),
        **measured,
        "img_size": list(size),
        "amp": args.amp,
        "device": args.device,
        "versions": _versions(),
    }
    rows = [
        ["Top-1", f"{result['top1']:.3f} %"],
        [f"Top-{min(5, args.num_classes)}", f"{result['top5']:.3f} %"],
        ["Images", str(result["images"])],
        ["Image size", "x".join(map(str, size))],
        ["Time", f"{result['seconds']:.1f} s"],
        ["Throughput", f"{result['images_per_second']:.1f} images/s"],
    ]
    print_table(console, rows, title=f"{args.model} on {folder}")
    if args.output:
        write(args.output, (json.dumps(result, indent=2) + "\n").encode())
    return 0
