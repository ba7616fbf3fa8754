"""The command line of `tools/prepare_btcv.py`: check the volumes, then write their data list."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..command_line import check_input, location, number, printable, run_command, whole
from ..errors import InputError
from ..files import write_json
from .arguments import check_arguments, new_parser, progress
from .btcv import LABELS, TRAINING, VALIDATION, Btcv, check_btcv, splits
from .volume_sets import data_list, split_cases

__all__ = ["class_names", "main"]

_OWN = "dataset.json"  # nnU-Net's
_HOME = "https://www.synapse.org/Synapse:syn3193805"


def class_names(names: Sequence[str]) -> list[str]:
    """Names of the classes: given one by one, or in a JSON file (see `_stated`).

    Raises:
        InputError: the file cannot be read or holds no names, the ids are not 0, 1, 2 and on, or there are fewer than
            two names.
    """
    return _stated(names)[0]


def _stated(names: Sequence[str]) -> tuple[list[str], int | None]:
    """Names of the classes, and the id that is ignored, if there is one.

    A JSON file holds a list, or {"0": "background", ...}; or is nnU-Net's or the decathlon's `dataset.json`, whose
    `labels` say {"background": 0, ..., "ignore": 3} or {"0": "background", ...}.
    """
    found, ignored = list(names), None
    if len(names) == 1 and names[0].endswith(".json"):
        found = _content(Path(names[0]))
        if isinstance(found, dict) and isinstance(found.get("labels"), dict):
            found = found["labels"]
        if isinstance(found, dict) and found and all(isinstance(i, int) for i in found.values()):  # nnU-Net's
            ignored = found.pop("ignore", None)
            found = {str(i): name for name, i in found.items()}
        if isinstance(found, dict):
            ids = [str(i) for i in range(len(found))]
            if sorted(found) != sorted(ids):
                raise InputError(f"{names[0]} has the ids {', '.join(sorted(found))}: expected 0 to {len(found) - 1}")
            found = [found[i] for i in ids]
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(name, str) and name for name in found):
        raise InputError("expected the names of two classes or more, the background first")
    return found, ignored


def _content(file: Path) -> object:
    try:
        return json.loads(check_input(file, "names of classes").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}") from error


def _own_names(root: Path) -> list[str] | None:
    """nnU-Net's file in a set's folder, if it says what the classes are."""
    file = root / _OWN
    content = _content(file) if file.is_file() else None
    return [str(file)] if isinstance(content, dict) and isinstance(content.get("labels"), dict) else None


def _modality(root: Path, channels: int) -> str | list[str]:
    """What the channels are: nnU-Net's `channel_names`, or their numbers."""
    file = root / _OWN
    content = _content(file) if file.is_file() else None
    stated = content.get("channel_names") if isinstance(content, dict) else None
    if isinstance(stated, dict) and all(str(i) in stated for i in range(channels)):
        return [str(stated[str(i)]) for i in range(channels)]
    return "CT" if channels == 1 else [f"channel {i}" for i in range(channels)]


def _parser(title: str, default: str) -> argparse.ArgumentParser:
    parser = new_parser(title, default)
    parser.add_argument(
        "--output", type=location, metavar="FILE", help="data list to write (dataset_0.json in the folder)"
    )
    own = parser.add_argument_group("a set of one's own in the same layout")
    own.add_argument(
        "--validation", type=number(0, 1e6), metavar="N", help="number of validation cases, or a fraction below 1"
    )
    own.add_argument("--seed", type=whole(0), default=0, help="of the choice of validation cases (0)")
    own.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME",
        help="names of the classes from 0 on, or a JSON file (nnU-Net's dataset.json; by default that of the folder)",
    )
    return parser


def _prepare(args: argparse.Namespace, labels: Sequence[str], ignored: int | None) -> int:
    own = args.validation is not None
    report, cases = check_btcv(
        args.root, args.jobs, None if own else Btcv(), labels, progress("checked", "cases"), ignored
    )
    if args.json:
        write_json(args.json, report.as_dict())
    print("\n".join(map(printable, report.lines())))
    if not report.ok:
        print(f"  no data list is written; BTCV is at {_HOME}" if not own else "  no data list is written")
        return 1
    from .volume_files import read_channels

    if own:
        chosen = split_cases(list(cases.labelled), args.validation, args.seed)
    else:
        chosen = tuple([f"{n:04d}" for n in numbers] for numbers in (TRAINING, VALIDATION))
    name = args.root.resolve().name if own else "BTCV"
    first = next(iter(cases.labelled.values()))
    modality = _modality(args.root, sum(read_channels(cases.folder / name) for name in first.images))
    content = data_list(
        labels, splits(cases, *chosen), name, folder=args.output.parent, root=args.root, modality=modality
    )
    write_json(args.output, content)
    numbers = ", ".join(f"{len(content[split])} {split}" for split in ("training", "validation", "test"))
    print(f"wrote {printable(args.output)}: {numbers}")
    if ignored is not None:
        print(f"  the config's data sets need ignore_label={ignored}")
    return 0


def main(title: str, default: str, argv: Sequence[str] | None = None) -> int:
    """Check BTCV, or a set of one's own, and write its data list.

    Args:
        title: the help's first line.
        default: folder that is checked if none is named.
        argv: arguments, those of the process if None.

    Returns:
        0 if the set is complete and its list written, 1 if something is missing or wrong, 2 for bad arguments.
    """
    parser = _parser(title, default)
    args = parser.parse_args(argv)
    if args.root.is_dir():
        args.output = args.output or args.root / "dataset_0.json"
    check_arguments(parser, args, args.root, args.root / _OWN, *(args.labels or ()))
    if args.labels and args.validation is None:
        parser.error("--labels is for a set of one's own: give --validation, too")
    status = run_command("", lambda: _run(args))
    if status == 2 and not args.root.exists():
        print(f"  BTCV's RawData.zip is at {_HOME}, after registration", file=sys.stderr)
    return status


def _run(args: argparse.Namespace) -> int:
    named = args.labels or (_own_names(args.root) if args.validation is not None else None)
    labels, ignored = _stated(named) if named else (list(LABELS), None)
    return _prepare(args, labels, ignored)
