"""Downloaded archives: found, verified, extracted."""

import hashlib
import shutil
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile, ZipInfo

from ..files import write_atomically
from .layout import LayoutError

__all__ = ["Archive", "extract", "find"]


@dataclass(frozen=True)
class Archive:
    """A zip file that is to be downloaded.

    Attributes:
        url: where it is.
        holds: folders of the data set that it brings.
        md5: of the whole file, or empty.
        top: the folder in it that is the data set's root; empty if it is to be extracted into the root.
    """

    url: str
    holds: tuple[str, ...]
    md5: str = ""
    top: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


def find(archive: Archive, root: Path) -> Path | None:
    """The archive in the data set's folder or in the one above it."""
    places = (folder / archive.name for folder in (root, root.resolve().parent))
    return next((path for path in places if path.is_file()), None)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _target(member: ZipInfo, top: str) -> PurePosixPath | None:
    """Where below the root a member belongs, or None if it is none of the set's.

    Raises:
        LayoutError: it would be written outside the root, or is no plain file.
    """
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
        raise LayoutError(f"the archive has a member outside its folder: {member.filename!r}")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise LayoutError(f"the archive has a link: {member.filename!r}")
    if not top:
        return path
    return path.relative_to(top) if path.parts[:1] == (top,) else None


def extract(archive: Archive, path: Path, root: Path) -> int:
    """Extract an archive; returns the number of files written.

    Each file appears in one step; those that are there in full length already are kept, so that a killed extraction
    goes on where it was.

    Raises:
        LayoutError: it is no zip file, its checksum is wrong, or a member would be written outside the root.
    """
    if archive.md5 and (found := _md5(path)) != archive.md5:
        raise LayoutError(f"{path} has the MD5 {found} instead of {archive.md5}: download it again")
    written = 0
    try:
        with ZipFile(path) as zipped:
            members = [m for m in zipped.infolist() if not m.is_dir()]
            targets = [_target(m, archive.top) for m in members]  # all are looked at before any is written
            for member, target in zip(members, targets, strict=True):
                if target is None:
                    continue
                file = root / target
                if file.is_file() and file.stat().st_size == member.file_size:
                    continue
                with zipped.open(member) as source:
                    write_atomically(file, lambda temporary, source=source: _copy(source, temporary))
                written += 1
    except (BadZipFile, zlib.error, EOFError) as error:
        raise LayoutError(f"{path} is no whole zip file ({error}): download it again") from error
    return written


def _copy(source: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
