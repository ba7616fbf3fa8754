"""The command line of `tools/prepare_medical.py`: check one of several sets, then write its data list."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..command_line import location, printable, run_command
from ..files import write_json
from . import acdc, amos, btcv, isic
from .arguments import check_arguments, new_parser, progress
from .layout import LayoutError, Progress, Report
from .synapse import check_synapse
from .volume_sets import CaseFiles, data_list

__all__ = ["SETS", "MedicalSet", "main"]


@dataclass(frozen=True)
class MedicalSet:
    """A set that a config trains on.

    Attributes:
        check: of root, threads and progress; returns a report and the cases of each split.
        labels: names of the ids in the files, the background first.
        root: folder that is checked if none is named, the config's.
        file: the data list that the config reads.
        home: where to get the set.
        modality: of the images.
        size: "3D" for volumes, "2D" for pictures.
    """

    check: Callable[[Path, int | None, Progress], tuple[Report, dict[str, list[CaseFiles]]]]
    labels: Sequence[str]
    root: str
    file: str
    home: str
    modality: str
    size: str = "3D"


def _isic(year: isic.Isic, number: int) -> MedicalSet:
    check = partial(isic.check_isic, expected=year)
    home = f"https://challenge.isic-archive.com/data/#20{number}"
    return MedicalSet(check, isic.LABELS, f"data/isic{number}", f"isic{number}.json", home, "dermoscopy", "2D")


SETS = {
    "acdc": MedicalSet(
        acdc.check_acdc, acdc.LABELS, "data/acdc", "acdc.json",
        "https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html", "MR",
    ),
    "amos_mr": MedicalSet(
        amos.check_amos_mr, amos.LABELS, "data/amos22", "amos_mr.json", "https://zenodo.org/records/7262581", "MR"
    ),
    "synapse": MedicalSet(
        check_synapse, btcv.LABELS, "data/btcv", "synapse8_18-12.json",
        "https://www.synapse.org/Synapse:syn3193805 (RawData.zip, after registration)", "CT",
    ),
    "isic17": _isic(isic.ISIC17, 17),
    "isic18": _isic(isic.ISIC18, 18),
}  # fmt: skip


def _parser(title: str) -> argparse.ArgumentParser:
    parser = new_parser(title)
    parser.add_argument("set", choices=SETS, help="which set")
    roots = ", ".join(dict.fromkeys(known.root for known in SETS.values()))
    parser.add_argument("root", nargs="?", type=location, help=f"the set's folder ({roots})")
    parser.add_argument("--output", type=location, metavar="FILE", help="data list to write (by default in the folder)")
    return parser


def _prepare(name: str, root: Path, args: argparse.Namespace) -> int:
    known = SETS[name]
    report, splits = known.check(root, args.jobs, progress("checked", "cases", every=50))
    if args.json:
        write_json(args.json, report.as_dict())
    print("\n".join(map(printable, report.lines())))
    if not report.ok:
        print(f"  no data list is written; the set is at {known.home}")
        return 1
    content = data_list(
        known.labels, splits, name, folder=args.output.parent, root=root, modality=known.modality, size=known.size
    )
    write_json(args.output, content)
    print(f"wrote {printable(args.output)}: " + ", ".join(f"{len(content[split])} {split}" for split in splits))
    return 0


def main(title: str, argv: Sequence[str] | None = None) -> int:
    """Check a set and write its data list.

    Args:
        title: the help's first line.
        argv: arguments, those of the process if None.

    Returns:
        0 if the set is complete and its list written, 1 if something is missing or wrong, 2 for bad arguments.
    """
    parser = _parser(title)
    args = parser.parse_args(argv)
    root = args.root or Path(SETS[args.set].root)
    if root.is_dir():
        args.output = args.output or root / SETS[args.set].file
    check_arguments(parser, args, root)

    def command() -> int:
        try:
            return _prepare(args.set, root, args)
        except (LayoutError, OSError):
            print(f"the set is at {SETS[args.set].home}", file=sys.stderr)
            raise

    return run_command("", command)
