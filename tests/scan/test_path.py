"""Scan paths: what every path keeps, and the orders that papers and their code define, written out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vision_ssm.scan import (
    Atrous,
    Axes,
    Hilbert,
    Middle,
    Restored,
    Reversed,
    ScanPath,
    Window,
    Zigzag,
    bidirectional,
    column,
    cross,
    parse,
    row,
)

GRIDS = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@st.composite
def paths_and_grids(draw) -> tuple[ScanPath, tuple[int, ...]]:
    """A path of any kind and a grid that it fits."""
    grid = draw(GRIDS)
    axes = st.none() | st.permutations(range(len(grid))).map(tuple)
    size = st.integers(1, 5) | st.tuples(*[st.integers(1, 5)] * len(grid))
    offset = st.none() | st.tuples(*[st.integers(0, n - 1) for n in grid])
    whole = st.builds(Axes, axes) | st.builds(Zigzag, axes) | st.just(Hilbert()) | st.builds(Atrous, st.integers(1, 4))
    path = draw(whole | st.builds(Window, size) | st.builds(Atrous, st.integers(1, 4), offset))
    for wrap in draw(st.lists(st.sampled_from([ScanPath.reversed, Middle, Restored]), max_size=3)):
        if wrap is Middle and (
            _middle(path) or path.steps(grid) < math.prod(grid)
        ):  # one class token, amid a whole grid
            continue
        if wrap is Restored and (path.steps(grid) != math.prod(grid) or _middle(path)):  # it is for permutations
            continue
        path = wrap(path)
    return path, grid


def _middle(path: ScanPath) -> bool:
    return isinstance(path, Middle) or (hasattr(path, "path") and _middle(path.path))


def _leaf(path: ScanPath) -> ScanPath:
    return _leaf(path.path) if hasattr(path, "path") else path


def _tokens(path: ScanPath, grid) -> int:
    return math.prod(grid) + _middle(path)


@settings(max_examples=100)
@given(paths_and_grids())
def test_tokens_are_visited_once(case):
    path, grid = case
    order = path.order(grid)
    real = order[order >= 0]
    assert (order >= -1).all() and len(set(real.tolist())) == len(real)
    leaf = _leaf(path)
    if isinstance(leaf, Atrous) and leaf.offset is not None:
        starts = [range(o, n, leaf.step) for o, n in zip(leaf.offset, grid, strict=True)]
        assert len(real) == math.prod(map(len, starts)) + _middle(path)
    else:
        assert sorted(real.tolist()) == list(range(_tokens(path, grid)))
    assert (len(order) == len(real)) or isinstance(leaf, Window)


@settings(max_examples=100)
@given(paths_and_grids())
def test_steps_are_those_of_the_order(case):
    path, grid = case
    assert path.steps(grid) == len(path.order(grid)) == len(path.restore(grid))


@settings(max_examples=100)
@given(paths_and_grids())
def test_inverse(case):
    path, grid = case
    assume(not _middle(path))  # whose token is none of the grid
    order, inverse = path.order(grid), path.inverse(grid)
    assert inverse.shape == (math.prod(grid),)
    visited = np.flatnonzero(inverse >= 0)
    assert (order[inverse[visited]] == visited).all()
    real = np.flatnonzero(order >= 0)
    assert (inverse[order[real]] == real).all() and len(visited) == len(real)


@settings(max_examples=100)
@given(paths_and_grids())
def test_reversed(case):
    path, grid = case
    backward = path.reversed()
    assert (backward.order(grid) == path.order(grid)[::-1]).all()
    assert (backward.restore(grid) == path.restore(grid)[::-1]).all()
    assert backward.reversed() == path and backward != path


@settings(max_examples=100)
@given(paths_and_grids())
@example((Window((2,)), (4,)))
def test_text(case):
    path, _ = case
    again = parse(str(path))
    assert again == path and hash(again) == hash(path) and str(again) == str(path)
    assert len({path, again, path.reversed()}) == 2


@pytest.mark.parametrize(
    "text", ["", "row", "row()", "window(", "window)", "window(x)", "spiral(2)", "reversed(spiral())"]
)
def test_no_path(text):
    with pytest.raises(ValueError):
        parse(text)


def test_paths_are_immutable():
    with pytest.raises(AttributeError):
        Window(2).size = 3


WINDOWS_OF_2 = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_localmamba_directions():
    assert row().order((4, 4)).tolist() == list(range(16))
    assert column().order((4, 4)).tolist() == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    assert Window(2).order((4, 4)).tolist() == WINDOWS_OF_2
    assert Window(2).reversed().order((4, 4)).tolist() == WINDOWS_OF_2[::-1]
    assert column().order((2, 3)).tolist() == [0, 3, 1, 4, 2, 5]


def test_windows_are_padded_at_the_bottom_and_right():
    assert Window(2).order((3, 3)).tolist() == [0, 1, 3, 4, 2, -1, 5, -1, 6, 7, -1, -1, 8, -1, -1, -1]
    assert Window(2).reversed().order((3, 3))[:4].tolist() == [-1, -1, -1, 8]  # the zeros come first
    assert Window(2).steps((7, 7)) == 64 and Window(7).steps((14, 14)) == 196
    assert Window((1, 3)).order((2, 4)).tolist() == [0, 1, 2, 3, -1, -1, 4, 5, 6, 7, -1, -1]
    assert Window(7).order((2, 2)).tolist()[:9] == [0, 1, -1, -1, -1, -1, -1, 2, 3]


def test_windows_in_3d():
    order = Window(2).order((4, 4, 4))
    assert order[:8].tolist() == [0, 1, 4, 5, 16, 17, 20, 21] and order[8:10].tolist() == [2, 3]


def test_vmamba_cross_scan():
    assert [path.order((2, 3)).tolist() for path in cross()] == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_cross_scan_in_3d():
    """Along each axis of a volume and back."""
    paths, grid = cross(3), (2, 3, 4)
    assert len(paths) == len(set(paths)) == 6
    strides = [path.order(grid)[1] - path.order(grid)[0] for path in paths]
    assert sorted(map(abs, strides)) == [1, 1, 4, 4, 12, 12]
    assert [path.order(grid)[0] for path in paths] == [0, 0, 0, 23, 23, 23]
    assert [path.reversed() for path in paths[:3]] == list(paths[3:])


def test_bidirectional():
    assert bidirectional() == (row(), row().reversed())
    assert bidirectional(column()) == (column(), column().reversed())


def _jumps(path: ScanPath, grid) -> np.ndarray:
    """Distance of each step, counted along the axes."""
    places = np.stack(np.unravel_index(path.order(grid), grid), 1)
    return np.abs(np.diff(places, axis=0)).sum(1)


@given(GRIDS, st.data())
def test_zigzag_goes_to_neighbours(grid, data):
    axes = data.draw(st.none() | st.permutations(range(len(grid))).map(tuple))
    assert (_jumps(Zigzag(axes), grid) == 1).all()


def test_zigzag_order():
    assert Zigzag().order((3, 3)).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert Zigzag((1, 0)).order((3, 3)).tolist() == [0, 3, 6, 7, 4, 1, 2, 5, 8]


@pytest.mark.parametrize(
    "grid", [(n,) * d for d, most in ((1, 5), (2, 5), (3, 3)) for n in (2**i for i in range(most))], ids=str
)
def test_hilbert_goes_to_neighbours(grid):
    assert (_jumps(Hilbert(), grid) == 1).all()


@pytest.mark.parametrize("grid", [(8, 8), (4, 4, 4), (16, 16)], ids=str)
def test_hilbert_stays_in_each_block(grid):
    """It leaves no block of 2, 4, 8, ... before it has seen all of it: this is what makes it local."""
    places = np.stack(np.unravel_index(Hilbert().order(grid), grid), 1)
    size = 2
    while size < grid[0]:
        blocks = [tuple(place) for place in places // size]
        runs = [block for block, _ in itertools.groupby(blocks)]
        assert len(runs) == len(set(runs)) == (grid[0] // size) ** len(grid)
        size *= 2


def test_hilbert_leaves_tokens_outside_the_grid_out():
    full, inner = Hilbert().order((8, 8)), Hilbert().order((5, 7))
    rows, columns = np.divmod(full, 8)
    inside = (rows < 5) & (columns < 7)
    assert (inner == rows[inside] * 7 + columns[inside]).all()


@given(GRIDS, st.integers(1, 4))
def test_atrous_sub_grids_are_a_partition(grid, step):
    offsets = list(np.ndindex(*(min(step, n) for n in grid)))
    parts = [Atrous(step, offset).order(grid) for offset in offsets]
    assert (np.concatenate(parts) == Atrous(step).order(grid)).all()
    assert sorted(np.concatenate(parts).tolist()) == list(range(math.prod(grid)))


def test_atrous_order():
    assert Atrous(2).order((4, 4)).tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    assert Atrous(2, (1, 0)).order((3, 3)).tolist() == [3, 5]


def test_middle():
    """LocalMamba's class token: at index n // 2 of the sequence, and at step n // 2 of every scan."""
    assert Middle(row()).order((2, 3)).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert Middle(column()).order((2, 3)).tolist() == [0, 4, 1, 3, 5, 2, 6]
    assert Middle(column().reversed()).order((3, 3)).tolist() == [9, 6, 2, 8, 4, 5, 1, 7, 3, 0]
    assert Middle(Restored(column())).restore((2, 3)).tolist() == [0, 2, 5, 3, 1, 4, 6]


