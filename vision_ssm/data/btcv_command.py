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

_HOME = "https://www.synapse.org/Synapse:syn3193805"


def class_names(names: Sequence[str]) -> list[str]:
    """Names of the classes: given one by one, or in a JSON file as a list or as {"0": "background", ...}.

    Raises:
        InputError: the file cannot be read or holds neither, the ids are not 0, 1, 2 and on, or there are fewer than
            two names.
    """
    found: object = list(names)
    if len(names) == 1 and names[0].endswith(".json"):
        try:
            found = json.loads(check_input(Path(names[0]), "names of classes").read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{names[0]} is no JSON: {error}") from error
        if isinstance(found, dict):
            ids = [str(i) for i in range(len(found))]
            if sorted(found) != sorted(ids):
                raise InputError(f"{names[0]} has the ids {', '.join(sorted(found))}: expected 0 to {len(found) - 1}")
            found = [found[i] for i in ids]
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(name, str) and name for name in found):
        raise InputError("expected the names of two classes or more, the background first")
    return found


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
    own.add_argument("--labels", nargs="+", metavar="NAME", help="names of the classes from 0 on, or a JSON file")
    return parser


def _prepare(args: argparse.Namespace, labels: Sequence[str]) -> int:
    own = args.validation is not None
    report, cases = check_btcv(
        args.root, args.jobs, None if own else Btcv(), labels, progress=progress("checked", "cases")
    )
    if args.json:
        write_json(args.json, report.as_dict())
    print("\n".join(map(printable, report.lines())))
    if not report.ok:
        print(f"  no data list is written; BTCV is at {_HOME}" if not own else "  no data list is written")
        return 1
    if own:
        chosen = split_cases(list(cases.labelled), args.validation, args.seed)
    else:
        chosen = tuple([f"{n:04d}" for n in numbers] for numbers in (TRAINING, VALIDATION))
    output = args.output or args.root / "dataset_0.json"
    name = args.root.resolve().name if own else "BTCV"
    content = data_list(labels, splits(cases, *chosen), name, folder=output.parent, root=args.root)
    write_json(output, content)
    numbers = ", ".join(f"{len(content[split])} {split}" for split in ("training", "validation", "test"))
    print(f"wrote {printable(output)}: {numbers}")
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
    check_arguments(parser, args, args.root, *(args.labels or ()))
    if args.labels and args.validation is None:
        parser.error("--labels is for a set of one's own: give --validation, too")
    status = run_command("", lambda: _prepare(args, class_names(args.labels) if args.labels else list(LABELS)))
    if status == 2 and not args.root.exists():
        print(f"  BTCV's RawData.zip is at {_HOME}, after registration", file=sys.stderr)
    return status
