"""The order of training data, and the randomness of each sample, as a function of the seed and the position alone.

MMEngine draws both from generators that a killed run takes with it. Here the n-th batch of an epoch is the same batch,
distorted in the same way, whether or not the run was interrupted, and whatever the number of workers.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler, get_worker_info

from ..errors import InputError

__all__ = ["DataError", "Order", "Seeded", "preserved", "random_state", "restore"]


class DataError(InputError):
    """A sample cannot be used; the message names its file."""

    def __init__(self, message: str):
        # A worker's arrives as its traceback's text, which ends with the message.
        *traceback, message = message.rsplit("DataError: ", 1)
        super().__init__(message.strip())
        if traceback:
            self.__cause__ = RuntimeError(traceback[0])


class _Draw(int):
    """The index of a sample that knows where in the run it was drawn."""

    position: tuple[int, ...]


def random_state() -> dict:
    """State of every generator of this process, in tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    return dict(
        python=random.getstate(),
        numpy=(name, torch.from_numpy(keys.astype(np.int64)), *rest),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def restore(state: dict) -> None:
    """The inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved() -> Iterator[dict]:
    """Whatever happens inside draws no random number from what follows; yields the state that follows."""
    state = random_state()
    try:
        yield state
    finally:
        restore(state)


class Order(Sampler):
    """Batch sampler that starts anew, at any batch, each time it is iterated.

    Args:
        build: (seed) to a fresh batch sampler over a fresh sampler.
        seed: of the run.
        rank: of this process among those that share the data.

    Attributes:
        epoch: of the next iteration.
        first: batch that the next iteration starts with.
        endless: go on with the next epoch; `first` then counts from the start of the first one.
    """

    def __init__(self, build: Callable[[int], Sampler], seed: int, rank: int = 0):
        self.build, self.seed, self.rank = build, seed, rank
        self.epoch = self.first = 0
        self.endless = False
        self._length = len(build(seed))

    @property
    def sampler(self) -> "Order":
        """MMEngine's hook sets the epoch of a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[_Draw]]:
        first, epoch = self.first, self.epoch
        self.first = 0
        number = 0
        while True:
            batches = self.build(self.seed)
            sampler = getattr(batches, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            for batch in batches:
                if number >= first:  # before, only indices are drawn and nothing is loaded
                    yield [self._draw(index, epoch, number, i) for i, index in enumerate(batch)]
                number += 1
            if not self.endless or not number:
                return
            epoch += 1

    def _draw(self, index: int, *position: int) -> _Draw:
        draw = _Draw(index)
        draw.position = (self.seed, self.rank, *position)
        return draw


class Seeded(torch.utils.data.Dataset):
    """A dataset whose samples depend on their position in the run (see `Order`), and whose errors name the file."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str):
        if name == "dataset":  # while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value) -> None:
        if name == "dataset":
            super().__setattr__(name, value)
        else:  # a hook that switches the pipeline, say
            setattr(self.dataset, name, value)

    def __getitems__(self, indices: list[int]) -> list:
        return [self[index] for index in indices]  # not the dataset's own, which loads without seeds

    def __getitem__(self, index: int):
        if not isinstance(index, _Draw):
            return self._load(index)
        if get_worker_info() is not None:
            self._seed(index)
            return self._load(index)
        with preserved():  # the model draws from the same generators
            self._seed(index)
            return self._load(index)

    def _seed(self, index: _Draw) -> None:
        a, b, c = np.random.SeedSequence(index.position).generate_state(3)
        random.seed(int(a))
        np.random.seed(b)
        torch.default_generator.manual_seed(int(c))

    def _load(self, index: int):
        try:
            sample = self.dataset[int(index)]
        except Exception as error:
            what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise DataError(f"{self._name(index)}: {what}") from error
        if problem := self._problem(sample, training=isinstance(index, _Draw)):
            raise DataError(f"{self._name(index)}: {problem}")
        return sample

    def _problem(self, sample, training: bool) -> str | None:
        """What is wrong with a sample's label map (1, height, width), if it has one."""
        annotated = getattr(sample.get("data_samples"), "gt_sem_seg", None) if isinstance(sample, dict) else None
        classes = (getattr(self.dataset, "metainfo", None) or {}).get("classes")
        if annotated is None or not classes:
            return None
        image, labels = sample["inputs"], annotated.data
        if training and image.shape[-2:] != labels.shape[-2:]:  # for tests only the image is resized
            return f"the image has {_size(image)} pixels, its label map {_size(labels)}"
        ignored = getattr(self.dataset, "ignore_index", 255)
        strange = labels[((labels < 0) | (labels >= len(classes))) & (labels != ignored)]
        if len(strange):
            found = ", ".join(map(str, strange.unique().tolist()))
            return f"its label map has {found}, beyond the {len(classes)} classes"
        return None

    def _name(self, index: int) -> str:
        try:
            info = self.dataset.get_data_info(int(index))
            return " with ".join(str(info[key]) for key in ("img_path", "seg_map_path") if info.get(key))
        except Exception:  # a dataset without such names
            return f"sample {int(index)}"


def _size(picture: torch.Tensor) -> str:
    return "{1}x{0}".format(*picture.shape[-2:])
