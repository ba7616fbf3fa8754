"""Scan paths: in which order the tokens of a 2D or 3D grid are visited.

A `ScanPath` is a small immutable value that knows no grid; `order(grid)` gives the visited tokens for one. Tokens are
numbered in row-major order of the grid, and -1 is a pad: a step that reads zeros and writes nowhere.

    >>> Window(2).order((4, 4))[:8]
    array([0, 1, 4, 5, 2, 3, 6, 7])
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

__all__ = [
    "Atrous",
    "Axes",
    "Hilbert",
    "Middle",
    "Restored",
    "Reversed",
    "ScanPath",
    "Window",
    "Zigzag",
    "bidirectional",
    "column",
    "cross",
    "parse",
    "row",
]

Grid = Sequence[int]


class ScanPath(ABC):
    """An order of visiting the tokens of a grid. Equal by value, hashable, and written as text by `str`."""

    @abstractmethod
    def order(self, grid: Grid) -> np.ndarray:
        """The token read at each step, (steps,) int64, -1 for a pad.

        Raises:
            ValueError: the path does not fit a grid of this shape.
        """

    def restore(self, grid: Grid) -> np.ndarray:
        """The token written at each step; the one that was read, unless the path says otherwise."""
        return self.order(grid)

    def steps(self, grid: Grid) -> int:
        """Number of steps in a grid of this shape."""
        return math.prod(grid)

    def inverse(self, grid: Grid) -> np.ndarray:
        """The step at which each token is read, (tokens,) int64, -1 for a token that is not visited."""
        order = self.order(grid)
        steps = np.full(math.prod(grid), -1)
        real = np.flatnonzero(order >= 0)
        steps[order[real]] = real
        return steps

    def reversed(self) -> "ScanPath":
        """The same steps from the last to the first, pads included."""
        return self.path if isinstance(self, Reversed) else Reversed(self)

    def plot(self, grid: Grid, ax=None):
        """Draw the order on a 2D or 3D grid, from dark to bright; returns the matplotlib axes.

        Raises:
            ImportError: matplotlib is missing (`pip install vision-ssm[cli]`).
        """
        from .plot import plot

        return plot(self, grid, ax)

    def __str__(self) -> str:
        def text(value) -> str:
            return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

        values = (text(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not None)
        return f"{type(self).__name__.lower()}({','.join(values)})"


def _numbered(grid: Grid) -> np.ndarray:
    if len(grid) not in (1, 2, 3) or min(grid) < 1:
        raise ValueError(f"`grid` is {tuple(grid)}: expected one to three positive sizes")
    return np.arange(math.prod(grid)).reshape(tuple(grid))


def _per_axis(size: int | tuple[int, ...], grid: Grid, name: str) -> tuple[int, ...]:
    sizes = (size,) * len(grid) if isinstance(size, int) else size
    if len(sizes) != len(grid):
        raise ValueError(f"`{name}` is {size}: expected one number or {len(grid)}, for a grid of {tuple(grid)}")
    return sizes


@dataclass(frozen=True)
class Axes(ScanPath):
    """Line after line; `axes` names the grid's axes from the slowest to the fastest, row-major if None."""

    axes: tuple[int, ...] | None = None

    def order(self, grid: Grid) -> np.ndarray:
        tokens = _numbered(grid)
        if self.axes is None:
            return tokens.reshape(-1)
        if sorted(self.axes) != list(range(len(grid))):
            raise ValueError(f"axes {self.axes} do not fit a grid of {tuple(grid)}: expected each of its axes once")
        return tokens.transpose(self.axes).reshape(-1)


def row() -> Axes:
    """Row-major: the last axis runs fastest."""
    return Axes()


def column() -> Axes:
    """Column by column of a 2D grid: the first axis runs fastest."""
    return Axes((1, 0))


