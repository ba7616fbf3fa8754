"""What is known of a token table: against counting, and that it never outlives the table's content."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_ssm.ops import visits as module
from vision_ssm.ops.visits import remember, visits

TOKENS = 6


@pytest.fixture
def looked_up(monkeypatch):
    """The rows that were looked up, one after another."""
    rows, look_up = [], module._look_up
    monkeypatch.setattr(module, "_look_up", lambda order: rows.append(order.clone()) or look_up(order))
    return rows


def _tables(*rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


@given(
    st.integers(1, 9).flatmap(
        lambda steps: st.lists(
            st.lists(st.integers(-1, TOKENS - 1), min_size=steps, max_size=steps), min_size=1, max_size=3
        )
    )
)
def test_counts(order):
    found = visits(_tables([[0] * len(order[0])] * len(order), order), 1, TOKENS)
    real = [[token for token in row if token >= 0] for row in order]
    assert found.pads == any(-1 in row for row in order)
    assert found.once == all(len(set(row)) == len(row) for row in real)
    assert found.distinct == min(len(set(row)) for row in real)
    assert found.highest == max(map(max, order))
    for tokens in range(1, TOKENS + 1):
        if tokens > found.highest:
            everything = set(range(tokens))
            assert found.all_of(tokens) == all(set(row) == everything for row in real)
            assert found.exactly(tokens) == all(sorted(row) == sorted(everything) for row in order)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("row", [0, 1])
def test_without_tables(tokens, row):
    found = visits(None, row, tokens)
    assert found.once and not found.pads and found.all_of(tokens) and found.exactly(tokens)


def test_rows_are_apart():
    tables = _tables([[0, 1, 2]], [[0, 0, -1]])
    assert visits(tables, 0, 3).exactly(3)
    found = visits(tables, 1, 3)
    assert found.pads and not found.once and found.distinct == 1


def test_only_pads():
    found = visits(_tables([[-1, -1]], [[0, 1]]), 0, 2)
    assert found == (True, True, 0, -1)
    assert not found.all_of(2) and not found.exactly(2)


@pytest.mark.parametrize("entry", [-2, -(2**31), TOKENS, 2**31 - 1])
def test_out_of_range(entry):
    for _ in range(2):  # also of tables that it has seen before
        with pytest.raises(ValueError, match="`tables` holds a token that is out of range"):
            visits(_tables([[0, 1, entry]], [[0, 1, 2]]), 0, TOKENS)


def test_the_range_is_that_of_each_call():
    tables = _tables([[0, 1, 5]], [[0, 1, 2]])
    assert visits(tables, 0, 6).highest == 5
    with pytest.raises(ValueError, match="out of range"):
        visits(tables, 0, 5)
    assert visits(tables, 0, 7).highest == 5


def test_empty_tables():
    with pytest.raises(ValueError, match="out of range"):
        visits(torch.empty(2, 1, 0, dtype=torch.int32), 0, TOKENS)


def test_tables_of_others_are_looked_up_each_time(looked_up):
    tables = _tables([[0, 1, 2]], [[2, 1, 0]])
    assert visits(tables, 0, 3) == visits(tables, 0, 3)
    assert len(looked_up) == 2


def test_our_own_are_looked_up_once(looked_up):
    tables = _tables([[0, 1, 2]], [[2, 1, 0]])
    remember(tables, tables.clone())
    looked_up.clear()
    assert visits(tables, 0, 3) == visits(tables, 0, 3) == visits(tables, 1, 3)
    assert not looked_up


def _in_numpy(tables):
    return tables.numpy()


def _by_dlpack(tables):
    return torch.from_dlpack(tables.numpy().__dlpack__())


def _by_data(tables):
    return tables.data


@pytest.mark.parametrize("memory", [_in_numpy, _by_dlpack, _by_data])
def test_changes_behind_the_version_counter(memory):
    tables = _tables([[0, 1, 2]], [[2, 1, 0]])
    assert visits(tables, 1, 3).exactly(3)
    memory(tables)[1] = 0
    assert visits(tables, 1, 3) == (False, False, 1, 0)


def test_while_a_graph_is_recorded_what_was_seen_last_holds(looked_up, monkeypatch):
    tables = _tables([[0, 1, 2]], [[2, 1, 0]])
    seen = visits(tables, 0, 3)
    looked_up.clear()
    monkeypatch.setattr(module, "_capturing", lambda tables: True)
    assert visits(tables, 0, 3) == seen
    assert visits(tables, 1, 3) == (True, False, -1, -1)  # never seen: nothing is left out
    tables[0, 0, 2] = -1
    assert visits(tables, 0, 3) == (True, False, -1, -1)
    assert not looked_up


def test_our_own_with_other_data():
    tables = _tables([[0, 1, 2]], [[2, 1, 0]])
    remember(tables, tables.clone())
    tables.data = _tables([[0, 0, 0]], [[1, 1, -1]])
    assert visits(tables, 0, 3) == (False, False, 1, 0)


def test_changes_in_place():
    tables = _tables([[0, 1, 2]], [[2, 1, 0]])
    assert visits(tables, 0, 3).exactly(3)
    tables[0, 0, 2] = -1
    assert visits(tables, 0, 3) == (True, True, 2, 1)
    tables.copy_(_tables([[1, 1, 1]], [[0, 0, 0]]))
    assert visits(tables, 0, 3) == (False, False, 1, 1)


def test_a_wrong_table_stays_wrong_until_it_is_mended():
    tables = _tables([[0, -7, 2]], [[2, 1, 0]])
    for _ in range(2):
        with pytest.raises(ValueError):
            visits(tables, 0, 3)
    tables[0, 0, 1] = 1
    assert visits(tables, 0, 3).exactly(3)


def test_nothing_is_remembered_of_inference_tensors(looked_up):
    with torch.inference_mode():
        tables = _tables([[0, 1, 2]], [[2, 1, 0]])
        assert visits(tables, 0, 3).exactly(3)
        tables[0, 0, 2] = 1
        assert visits(tables, 0, 3) == (False, False, 2, 1)
        assert len(looked_up) == 2
        same = tables.clone()
        assert remember(same, tables) is same


def test_remembered_of_an_equal_tensor(looked_up):
    tables = _tables([[0, 1, 2]], [[2, 1, -1]])
    same = tables.clone()
    assert remember(same, tables) is same
    assert len(looked_up) == 2
    assert visits(same, 0, 3).exactly(3) and visits(same, 1, 3).pads
    assert len(looked_up) == 2
    same[1, 0, 2] = 0
    assert visits(same, 1, 3).exactly(3)
    assert visits(tables, 1, 3).pads


def _saved_and_loaded(tables: torch.Tensor) -> torch.Tensor:
    """As part of a checkpoint: what is known may not keep it from being loaded safely."""
    file = io.BytesIO()
    torch.save(tables, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, torch.clone, _saved_and_loaded])
@pytest.mark.parametrize("changes", [1, 2, 3])
def test_copies_are_looked_up_by_their_own_content(copied, changes):
    """A copy counts its changes from the beginning: what was known of the original at that count is not its content."""
    tables = _tables([[0, 1, 2]], [[2, 1, 0]])
    for change in range(changes):
        visits(tables, 0, 3)
        tables[0, 0, change] = -1
    assert visits(copied(tables), 0, 3).distinct == 3 - changes
