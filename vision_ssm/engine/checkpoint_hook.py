"""MMEngine's checkpoint hook, without a moment in which a kill costs more than the steps since the last checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as _CheckpointHook

from ..files import remove_unfinished

__all__ = ["CheckpointHook"]


class _RemovingLater:
    """A file backend that notes what is to be removed."""

    def __init__(self, backend):
        self.backend, self.noted = backend, []

    def __getattr__(self, name: str):
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Note a file."""
        self.noted.append((self.backend.remove, path))

    def rmtree(self, path: str) -> None:
        """Note a folder."""
        self.noted.append((self.backend.rmtree, path))


class CheckpointHook(_CheckpointHook):
    """As MMEngine's; outdated checkpoints are removed after the new one is on disk, not before."""

    def before_train(self, runner) -> None:
        """As MMEngine's; what a killed run left half written goes, and a resumed run knows its last checkpoint."""
        super().before_train(runner)
        self.last_ckpt = runner.message_hub.runtime_info.get("last_ckpt")
        # Of a run that was resumed in another folder the old one keeps its files.
        if getattr(self, "best_ckpt_path", None):
            self.best_ckpt_path = self._here(self.best_ckpt_path)
        for key, path in getattr(self, "best_ckpt_path_dict", {}).items():
            self.best_ckpt_path_dict[key] = path and self._here(path)
        if is_main_process() and "://" not in self.out_dir:
            remove_unfinished(self.out_dir, ".pth")

    def _here(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, path.replace("\\", "/").rpartition("/")[2])

    @contextmanager
    def _removals_last(self) -> Iterator[None]:
        backend = self.file_backend
        self.file_backend = _RemovingLater(backend)
        try:
            yield
            noted = self.file_backend.noted
        finally:
            self.file_backend = backend
        current = {self.last_ckpt, getattr(self, "best_ckpt_path", None)}
        current |= set(getattr(self, "best_ckpt_path_dict", {}).values())
        if is_main_process():
            for remove, path in noted:
                if path not in current:
                    remove(path)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        with self._removals_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        with self._removals_last():
            super()._save_best_checkpoint(runner, metrics)
