"""The order of training data and each sample's randomness follow from seed and position alone."""

import pickle
import random

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from hypothesis import given
from hypothesis import strategies as st
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset

from vision_ssm.engine.loops import _batches
from vision_ssm.engine.order import DataError, Order, Seeded, preserved, random_state


def an_order(samples=10, batch=3, drop_last=False, infinite=False, shuffle=True, seed=0, rank=0):
    """Of MMEngine's samplers over numbers."""
    kind = InfiniteSampler if infinite else DefaultSampler

    def build(seed):
        return BatchSampler(kind(range(samples), shuffle=shuffle, seed=seed), batch, drop_last)

    return Order(build, seed, rank)


def drawn(order, count, first=0, epoch=0, endless=True):
    """`count` batches as pairs of index and position."""
    order.first, order.epoch, order.endless = first, epoch, endless
    batches = []
    for batch in order:
        batches.append([(int(index), index.position) for index in batch])
        if len(batches) == count:
            break
    return batches


ORDERS = st.fixed_dictionaries(
    dict(
        samples=st.integers(1, 13),
        batch=st.integers(1, 5),
        drop_last=st.booleans(),
        infinite=st.booleans(),
        shuffle=st.booleans(),
        seed=st.integers(0, 2**31),
        rank=st.integers(0, 3),
    )
).filter(lambda order: order["samples"] >= order["batch"])


@given(ORDERS, st.integers(0, 30), st.integers(1, 12))
def test_starting_late_gives_the_tail(arguments, first, count):
    whole = drawn(an_order(**arguments), first + count)
    assert len(whole) == first + count
    assert drawn(an_order(**arguments), count, first) == whole[first:]


@given(ORDERS.filter(lambda order: not order["infinite"]), st.integers(0, 3), st.data())
def test_starting_within_an_epoch_gives_its_tail(arguments, epoch, data):
    order = an_order(**arguments)
    whole = drawn(order, None, 0, epoch, endless=False)
    assert len(whole) == len(order)
    first = data.draw(st.integers(0, len(order)))
    assert drawn(order, None, first, epoch, endless=False) == whole[first:]
    assert drawn(order, None, 0, epoch, endless=False) == whole, "`first` holds for one iteration"
    endless = drawn(order, len(order) * (epoch + 1))
    assert [[i for i, _ in batch] for batch in endless[-len(order) :]] == [[i for i, _ in batch] for batch in whole]


@given(ORDERS)
def test_positions_differ(arguments):
    positions = [position for batch in drawn(an_order(**arguments), 20) for _, position in batch]
    assert len(set(positions)) == len(positions)


def test_seeds_epochs_and_ranks_differ():
    order = drawn(an_order(), 4)
    assert drawn(an_order(), 4) == order
    assert [i for batch in drawn(an_order(seed=1), 4) for i, _ in batch] != [i for batch in order for i, _ in batch]
    other_rank = drawn(an_order(rank=1), 4)
    assert [[i for i, _ in batch] for batch in other_rank] == [[i for i, _ in batch] for batch in order]
    assert other_rank != order
    one, two = (drawn(an_order(), None, 0, epoch, endless=False) for epoch in (0, 1))
    assert sorted(i for batch in one for i, _ in batch) == sorted(i for batch in two for i, _ in batch) and one != two


def test_draws_are_indices_that_can_be_pickled():
    (draw, *_), *_ = an_order()
    again = pickle.loads(pickle.dumps(draw))
    assert type(again) is type(draw) and again == int(draw) and again.position == draw.position


def test_no_samples_are_no_endless_loop():
    assert drawn(an_order(samples=2, batch=3, drop_last=True), 5) == []


class Dice(Dataset):
    """Draws from all three generators."""

    def __init__(self, size=10):
        self.metainfo = dict(classes=("a",))
        self.size, self.pipeline = size, "first"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), float(torch.rand(1)), np.random.randint(99)


