"""Training loaders in an order that can be resumed."""

import copy
from functools import partial

import torch
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from torch.utils.data import BatchSampler, DataLoader

from .config import ConfigError
from .data_check import dataset_faults
from .order import DataError, Order, Seeded
from .types import named_by

__all__ = ["built", "ordered_loader"]


def built(dataset):
    """A data set and its list of samples.

    Raises:
        DataError: its files cannot be listed. MMEngine's errors on an empty set do not say where it was looked for, and
            those on annotations that cannot be read are the libraries' own inner ones.
    """
    config = dataset
    where = dataset.get("data_root") if isinstance(dataset, dict) else None
    try:
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
        if hasattr(dataset, "full_init"):
            dataset.full_init()
    except (ConfigError, DataError):
        raise
    except Exception as error:
        if found := dataset_faults(config):
            raise DataError(found) from error
        if isinstance(error, OSError) and error.filename is not None:
            raise DataError(
                f"{where or 'the data set'} cannot be listed: {error.filename}: {error.strerror}"
            ) from error
        if not isinstance(error, (ValueError, IndexError)):
            raise
        raise DataError(f"{where or 'the data set'} cannot be listed, or is empty: {error}") from error
    return dataset


def ordered_loader(cfg: dict, dataset, seed: int, rank: int) -> DataLoader:
    """A loader of a map-style data set whose batches follow from the seed and their number (see `Order`).

    Args:
        cfg: MMEngine's `train_dataloader`, without the data set.
        dataset: built.
        seed: of the run, the same in every process: the processes share one permutation.
        rank: of this process.

    Raises:
        ConfigError: `collate_fn` is no function.
        DataError: the data set does not make one batch.
    """
    cfg = copy.deepcopy(cfg)
    sampler, batch_sampler = cfg.pop("sampler"), cfg.pop("batch_sampler", None)
    batch_size, drop_last = cfg.pop("batch_size", 1), cfg.pop("drop_last", False)

    def build(seed: int) -> BatchSampler:
        one = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        if batch_sampler is None:
            return BatchSampler(one, batch_size, drop_last)
        return DATA_SAMPLERS.build(batch_sampler, default_args=dict(sampler=one, batch_size=batch_size))

    collate = cfg.pop("collate_fn", dict(type="pseudo_collate"))
    if isinstance(collate, dict):
        kind = collate.pop("type", None)
        function = named_by(FUNCTIONS, kind)
        if function is None:
            raise ConfigError(f"`train_dataloader.collate_fn` has the `type` {kind!r}: expected a registered function")
        collate = partial(function, **collate)
    elif not callable(collate):
        raise ConfigError(f"`train_dataloader.collate_fn` is {collate!r}: expected a function, or its `type`")
    if cfg.pop("worker_init_fn", None) is not None:
        print_log("worker_init_fn is not used: every sample is seeded by its position", logger="current", level=30)
    order = Order(build, seed, rank)
    if not len(order):
        raise DataError(f"{len(dataset)} samples to train on do not make one batch of {batch_size}")
    return DataLoader(
        Seeded(dataset),
        batch_sampler=order,
        collate_fn=collate,
        generator=torch.Generator(),  # workers' seeds must not come from the model's random numbers
        **cfg,
    )
