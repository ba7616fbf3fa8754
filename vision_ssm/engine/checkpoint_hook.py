"""MMEngine's checkpoint hook, without a moment in which a kill costs more than the steps since the last checkpoint."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as _CheckpointHook

from ..checkpoints import CheckpointError, read
from ..files import remove_unfinished, write_atomically
from .config import ConfigError
from .saved import checkpoint_folder, is_plain_file, last_part, name_pattern

__all__ = ["CheckpointHook"]


_OUTDATED = "outdated_ckpts"  # in the message hub, and so in the checkpoint that replaces them


class _RemovingLater:
    """A file backend that notes what is to be removed."""

    def __init__(self, backend, note: Callable[[str], None]):
        self.backend = backend
        self.remove = self.rmtree = note

    def __getattr__(self, name: str):
        return getattr(self.backend, name)


class CheckpointHook(_CheckpointHook):
    """As MMEngine's, with these differences.

    - Outdated checkpoints are removed after the new one is on disk, not before.
    - What a resumed checkpoint says of others is a list of names: nothing is removed but files in the run's own folder
      that have the names of checkpoints.
    - A score that is not finite is never the best.

    Raises:
        ConfigError: `filename_tmpl` is no name of a file.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.names = name_pattern(self.filename_tmpl)
        self.last_whole: str | None = None  # the last checkpoint that was written

    def folder(self, work_dir: str) -> Path:
        """Where a run in a folder has its checkpoints, before it is trained."""
        return checkpoint_folder(work_dir, self.out_dir)

    def check_start(self, load_from: str, work_dir: str) -> None:
        """Look at the weights that a new run in a folder starts from.

        Raises:
            ConfigError: they lie where the run's checkpoints go, and have the name of one.
        """
        file = Path(load_from).resolve()
        if "://" not in load_from and self._is_own(file.name) and file.parent == self.folder(work_dir).resolve():
            raise ConfigError(
                f"`load_from` is {load_from}, which a new run in {work_dir} may write over: "
                "go on with --resume, or start in another folder"
            )

    # Resuming

    def before_train(self, runner) -> None:
        """As MMEngine's; what a killed run left half written goes, and a resumed run knows its last checkpoint."""
        hub = runner.message_hub
        best = [key for key in hub.runtime_info if key == "best_ckpt" or key.startswith("best_ckpt_")]
        told = {key: hub.runtime_info.pop(key, None) for key in (*best, "last_ckpt", "keep_ckpt_ids", _OUTDATED)}
        super().before_train(runner)
        self.last_ckpt = self.last_whole = None
        if is_main_process() and "://" not in self.out_dir:
            remove_unfinished(self.out_dir, ".pth")
        resumed = runner.resumed_from
        if resumed is None or Path(resumed).resolve().parent != Path(self.out_dir).resolve():
            return  # a run that goes on in another folder leaves the old one's files, and has none of its own
        self.last_ckpt = self.last_whole = self._own(told["last_ckpt"])
        for key in best:
            path = self._own(told[key])
            if key == "best_ckpt" and hasattr(self, "best_ckpt_path"):
                self.best_ckpt_path = path
            elif key.removeprefix("best_ckpt_") in getattr(self, "best_ckpt_path_dict", {}):
                self.best_ckpt_path_dict[key.removeprefix("best_ckpt_")] = path
            hub.update_info(key, path)
        if self.last_ckpt:
            hub.update_info("last_ckpt", self.last_ckpt)
        outdated = list(told[_OUTDATED] or ())
        if self.max_keep_ckpts > 0:
            steps = list(told["keep_ckpt_ids"] or ())
            outdated += [self.filename_tmpl.format(step) for step in steps[: -self.max_keep_ckpts]]
            self.keep_ckpt_ids = deque(steps, self.max_keep_ckpts)
            hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        self._remove(outdated)

    def _is_own(self, name: str) -> bool:
        """Whether a name is one that this hook gives to numbered or best checkpoints."""
        best = name.startswith("best_") and any(self.names.fullmatch(name, i) for i in range(5, len(name)))
        return bool(best or self.names.fullmatch(name))

    def _own(self, path: str | None) -> str | None:
        """A checkpoint of that name in the run's own folder."""
        name = last_part(path or "")
        return self.file_backend.join_path(self.out_dir, name) if self._is_own(name) else None

    def _remove(self, paths: list[str]) -> None:
        current = {self.last_ckpt, getattr(self, "best_ckpt_path", None)}
        current |= set(getattr(self, "best_ckpt_path_dict", {}).values())
        for path in set(map(self._own, paths)) - current - {None} if is_main_process() else ():
            if self.file_backend.isfile(path) if "://" in path else is_plain_file(Path(path)):
                self.file_backend.remove(path)

    # Saving

    @contextmanager
    def _removals_last(self, runner) -> Iterator[None]:
        if isinstance(self.file_backend, _RemovingLater):  # the best one is saved, and the last one again
            yield
            return
        backend, paths = self.file_backend, []

        def note(path: str) -> None:
            paths.append(path)
            runner.message_hub.update_info(_OUTDATED, paths)

        runner.message_hub.update_info(_OUTDATED, paths)
        self.file_backend = _RemovingLater(backend, note)
        try:
            yield
        finally:
            self.file_backend = backend
        self._remove(paths)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        with self._removals_last(runner):
            try:
                super()._save_checkpoint_with_step(runner, step, meta)
            except OSError as error:  # of the note; the checkpoint's own are named where it is written
                raise CheckpointError(f"{runner.work_dir}/last_checkpoint cannot be written: {error}") from error
        self.last_whole = self.last_ckpt

    def _save_best_checkpoint(self, runner, metrics) -> None:
        for key in self.save_best or ():
            if key != "auto" and key not in metrics:
                raise ConfigError(
                    f"`default_hooks.checkpoint.save_best` is {key!r}: the validation measures {', '.join(metrics)}"
                )
        with self._removals_last(runner):
            super()._save_best_checkpoint(runner, self._finite(runner, metrics))

    def _finite(self, runner, metrics: Mapping) -> dict:
        """The metrics, with None for what is no score."""
        scores = dict(metrics)
        for key in self.save_best or ():
            key = next(iter(metrics)) if key == "auto" else key
            if scores[key] is not None and not math.isfinite(scores[key]):
                runner.logger.warning(f"{key} is {float(scores[key])}: no best checkpoint is saved for it")
                scores[key] = None
        return scores

    def _publish_model(self, runner, ckpt_path: str | None) -> None:
        """As MMEngine's: a copy with `published_keys` alone, whose name has the digest of its content."""
        if not is_main_process() or ckpt_path is None:
            return
        content = {key: value for key, value in read(ckpt_path).items() if key in self.published_keys}
        path = Path(ckpt_path)
        whole = write_atomically(path.with_name(f"{path.stem}-published.pth"), lambda file: torch.save(content, file))
        digest = hashlib.sha256(whole.read_bytes()).hexdigest()[:8]
        whole.replace(path.with_name(f"{path.stem}-{digest}.pth"))
