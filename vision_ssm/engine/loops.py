"""MMEngine's training loops, resumable at any step without loading the data before it."""

from collections.abc import Iterator

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from .order import Order, preserved

__all__ = ["EpochLoop", "IterLoop"]


def _batches(loader: DataLoader, first: int, epoch: int = 0, endless: bool = False) -> Iterator:
    """A loader's batches from the one of that number on."""
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


class IterLoop(IterBasedTrainLoop):
    """`IterBasedTrainLoop`, resumed at its data's place."""

    def run(self) -> nn.Module:
        """Train what is left."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        self.dataloader_iterator = _batches(self.dataloader, self._iter, endless=True)
        runner.restore_random_state()
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if runner.val_loop is not None and self._iter >= self.val_begin and due:
                with preserved():
                    runner.val_loop.run()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model


class EpochLoop(EpochBasedTrainLoop):
    """`EpochBasedTrainLoop`, resumed within an epoch where a checkpoint was saved there."""

    def run(self) -> nn.Module:
        """Train what is left."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.restore_random_state()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
            if runner.val_loop is not None and self._epoch >= self.val_begin and due:
                with preserved():
                    runner.val_loop.run()
        runner.call_hook("after_train")
        return runner.model

    def run_epoch(self) -> None:
        """Train what is left of an epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        for number, batch in enumerate(_batches(self.dataloader, done, self._epoch), done):
            self.run_iter(number, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
