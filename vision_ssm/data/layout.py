"""What the checks share: the report, folders, decoding in threads."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..errors import InputError

__all__ = ["LayoutError", "Missing", "Progress", "Report", "Wrong", "each", "find_root", "open_image", "sizes"]

Progress = Callable[[int, int], object]  # called with the number of files that are done and that of all
_T = TypeVar("_T")


class LayoutError(InputError):
    """The folder cannot be the data set's: told in one line."""


@dataclass(frozen=True)
class Missing:
    """Files that are not there: in which folder, how many, and the names that are known."""

    where: str
    count: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wrong:
    """A file that is there but is not as it should be."""

    file: str
    what: str
    expected: str


@dataclass
class Report:
    """What a check found.

    Attributes:
        root: the folder.
        found: number of files or records of each kind.
        missing: what is not there.
        wrong: what is not as it should be.
        notes: what is no error, but may explain one.
    """

    root: str
    found: dict[str, int] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the set is complete, as far as was looked."""
        return not self.missing and not self.wrong

    def lack(self, where: str, names: Iterable[str]) -> None:
        """Add missing files, if there are any."""
        if known := tuple(sorted(names)):
            self.missing.append(Missing(where, len(known), known))

    def lines(self, most: int = 5) -> list[str]:
        """The report as text, with at most so many names of a folder and so many wrong files."""
        lines = [f"{self.root}: {'complete' if self.ok else 'not complete'}"]
        lines += [f"  {count:,} {kind}" for kind, count in self.found.items()]
        for lack in self.missing:
            names = ", ".join(lack.names[:most]) + (", ..." if len(lack.names) > most else "")
            lines.append(f"  missing: {lack.count:,} of {lack.where}" + (f": {names}" if names else ""))
        lines += [f"  wrong: {w.file}: {w.what} (expected {w.expected})" for w in self.wrong[:most]]
        if len(self.wrong) > most:
            lines.append(f"  wrong: {len(self.wrong) - most:,} more")
        return lines + [f"  note: {note}" for note in self.notes]

    def as_dict(self) -> dict[str, Any]:
        """The whole report for JSON."""
        return dict(
            root=self.root,
            ok=self.ok,
            found=self.found,
            missing=[dict(where=m.where, count=m.count, names=list(m.names)) for m in self.missing],
            wrong=[dict(file=w.file, what=w.what, expected=w.expected) for w in self.wrong],
            notes=self.notes,
        )


def find_root(root: str | Path, folders: Sequence[str]) -> Path:
    """The folder that holds a data set.

    Args:
        root: what the user named.
        folders: what such a folder holds.

    Raises:
        LayoutError: it is not there, is no folder, or lies above or below the one that is meant.
    """
    root = Path(root)
    if not root.exists():
        raise LayoutError(f"no folder {root}")
    if not root.is_dir():
        raise LayoutError(f"{root} is a file: expected the folder that holds {', '.join(folders)}")

    def holds(folder: Path) -> bool:
        return all((folder / name).is_dir() for name in folders)

    if any((root / name).is_dir() for name in folders):  # the right folder, if not a whole one
        return root
    near = [*sorted(child for child in root.iterdir() if child.is_dir()), *root.resolve().parents[:2]]
    if meant := [folder for folder in near if holds(folder)]:
        raise LayoutError(f"{root} holds none of {', '.join(folders)}: did you mean {meant[0]}?")
    return root


def sizes(folder: Path, suffix: str) -> dict[str, int]:
    """Bytes of every file of a suffix in a folder, by name; hidden files, which nobody reads, are left out."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {
            e.name: e.stat().st_size
            for e in entries
            if e.name.endswith(suffix) and not e.name.startswith(".") and e.is_file()
        }


def open_image(path: Path, name: str) -> tuple[Image.Image | None, Wrong | None]:
    """A decoded image, or what is wrong with it."""
    try:
        with Image.open(path) as file:
            file.load()
            return file, None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(str(path), name).split())
        return None, Wrong(name, f"cannot be decoded: {reason}", "an image")


def each(
    check: Callable[[_T], list[Wrong]], items: Sequence[_T], jobs: int | None = None, progress: Progress | None = None
) -> list[Wrong]:
    """What is wrong with any of the items, in their order; looked at by `jobs` threads (decoders run in parallel)."""
    wrong: list[Wrong] = []
    with ThreadPoolExecutor(jobs or min(8, os.cpu_count() or 1)) as pool:
        for done, found in enumerate(pool.map(check, items), 1):
            wrong += found
            if progress:
                progress(done, len(items))
    return wrong
