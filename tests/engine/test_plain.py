"""Checkpoints of plain values: what goes in comes out, and anybody can load it weights-only."""

import enum
import io
import random
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from hypothesis import given
from hypothesis import strategies as st
from mmengine import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub

from vision_ssm.engine.order import random_state, restore
from vision_ssm.engine.plain import plain, revived


def through_a_file(value):
    """Saved, and loaded as anybody may load it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


KEYS = st.text(max_size=5) | st.integers(-5, 2**40) | st.tuples(st.integers(), st.text(max_size=3))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_plain_values_stay_as_they_are(value):
    result = through_a_file(plain(value))
    assert result == value and type(result) is type(value)


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Name(str):
    pass


@pytest.mark.parametrize(
    "value, expected",
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Name("n"), "n"),
        (deque([1, 2], maxlen=2), [1, 2]),
        ({1, 2}, {1, 2}),
        (frozenset({np.int64(3)}), {3}),
        ((1, [np.float64(2.0), {"a": (3,)}]), (1, [2.0, {"a": (3,)}])),
        (Counter(a=2), {"a": 2}),
        (ConfigDict(a=dict(b=1)), {"a": {"b": 1}}),
        (range(0), None),
        ({np.int64(1): 2, Colour.RED: 3}, {1: 2, "red": 3}),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([1, "b"], dtype=object), [1, "b"]),
    ],
    ids=repr,
)
def test_other_values_become_plain(value, expected):
    result = through_a_file(plain(value))
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8", "bool"])
def test_arrays_become_tensors(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    result = through_a_file(plain(dict(a=array)))["a"]
    assert str(result.dtype) == f"torch.{dtype}" and np.array_equal(result.numpy(), array)
    array[:] = 0
    assert plain(array) is not array and torch.is_tensor(plain(np.array(2.0)))


def test_what_cannot_be_saved_is_left_out_and_named(monkeypatch):
    messages = []
    monkeypatch.setattr("vision_ssm.engine.plain.print_log", lambda message, **_: messages.append(message))
    value = dict(kept=1, hook=object(), items=[1, object(), 2], pair=(len, 1), deep=dict(f=lambda: 0))
    assert through_a_file(plain(value, "state")) == dict(kept=1, items=[1, 2], pair=(None, 1), deep={})
    for name in ("state.hook", "state.items[1]", "state.pair[0]", "state.deep.f"):
        assert any(message.startswith(f"{name} is a ") for message in messages), name


def a_hub(name, values):
    hub = MessageHub.get_instance(name)
    for value in values:
        hub.update_scalar("loss", value)
        hub.update_scalar("weighted", value, 2)
    hub.update_info("best_score", np.float64(0.25))
    hub.update_info("best_ckpt", "iter_5.pth")
    hub.update_info("not_resumed", object(), resumed=False)
    return hub


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.lists(st.floats(-1e6, 1e6), max_size=5))
def test_histories_go_on(before, after):
    names = [f"hub {random.random()}" for _ in range(2)]
    hub = a_hub(names[0], before)
    saved = through_a_file(plain(dict(message_hub=hub.state_dict())))
    other = MessageHub.get_instance(names[1])
    other.load_state_dict(revived(saved)["message_hub"])
    assert other.get_info("best_score") == 0.25 and other.get_info("best_ckpt") == "iter_5.pth"
    for value in after:
        for one in (hub, other):
            one.update_scalar("loss", value)
            one.update_scalar("weighted", value, 3)
    for key in ("loss", "weighted"):
        one, two = hub.get_scalar(key), other.get_scalar(key)
        assert isinstance(two, HistoryBuffer) and one.max_length == two.max_length
        for a, b in zip(one.data, two.data, strict=True):
            assert np.array_equal(a, b)
        for window in (1, 3, 100):
            assert one.mean(window) == two.mean(window) and one.max(window) == two.max(window)
        assert one.current() == two.current()


def test_long_history_keeps_its_window():
    buffer = HistoryBuffer(max_length=5)
    for value in range(9):
        buffer.update(float(value))
    hub = dict(log_scalars=dict(a=buffer), runtime_info={}, resumed_keys=dict(a=True))
    again = revived(through_a_file(plain(dict(message_hub=hub))))["message_hub"]["log_scalars"]["a"]
    again.update(9.0)
    assert again.data[0].tolist() == [5, 6, 7, 8, 9] and again.max_length == 5


def test_random_state_goes_through_a_file():
    state = through_a_file(plain(random_state()))
    drawn = [(random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1)) for _ in "ab"]
    restore(state)
    assert drawn == [
        (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1)) for _ in "ab"
    ]


def test_config_in_a_checkpoint_is_not_kept_for_mmengine_to_run():
    content = dict(meta=dict(config="raise SystemExit", cfg="text", seed=1), state_dict={})
    assert revived(content)["meta"] == dict(cfg="text", seed=1)
    assert "config" in content["meta"]