def rolled(first=0, workers=0, dataset=None, count=7, persistent=False, **order):
    loader = DataLoader(
        Seeded(dataset or Dice()),
        batch_sampler=an_order(**order),
        num_workers=workers,
        persistent_workers=persistent,
        collate_fn=list,
        generator=torch.Generator(),
    )
    batches = _batches(loader, first, endless=True)
    return [next(batches) for _ in range(count)]


def test_samples_depend_on_their_position_only():
    whole = rolled()
    values = [sample for batch in whole for sample in batch]
    assert len(set(values)) == len(values)
    assert rolled(first=3, count=4) == whole[3:]
    assert rolled(workers=2) == whole and rolled(first=3, workers=2, persistent=True, count=4) == whole[3:]
    assert rolled(rank=1) != whole and rolled(seed=1) != whole
    with preserved():
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        assert rolled() == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_the_models_generators_are_left_alone(workers):
    before = random_state()
    rolled(workers=workers)
    after = random_state()
    assert before["python"] == after["python"] and torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]


def test_a_dataset_that_loads_batches_is_seeded_too():
    subset = Subset(Dice(), range(10))
    assert hasattr(subset, "__getitems__")
    assert rolled(dataset=subset) == rolled()


def test_seeded_looks_like_its_dataset():
    data = pickle.loads(pickle.dumps(Seeded(Dice())))
    assert len(data) == 10 and data.metainfo["classes"] == ("a",) and data[3][0] == 3
    data.pipeline = "second"  # as hooks do that switch the augmentation
    assert data.dataset.pipeline == "second" and data.pipeline == "second"
    with pytest.raises(AttributeError, match="absent"):
        _ = data.absent


class Broken(Dice):
    def __init__(self, names=True):
        super().__init__()
        self.names = names

    def get_data_info(self, index):
        if not self.names:
            raise NotImplementedError
        return dict(img_path=f"images/{index}.jpg", seg_map_path=f"labels/{index}.png")

    def __getitem__(self, index):
        if index == 7:
            raise OSError("image file is truncated: 5 bytes")
        return super().__getitem__(index)


def error_of(dataset, workers):
    try:
        rolled(workers=workers, dataset=dataset)
    except DataError as error:
        error.__traceback__ = None  # with it the loader would wait for the garbage collector, and that for the workers
        return str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_name_the_files_of_the_sample(workers):
    assert error_of(Broken(), workers) == "images/7.jpg with labels/7.png: OSError: image file is truncated: 5 bytes"
    assert error_of(Broken(names=False), workers) == "sample 7: OSError: image file is truncated: 5 bytes"


def test_validation_samples_are_named_too():
    with pytest.raises(DataError, match=r"^images/7\.jpg with labels/7\.png: OSError"):
        list(DataLoader(Seeded(Broken()), collate_fn=list))


def test_batches_of_a_loader_of_the_users_own():
    loader = DataLoader(range(5), batch_size=2, collate_fn=list)
    assert list(_batches(loader, 1)) == [[2, 3], [4]]
    batches = _batches(loader, 4, endless=True)
    assert [next(batches) for _ in range(3)] == [[2, 3], [4], [0, 1]]


class Boxes(Dice):
    """Sizes of images, as MMDetection's sampler asks for them."""

    def get_data_info(self, index):
        return dict(width=10 + 20 * (index % 3 == 0), height=20)


@given(st.integers(0, 12), st.integers(1, 4), st.booleans())
def test_batches_of_one_shape(first, size, drop_last):
    pytest.importorskip("vision_ssm.openmmlab")
    samplers = pytest.importorskip("mmdet.datasets.samplers")
    dataset = Seeded(Boxes(11))

    def build(seed):
        one = DefaultSampler(dataset, shuffle=True, seed=seed)
        return samplers.AspectRatioBatchSampler(one, size, drop_last)

    whole = drawn(Order(build, 0), first + 5)
    assert drawn(Order(build, 0), 5, first) == whole[first:]
    assert drawn(Order(build, 0), None, 0, 2, endless=False)