@dataclass(frozen=True)
class Window(ScanPath):
    """Non-overlapping windows in row-major order, row-major inside each (LocalMamba, arXiv 2403.09338).

    The grid is padded at its end to multiples of `size`; the pads are steps of the scan.
    """

    size: int | tuple[int, ...]

    def __post_init__(self):
        if isinstance(self.size, tuple) and len(self.size) == 1:  # one way to write it, so that equals are equal
            object.__setattr__(self, "size", self.size[0])

    def _counts(self, grid: Grid) -> list[tuple[int, int]]:
        sizes = _per_axis(self.size, grid, "size")
        if min(sizes) < 1:
            raise ValueError(f"`size` is {self.size}: expected at least 1")
        return [(-(-n // w), w) for n, w in zip(grid, sizes, strict=True)]

    def steps(self, grid: Grid) -> int:
        return math.prod(count * w for count, w in self._counts(grid))

    def order(self, grid: Grid) -> np.ndarray:
        counts = self._counts(grid)
        pads = [(0, count * w - n) for n, (count, w) in zip(grid, counts, strict=True)]
        tokens = np.pad(_numbered(grid), pads, constant_values=-1)
        windows = tokens.reshape([n for pair in counts for n in pair])
        inner = range(1, 2 * len(grid), 2)
        return windows.transpose([*range(0, 2 * len(grid), 2), *inner]).reshape(-1)


@dataclass(frozen=True)
class Zigzag(ScanPath):
    """Continuous: every second line backwards, so that each step goes to a neighbour (PlainMamba, ZigMa)."""

    axes: tuple[int, ...] | None = None

    def order(self, grid: Grid) -> np.ndarray:
        tokens = _numbered(grid)
        if self.axes is not None:
            tokens = Axes(self.axes).order(grid).reshape([grid[a] for a in self.axes])
        for axis in range(1, tokens.ndim):
            lines = tokens.reshape(-1, *tokens.shape[axis:]).copy()
            lines[1::2] = lines[1::2, ::-1].copy()
            tokens = lines.reshape(tokens.shape)
        return tokens.reshape(-1)


@dataclass(frozen=True)
class Hilbert(ScanPath):
    """Hilbert curve of the smallest enclosing power-of-two cube, tokens outside the grid left out.

    Continuous on power-of-two squares and cubes. Algorithm: J. Skilling, Programming the Hilbert curve, AIP 2004.
    """

    def order(self, grid: Grid) -> np.ndarray:
        tokens = _numbered(grid)
        bits = max(1, (max(grid) - 1).bit_length())
        x = np.indices(grid).reshape(len(grid), -1)
        # To Skilling's transposed index: undo the rotations and reflections of each level, then Gray-decode.
        level = 1 << (bits - 1)
        while level > 1:
            low = level - 1
            for i in range(len(grid)):
                high = (x[i] & level) != 0
                exchanged = (x[0] ^ x[i]) & low  # nothing for i = 0
                x[0] ^= np.where(high, low, exchanged)
                if i > 0:
                    x[i] ^= np.where(high, 0, exchanged)
            level >>= 1
        for i in range(1, len(grid)):
            x[i] ^= x[i - 1]
        decode = np.zeros_like(x[0])
        level = 1 << (bits - 1)
        while level > 1:
            decode = np.where(x[-1] & level, decode ^ (level - 1), decode)
            level >>= 1
        x = x ^ decode
        distance = np.zeros_like(x[0])
        for bit in range(bits - 1, -1, -1):
            for axis in x:
                distance = distance << 1 | (axis >> bit & 1)
        return tokens.reshape(-1)[np.argsort(distance)]


@dataclass(frozen=True)
class Atrous(ScanPath):
    """Every `step`-th token of each axis (EfficientVMamba, arXiv 2403.09977).

    With an `offset` for each axis: that one sub-grid, in row-major order. Without: all sub-grids, one after another.
    """

    step: int
    offset: tuple[int, ...] | None = None

    def _offsets(self, grid: Grid) -> list[tuple[int, ...]]:
        if self.step < 1:
            raise ValueError(f"`step` is {self.step}: expected at least 1")
        if self.offset is None:
            return list(np.ndindex(*(min(self.step, n) for n in grid)))
        if len(self.offset) != len(grid) or not all(0 <= o < n for o, n in zip(self.offset, grid, strict=True)):
            raise ValueError(f"`offset` is {self.offset}: expected a token of the grid {tuple(grid)}")
        return [self.offset]

    def steps(self, grid: Grid) -> int:
        if self.offset is None:
            return math.prod(grid)
        return math.prod(-(-(n - o) // self.step) for n, o in zip(grid, self.offset, strict=True))

    def order(self, grid: Grid) -> np.ndarray:
        tokens = _numbered(grid)
        parts = [tokens[tuple(slice(o, None, self.step) for o in offset)] for offset in self._offsets(grid)]
        return np.concatenate([part.reshape(-1) for part in parts])


@dataclass(frozen=True)
class Reversed(ScanPath):
    """Another path from its last step to its first."""

    path: ScanPath

    def order(self, grid: Grid) -> np.ndarray:
        return self.path.order(grid)[::-1]

    def restore(self, grid: Grid) -> np.ndarray:
        return self.path.restore(grid)[::-1]

    def steps(self, grid: Grid) -> int:
        return self.path.steps(grid)


@dataclass(frozen=True)
class Restored(ScanPath):
    """A permutation whose outputs are put back by applying it a second time instead of its inverse.

    LocalMamba's code restores its vertical scans so. On square grids that is the inverse; on others the outputs are
    scrambled, and weights that were trained on non-square images depend on it.
    """

    path: ScanPath

    def order(self, grid: Grid) -> np.ndarray:
        return self.path.order(grid)

    def restore(self, grid: Grid) -> np.ndarray:
        return self.path.inverse(grid)

    def steps(self, grid: Grid) -> int:
        return self.path.steps(grid)


@dataclass(frozen=True)
class Middle(ScanPath):
    """A path of a grid whose n tokens stand around a class token at index n // 2; it is visited at step n // 2."""

    path: ScanPath

    def _insert(self, order: np.ndarray, grid: Grid) -> np.ndarray:
        middle = math.prod(grid) // 2
        if len(order) < middle:
            raise ValueError(
                f"{self.path} has {len(order)} steps in a grid of {tuple(grid)}: expected at least {middle}"
            )
        return np.insert(order + (order >= middle), middle, middle)

    def order(self, grid: Grid) -> np.ndarray:
        return self._insert(self.path.order(grid), grid)

    def restore(self, grid: Grid) -> np.ndarray:
        return self._insert(self.path.restore(grid), grid)

    def steps(self, grid: Grid) -> int:
        return self.path.steps(grid) + 1


def bidirectional(path: ScanPath | None = None) -> tuple[ScanPath, ScanPath]:
    """A path and its reverse; row-major by default."""
    path = row() if path is None else path
    return path, path.reversed()


def cross(dims: int = 2) -> tuple[ScanPath, ...]:
    """Along each axis and back: rows, columns, reversed rows, reversed columns (VMamba); six paths in 3D."""
    if dims == 2:
        forward: list[ScanPath] = [row(), column()]
    else:  # the fastest axis goes from the last to the first
        forward = [Axes(tuple(a for a in range(dims) if a != fast) + (fast,)) for fast in range(dims - 1, -1, -1)]
    return (*forward, *(path.reversed() for path in forward))


_KINDS = {kind.__name__.lower(): kind for kind in (Axes, Window, Zigzag, Hilbert, Atrous, Reversed, Restored, Middle)}


def parse(text: str) -> ScanPath:
    """The path that `str` wrote: `parse(str(path)) == path`.

    Raises:
        ValueError: not the text of a path.
    """
    name, _, rest = text.partition("(")
    if name not in _KINDS or not rest.endswith(")"):
        raise ValueError(f"{text!r} is no scan path: expected one of {', '.join(_KINDS)} with arguments in parentheses")
    inner = rest[:-1]
    if name in ("reversed", "restored", "middle"):
        return _KINDS[name](parse(inner))
    numbers = [tuple(map(int, field.split())) for field in inner.split(",") if field]
    if name in ("axes", "zigzag"):
        return _KINDS[name](*numbers)
    return _KINDS[name](*(n[0] if i == 0 and len(n) == 1 else n for i, n in enumerate(numbers)))
