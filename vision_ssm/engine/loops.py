"""MMEngine's training loops, resumable at any step without loading the data before it."""

from collections.abc import Iterator

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from .data_check import leaves
from .order import Order

__all__ = ["EpochLoop", "IterLoop"]


def _batches(loader: DataLoader, first: int, epoch: int = 0, endless: bool = False) -> Iterator:
    """A loader's batches from the one of that number on."""
    for dataset in leaves(loader.dataset):
        if fill := getattr(dataset, "fill_cache", None):
            fill()  # the processes that load data, which start next, share what is in memory now
    order = loader.batch_sampler
    if isinstance(order, Order):
        order.epoch, order.first, order.endless = epoch, first, endless
        yield from loader
        return
    while True:  # a loader that the user built: the only way is to load what comes before
        for batch in loader:
            if first:
                first -= 1
            else:
                yield batch
        if not endless:
            return


class _Validating:
    """What both loops share."""

    def _validate(self, step: int, last: int) -> None:
        """Run the validation if it is due after a step (or epoch)."""
        self._decide_current_val_interval()
        due = step % self.val_interval == 0 or step == last
        if self.runner.val_loop is not None and step >= self.val_begin and due:
            self.runner.validate()


class IterLoop(_Validating, IterBasedTrainLoop):
    """`IterBasedTrainLoop`, resumed at its data's place."""

    def run(self) -> nn.Module:
        """Train what is left."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        self.dataloader_iterator = _batches(self.dataloader, self._iter, endless=True)
        runner.restore_process_state()
        if runner.validation_missed:
            self._validate(self._iter, self._max_iters)
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate(self._iter, self._max_iters)
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model


class EpochLoop(_Validating, EpochBasedTrainLoop):
    """`EpochBasedTrainLoop`, resumed within an epoch where a checkpoint was saved there."""

    epoch_start = 0  # step that the current epoch started with

    def run(self) -> nn.Module:
        """Train what is left."""
        runner = self.runner
        runner.call_hook("before_train")
        if runner.validation_missed and not self._done():
            runner.restore_process_state()
            self._validate(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate(self._epoch, self._max_epochs)
        runner.call_hook("after_train")
        return runner.model

    def progress(self, meta: dict) -> dict[str, int]:
        """How far a checkpoint is in its epoch, in steps, and how many the epoch has."""
        within = meta.get("epoch") == self._epoch
        return dict(done=meta["iter"] - self.epoch_start if within else 0, steps=len(self.dataloader))

    def _done(self) -> int:
        """Steps of this epoch that are behind."""
        return self._iter - self.epoch_start

    def run_epoch(self) -> None:
        """Train what is left of an epoch."""
        done = self._done()
        if not done:
            self.runner.restore_process_state()
        self.runner.call_hook("before_train_epoch")
        self.runner.restore_process_state()  # within an epoch, what the hooks drew was drawn before it was saved
        self.runner.model.train()
        for number, batch in enumerate(_batches(self.dataloader, done, self._epoch), done):
            self.run_iter(number, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self.epoch_start = self._iter
