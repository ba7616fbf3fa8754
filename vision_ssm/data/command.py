"""The command line of `tools/prepare_ade20k.py` and `tools/prepare_coco.py`: extract archives, check the files."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..command_line import printable, run_command
from ..files import write_json
from .archives import Archive, extract, find
from .arguments import check_arguments, new_parser, progress
from .layout import Report

__all__ = ["main"]


def _parser(title: str, default: str, splits: Sequence[str]) -> argparse.ArgumentParser:
    parser = new_parser(title, default, "decode")
    parser.add_argument("--decode", action="store_true", help="decode every file, too: takes far longer")
    parser.add_argument("--extract", action="store_true", help="extract downloaded archives first")
    if splits:
        parser.add_argument("--splits", nargs="+", choices=splits, default=list(splits), help="what is needed")
    return parser


def _extract(archives: Sequence[Archive], root: Path) -> None:
    for archive in archives:
        path = find(archive, root)
        if path:
            print(f"extracting {path} to {root}", flush=True)
            print(f"{extract(archive, path, root):,} files written")


def _advise(archives: Sequence[Archive], root: Path, report: Report | None = None) -> None:
    """Say where to get what is missing: everything without a report."""
    missing = {lack.where.split("/")[0] for lack in report.missing} if report else None
    for archive in archives:
        path = find(archive, root)
        if missing is not None and missing.isdisjoint(archive.holds):
            continue
        if path:
            print(f"  {path} is not, or not wholly, extracted: --extract does it")
        else:
            print(f"  download {archive.url} to {root if root.is_dir() else root.parent}, then --extract")


def main(
    check: Callable[..., Report],
    archives: Sequence[Archive],
    title: str,
    default: str,
    argv: Sequence[str] | None = None,
    splits: Sequence[str] = (),
) -> int:
    """Check a data set and print the report.

    Args:
        check: `check_ade20k` or one like it.
        archives: what the set is downloaded as.
        title: the help's first line.
        default: folder that is checked if none is named.
        argv: arguments, those of the process if None.
        splits: those that may be chosen from.

    Returns:
        0 if the set is complete, 1 if something is missing or wrong, 2 for bad arguments, and as `run_command`.
    """
    parser = _parser(title, default, splits)
    args = parser.parse_args(argv)
    check_arguments(parser, args, args.root)
    chosen = dict(splits=args.splits) if splits else {}

    def command() -> int:
        if args.extract:
            _extract(archives, args.root)
        report = check(args.root, decode=args.decode, jobs=args.jobs, progress=progress("decoded", every=500), **chosen)
        if args.json:
            write_json(args.json, report.as_dict())
        print("\n".join(map(printable, report.lines())))
        _advise(archives, args.root, report)
        if any(find(archive, args.root) for archive in archives) and report.wrong:
            print("  --extract brings back a wrong file that was deleted")
        return 0 if report.ok else 1

    status = run_command("", command)
    if status == 2 and not args.root.exists():
        _advise(archives, args.root)
    return status
