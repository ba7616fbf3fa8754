"""Smooth implicit shapes in millimetres: ellipsoids and tubes, smooth unions, and smooth random fields.

A shape is its signed distance, negative inside; distances of ellipsoids are those of first order
(Taubin, "Distance approximations for rasterizing implicit curves", ACM Trans. Graphics 13, 1994).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

__all__ = ["Ellipsoid", "Segment", "Space", "distance", "rotation", "smooth_maximum", "smooth_noise", "tube"]

Floats = NDArray[np.float32]
Box = tuple[slice, slice, slice]
_FAR = 1e3  # mm, of what lies beyond a shape's box


def rotation(degrees: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrix (3, 3): by the three angles about x, y and z, in this order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(np.asarray(degrees, dtype=np.float64))):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


@dataclass(frozen=True)
class Space:
    """Where the voxels of a volume lie in the body.

    Attributes:
        x, y, z: (n_x, n_y, n_z) each, millimetres in the body's own, deformed frame.
        to_voxels: (4, 4), from the frame before its deformation to voxel indices.
        slack: how far the deformation moves a point, millimetres.
    """

    x: Floats
    y: Floats
    z: Floats
    to_voxels: NDArray[np.float64]
    slack: float

    def box(self, low: ArrayLike, high: ArrayLike) -> Box:
        """Voxels that may lie between two corners in millimetres; empty outside the volume."""
        low, high = np.asarray(low) - self.slack, np.asarray(high) + self.slack
        corners = np.array(np.meshgrid(*zip(low, high), indexing="ij")).reshape(3, 8)
        voxels = self.to_voxels[:3, :3] @ corners + self.to_voxels[:3, 3:]
        first = np.clip(np.floor(voxels.min(1)), 0, self.x.shape).astype(int)
        last = np.clip(np.ceil(voxels.max(1)) + 1, first, self.x.shape).astype(int)
        return tuple(slice(int(a), int(b)) for a, b in zip(first, last))


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and radii in millimetres, and the matrix that turns it about its centre."""

    centre: ArrayLike
    radii: ArrayLike
    turn: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner of the box around it."""
        reach = np.sqrt(((self.turn * np.asarray(self.radii)) ** 2).sum(1))
        return np.asarray(self.centre) - reach, np.asarray(self.centre) + reach

    def __call__(self, x: Floats, y: Floats, z: Floats) -> Floats:
        offset = [axis - np.float32(at) for axis, at in zip((x, y, z), np.asarray(self.centre))]
        level, slope = np.zeros_like(x), np.zeros_like(x)
        for column, radius in zip(self.turn.T.astype(np.float32), np.asarray(self.radii, dtype=np.float32)):
            along = sum(weight * part for weight, part in zip(column, offset)) / radius
            level += along * along
            slope += (along / radius) ** 2
        level = level.clip(1e-6, None)  # in the very centre the slope vanishes
        return (level - np.sqrt(level)) / np.sqrt(slope + np.float32(1e-12))


@dataclass(frozen=True)
class Segment:
    """A ball that moves from one point to another and changes its radius on the way, in millimetres."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    radii: tuple[float, float]

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner of the box around it."""
        reach = max(self.radii)
        return np.minimum(self.start, self.end) - reach, np.maximum(self.start, self.end) + reach

    def __call__(self, x: Floats, y: Floats, z: Floats) -> Floats:
        axis = (self.end - self.start).astype(np.float32)
        offset = [part - np.float32(at) for part, at in zip((x, y, z), self.start)]
        way = sum(a * o for a, o in zip(axis, offset)) / np.float32(axis @ axis)
        way = way.clip(0, 1)
        square = sum((o - way * a) ** 2 for a, o in zip(axis, offset))
        return np.sqrt(square) - (np.float32(self.radii[0]) + way * np.float32(self.radii[1] - self.radii[0]))


Part = Ellipsoid | Segment


def tube(points: ArrayLike, radii: ArrayLike, pieces: int = 4) -> list[Part]:
    """A tube along the Catmull-Rom curve through points.

    Args:
        points: (n, 3), millimetres, n at least 2.
        radii: (n,), millimetres.
        pieces: straight pieces between two points.
    """
    knots = np.column_stack([np.asarray(points, dtype=np.float64), np.asarray(radii, dtype=np.float64)])
    ends = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = np.linspace(0, 1, pieces, endpoint=False)[:, None]
    curve = [
        b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
        for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:])
    ]
    path = np.vstack([*curve, knots[-1:]])
    return [Segment(a[:3], b[:3], (float(a[3]), float(b[3]))) for a, b in pairwise(path)]


def _smooth_minimum(a: Floats, b: Floats, blend: float) -> Floats:
    if blend <= 0:
        return np.minimum(a, b)
    near = (1 - np.abs(a - b) / np.float32(blend)).clip(0, None)
    return np.minimum(a, b) - near * near * np.float32(blend / 4)


def smooth_maximum(a: Floats, b: Floats, blend: float) -> Floats:
    """Intersection of two shapes whose common edge is rounded over about `blend` millimetres."""
    return -_smooth_minimum(-a, -b, blend)


def distance(space: Space, parts: Sequence[Part], blend: float = 0.0, margin: float = 12.0) -> tuple[Box, Floats]:
    """Distance to the union of shapes, with the seams filled over about `blend` millimetres.

    Returns:
        The box of voxels that lie within `margin` millimetres of the shapes, and the distance in it.
    """
    bounds = [part.bounds() for part in parts]
    margin += blend
    box = space.box(np.min([low for low, _ in bounds], 0) - margin, np.max([high for _, high in bounds], 0) + margin)
    whole = np.full([s.stop - s.start for s in box], _FAR, dtype=np.float32)
    for part, (low, high) in zip(parts, bounds):
        inner = space.box(low - margin, high + margin)
        here = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, box))
        found = part(space.x[inner], space.y[inner], space.z[inner])
        whole[here] = _smooth_minimum(whole[here], found, blend)
    return box, whole


def smooth_noise(rng: Generator, shape: Sequence[int], cells: ArrayLike) -> Floats:
    """A random field of mean 0 and about unit variance: a cubic B-spline over a lattice of normal numbers.

    Args:
        rng: where the numbers come from.
        shape: (n_x, n_y, n_z).
        cells: of the lattice along each axis, at least 1 (need not be whole).
    """
    cells = np.maximum(np.asarray(cells, dtype=np.float64), 1)
    noise = rng.standard_normal([int(np.ceil(c)) + 3 for c in cells], dtype=np.float32) * 3  # the spline leaves a third
    for axis, (number, count) in enumerate(zip(shape, cells)):
        at = (np.arange(number) + 0.5) / number * count
        first = np.minimum(at.astype(int), noise.shape[axis] - 4)
        t = at - first
        weights = np.zeros((number, noise.shape[axis]), dtype=np.float32)
        spline = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        for k, weight in enumerate(spline):
            weights[np.arange(number), first + k] = weight / 6
        # einsum rather than a matrix product: its sums do not depend on the number of threads.
        noise = np.moveaxis(np.einsum("ij,j...->i...", weights, np.moveaxis(noise, axis, 0)), 0, axis)
    return np.ascontiguousarray(noise)
