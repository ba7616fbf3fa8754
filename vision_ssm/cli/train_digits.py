"""`vision-ssm train-digits`: train a small backbone on real scans, on a CPU, in about a minute."""

import argparse
import time
from pathlib import Path

from ..command_line import CommandError, check_output, location, make_folder, number, whole
from ..demo.digits import Recipe, Run, evaluate, load_digits, train
from ..files import write_json
from ..models import model_names
from .console import close_matches, print_table, rich_console

NAME = "train-digits"
HELP = "train a small backbone on scikit-learn's handwritten digits and test it on a held-out third"

_RESULTS = ("checkpoint.pt", "result.json", "report.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    recipe = Recipe()
    parser.add_argument("--model", default=recipe.model, metavar="NAME", help=f"default: {recipe.model}")
    parser.add_argument(
        "--epochs", type=whole(1, 10**6), default=recipe.epochs, metavar="N", help=f"default: {recipe.epochs}"
    )
    parser.add_argument("--batch-size", type=whole(), default=recipe.batch_size, metavar="N")
    parser.add_argument(
        "--lr", type=number(0, 1e6), default=recipe.lr, help=f"peak learning rate (default: {recipe.lr})"
    )
    parser.add_argument("--seed", type=whole(0), default=recipe.seed, help="same seed, same result (default: 0)")
    parser.add_argument(
        "-o", "--output", type=location, default=Path("runs/digits"), metavar="DIR", help="default: runs/digits"
    )
    parser.add_argument("--restart", action="store_true", help="ignore a checkpoint in DIR instead of resuming it")
    parser.epilog = "example: vision-ssm train-digits --model vim_test -o runs/vim"


def run(args: argparse.Namespace) -> int:
    """Train or resume, test, write result.json and report.png."""
    console = rich_console()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    names = model_names()
    if args.model not in names:
        raise CommandError(f"unknown model {args.model!r}: {close_matches(args.model, names)}")
    recipe = Recipe(args.model, args.epochs, args.batch_size, args.lr, seed=args.seed)
    make_folder(args.output)
    for name in _RESULTS:
        check_output(args.output / name)
    data = load_digits()
    job = Run(recipe, data, args.output)
    if not args.restart and job.resume():
        console.print(f"resumed after epoch {job.epoch} of {recipe.epochs}")
    weights = sum(p.numel() for p in job.model.parameters())
    console.print(
        f"{recipe.model}, {weights / 1e6:.2f} M parameters, trained on {len(data.train_labels)} scans, "
        f"tested on {len(data.test_labels)}"
    )
    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("epochs", total=recipe.epochs, completed=job.epoch)
        for result in train(job):
            note = f"loss {result['loss']:.3f}  test accuracy {100 * result['accuracy']:.2f} %"
            progress.update(task, advance=1, description=note)
            if not console.is_terminal:
                console.print(f"epoch {job.epoch}: {note}")
    seconds = time.perf_counter() - start
    return _report(console, args.output, job, seconds)


def _report(console, folder: Path, job: Run, seconds: float) -> int:
    from ..demo.report import draw

    predictions = evaluate(job.model, job.data.test_images)
    correct = int((predictions == job.data.test_labels).sum())
    total = len(predictions)
    picture = draw(job, predictions, folder / "report.png")
    result = dict(
        model=job.recipe.model,
        accuracy=correct / total,
        correct=correct,
        images=total,
        seconds=round(seconds, 1),
        history=job.history,
    )
    write_json(folder / "result.json", result)
    rows = [
        ["test accuracy", f"{100 * correct / total:.2f} % ({correct} of {total})"],
        ["training time", f"{seconds:.0f} s"],
        ["picture", str(picture)],
        ["checkpoint", str(job.checkpoint)],
    ]
    print_table(console, rows)
    return 0
