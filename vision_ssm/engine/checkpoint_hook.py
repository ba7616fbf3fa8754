"""MMEngine's checkpoint hook, without a moment in which a kill costs more than the steps since the last checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as _CheckpointHook

from ..files import remove_unfinished

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
    """As MMEngine's; outdated checkpoints are removed after the new one is on disk, not before."""

    def before_train(self, runner) -> None:
        """As MMEngine's; what a killed run left half written goes, and a resumed run knows its last checkpoint."""
        super().before_train(runner)
        info = runner.message_hub.runtime_info
        self.last_ckpt = info.get("last_ckpt")
        # Of a run that was resumed in another folder the old one keeps its files.
        if getattr(self, "best_ckpt_path", None):
            self.best_ckpt_path = self._here(self.best_ckpt_path)
        for key, path in getattr(self, "best_ckpt_path_dict", {}).items():
            self.best_ckpt_path_dict[key] = path and self._here(path)
        if is_main_process() and "://" not in self.out_dir:
            remove_unfinished(self.out_dir, ".pth")
        self._remove([self._here(path) for path in info.get(_OUTDATED, ())])

    def _here(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, path.replace("\\", "/").rpartition("/")[2])

    def _remove(self, paths: list[str]) -> None:
        current = {self.last_ckpt, getattr(self, "best_ckpt_path", None)}
        current |= set(getattr(self, "best_ckpt_path_dict", {}).values())
        for path in paths if is_main_process() else ():
            if path not in current and self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif path not in current and self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

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
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        with self._removals_last(runner):
            super()._save_best_checkpoint(runner, metrics)