def test_restored_applies_the_permutation_twice():
    """The reference rearranges "(h w) -> (w h)" a second time: on non-square grids not the inverse."""
    path, grid = Restored(column()), (2, 3)
    assert (path.order(grid) == column().order(grid)).all()
    scanned = np.array(list("abcdef"))[path.order(grid)]
    ours = np.empty(6, dtype=scanned.dtype)
    ours[path.restore(grid)] = scanned
    again = scanned.reshape(2, 3).T.reshape(-1)
    assert (ours == again).all() and "".join(ours) != "abcdef"
    assert (Restored(column()).restore((4, 4)) == column().order((4, 4))).all()
    backward = Reversed(path)
    assert (backward.restore(grid) == path.restore(grid)[::-1]).all()


NO_FIT = [
    (Axes((1, 0)), (3,)),
    (Axes((0, 0)), (3, 3)),
    (Axes((0, 2, 1)), (3, 3)),
    (Zigzag((1, 0)), (2, 2, 2)),
    (Window((2, 2)), (4,)),
    (Window(0), (4, 4)),
    (Window(-2), (4, 4)),
    (Atrous(0), (4, 4)),
    (Atrous(2, (1,)), (4, 4)),
    (Atrous(2, (4, 0)), (4, 4)),
    (Atrous(2, (-1, 0)), (4, 4)),
    (row(), (2, 2, 2, 2)),
    (row(), (0, 3)),
    (row(), ()),
    (Hilbert(), (2, -1)),
    (Middle(Reversed(Axes((1, 0)))), (3,)),
]


@pytest.mark.parametrize(("path", "grid"), NO_FIT, ids=str)
def test_a_path_that_does_not_fit(path, grid):
    with pytest.raises(ValueError):
        path.order(grid)


@pytest.mark.parametrize(
    ("path", "grid"), [(Window(2), (3, 3)), (Zigzag(), (2, 3, 2)), (Reversed(row()), (1, 1))], ids=str
)
def test_plot(path, grid):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    ax = path.plot(grid)
    assert isinstance(ax, plt.Axes) and ax.get_title() == str(path)
    real = int((path.order(grid) >= 0).sum())
    assert len(ax.lines) == real - 1
    assert path.plot(grid, ax) is ax
    plt.close("all")
    with pytest.raises(ValueError, match="`grid` is"):
        row().plot((3,))
