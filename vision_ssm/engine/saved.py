"""Names of checkpoints, and which ones a run has saved."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Formatter

from mmengine.dist import broadcast_object_list, is_main_process

from .config import ConfigError
from .lock import held

__all__ = ["checkpoint_folder", "folders_held", "is_plain_file", "last_part", "name_pattern", "saved_checkpoints"]

_TEMPLATES = ("iter_{}.pth", "epoch_{}.pth")


def name_pattern(template: str) -> re.Pattern:
    """Matches the names that a template such as "iter_{}.pth" makes of numbers; the number is its group, if it has one.

    Raises:
        ConfigError: the names would be those of files in other folders.
    """
    try:
        parts = list(Formatter().parse(template))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`filename_tmpl` is {template!r}: expected a name such as 'iter_{{}}.pth'") from error
    if "/" in template or "\\" in template or sum(field is not None for _, field, *_ in parts) > 1:
        raise ConfigError(f"`filename_tmpl` is {template!r}: expected the name of a file with one {{}} for the step")
    return re.compile("".join(re.escape(text) + ("([0-9]+)" if field is not None else "") for text, field, *_ in parts))


def last_part(path: str) -> str:
    """The name of a file in a path of any system."""
    return re.split(r"[/\\]", path)[-1]


def is_plain_file(path: Path) -> bool:
    """Whether there is a file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def checkpoint_folder(work_dir: str | Path, out_dir: str | Path | None) -> Path:
    """Where MMEngine's checkpoint hook writes: in a folder of the run's name where it is told another place."""
    if out_dir is None or str(out_dir) == str(work_dir):
        return Path(work_dir)
    return Path(out_dir) / Path(work_dir).name


@contextmanager
def folders_held(work_dir: str | Path, out_dir: str | Path | None) -> Iterator[None]:
    """No other run trains in the folder, or saves its checkpoints in the same one. Every process must enter it.

    Raises:
        ConfigError: another run is at work there, or nothing can be written there.
    """
    folders = {Path(work_dir)}
    if "://" not in str(out_dir):
        folders.add(checkpoint_folder(work_dir, out_dir))
    problem = [None]
    with ExitStack() as stack:
        try:
            for folder in folders if is_main_process() else ():
                stack.enter_context(held(folder))
            note = Path(work_dir) / "last_checkpoint"
            if os.path.lexists(note) and not note.is_file():  # a pipe would be waited for
                problem = [f"{note} is no regular file, and the run writes one there: remove it"]
        except BlockingIOError as error:
            problem = [str(error)]
        except OSError as error:
            problem = [f"{error.filename or work_dir} cannot be written: {error.strerror or error}"]
        broadcast_object_list(problem)
        if problem[0]:
            raise ConfigError(problem[0])
        yield


def saved_checkpoints(folder: str | Path, template: str = _TEMPLATES[0], note: str | Path | None = None) -> list[Path]:
    """The numbered checkpoints in a folder, the one that was saved last first.

    MMEngine's note `last_checkpoint` names it; a kill may leave the note empty, or one checkpoint behind. Times of
    files alone do not tell, since a copied folder has others. Of the note only the name of a file counts.

    Args:
        folder: of the checkpoints.
        template: of their names, besides MMEngine's own.
        note: MMEngine's, in `folder` by default.
    """
    folder = Path(folder)
    patterns = [name_pattern(one) for one in {template, *_TEMPLATES}]
    number, time = {}, {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = next(filter(None, (pattern.fullmatch(path.name) for pattern in patterns)), None)
        if match and path.is_file():
            number[path] = int(match[1]) if match.groups() else 0
            time[path] = path.stat().st_mtime
    newest_first = sorted(number, key=lambda path: (time[path], number[path]), reverse=True)
    noted = folder / _noted(Path(note or folder / "last_checkpoint"))
    if noted in number and number[newest_first[0]] <= number[noted]:
        newest_first.remove(noted)
        newest_first.insert(0, noted)
    return newest_first


def _noted(note: Path) -> str:
    """The name in a note, which may hold anything."""
    if not note.is_file():
        return ""
    try:
        with open(note, "rb") as file:
            text = file.read(1 << 16).decode(errors="replace")
    except OSError:
        return ""
    return last_part(text.strip())
