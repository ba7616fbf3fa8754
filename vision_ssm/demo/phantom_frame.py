"""What surrounds the organs of a phantom: skin, fat, muscle, ribs, spine, lungs and heart; and the painting itself."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .phantom_anatomy import Body, Organ, place
from .phantom_shapes import Ellipsoid, Floats, Space, distance, smooth_maximum, tube

__all__ = ["Canvas", "paint_bowel", "paint_frame", "paint_organ", "paint_skeleton"]

_ALL = (slice(None),) * 3
_AXIS = 34.0  # mm from the first lumbar vertebra's centre to the body's axis, forward
_WALL = 11.0  # mm of muscle around the cavity
_LEVEL = 35.0  # mm from a vertebra to the next


@dataclass
class Canvas:
    """A volume that is being painted.

    Attributes:
        density: (n_x, n_y, n_z), HU.
        labels: the same shape, uint8.
        room: millimetres beyond the abdominal cavity, negative in it.
        soft: width of a voxel in millimetres, over which two densities mix at a border.
    """

    density: Floats
    labels: NDArray[np.uint8]
    room: Floats
    soft: float

    def cover(self, distance: Floats, value: float | Floats, box: tuple[slice, ...] = _ALL) -> None:
        """Paint a density into a shape; voxels on its border get a part of it."""
        part = (np.float32(0.5) - distance / np.float32(self.soft)).clip(0, 1)
        self.density[box] += part * (value - self.density[box])

    def displace(self, distance: Floats, value: float, box: tuple[slice, ...] = _ALL) -> None:
        """`cover` that also takes the voxels from the organs that were there."""
        self.cover(distance, value, box)
        self.labels[box][distance < 0] = 0


def _outline(x: Floats, y: Floats, width: float, depth: float) -> Floats:
    """Distance along the radius to a superellipse of the fifth degree in halves: a body's cross-section."""
    square = (x / np.float32(width)) ** 2, (y / np.float32(depth)) ** 2
    level = (square[0] ** 1.25 + square[1] ** 1.25) ** 0.4 + np.float32(1e-6)
    return np.sqrt(x * x + y * y) * (1 - 1 / level)


def _ellipse(x: Floats, y: Floats, width: float, depth: float) -> Floats:
    """Distance to an ellipse around the origin, to first order."""
    u, v = x / np.float32(width), y / np.float32(depth)
    level = (u * u + v * v).clip(1e-6, None)
    return (level - np.sqrt(level)) / np.sqrt((u / width) ** 2 + (v / depth) ** 2 + np.float32(1e-12))


def paint_frame(canvas: Canvas, space: Space, body: Body) -> Floats:
    """Skin, fat, muscle, diaphragm, lungs and heart; sets the canvas's `room`.

    Returns:
        Millimetres beyond the inner side of the body's wall, for the ribs.
    """
    x, y, z, hu = space.x, space.y, space.z, body.density
    side, front, back = body.fat
    width, depth = body.cavity
    skin = _outline(x, y - np.float32(_AXIS + (front - back) / 2), width + side, depth + (front + back) / 2)
    canvas.cover(skin, 20.0)
    canvas.cover(skin + 2.5, hu["fat"])
    muscle = _outline(x, y - np.float32(_AXIS), width, depth)
    canvas.cover(muscle, hu["muscle"])
    wall = muscle + np.float32(_WALL)
    canvas.cover(wall, hu["fat"])
    domes = [
        np.float32(top) - 0.007 * (x - at) ** 2 - np.where(y < 50, 0.0105, 0.005).astype(np.float32) * (y - 50) ** 2
        for at, top in ((66.0, 112.0), (-66.0, 102.0))
    ]
    dome = np.maximum(domes[0], domes[1]).clip(-20, None)
    above = (z - dome) * np.float32(0.75)
    canvas.room = np.maximum(wall, above) + 3
    canvas.cover(np.maximum(wall, np.abs(above) - 2.5), hu["muscle"])
    lung = np.maximum(wall + 2, 2.5 - above)
    heart = [Ellipsoid((-18, 80, 142), (66, 46, 44))]
    middle = smooth_maximum(lung, -_ellipse(x + 2, y - 34, 34, 38), 8)
    middle = np.maximum(middle, -_ellipse(x, y + 50, 68, 26))  # behind the ribs are the back's muscles
    box, around = distance(space, heart)
    middle[box] = np.maximum(middle[box], -around - 3)
    canvas.cover(middle, hu["lung"])
    beats = np.maximum(around, 3 - above[box])
    canvas.cover(beats, hu["muscle"] + 45, box)
    canvas.cover(beats + 9, hu["blood"], box)
    for at in (1, -1):  # the back's muscles lie outside the cavity, the psoas in it
        for parts in (
            tube([(at * 22, 6, 8), (at * 38, 2, -60), (at * 46, 8, -175)], (4, 17, 27)),
            tube([(at * 14, 20, 78), (at * 13, 24, 20), (at * 12, 24, -30)], (4, 6, 4)),
            [Ellipsoid((at * 70, -26, -55), (26, 9, 70))],
        ):
            box, found = distance(space, parts)
            canvas.cover(found, hu["muscle"], box)
    return wall


def paint_bowel(canvas: Canvas, space: Space, body: Body, loops: Floats) -> None:
    """Loops of the small bowel between the zeros of a random field of unit variance, where the mesenteric fat is."""
    box, region = distance(space, [Ellipsoid((0, 78, -102), (104, 54, 94))])
    region = smooth_maximum(region, canvas.room[box], 5)
    fat = np.float32(0.12 + 0.012 * body.fat[1])
    loop = smooth_maximum((fat - np.abs(loops[box])) * 9, region, 6)
    canvas.cover(loop, body.density["bowel"] + 35, box)
    canvas.cover(loop + 4, body.density["bowel"] - 8, box)


def paint_organ(canvas: Canvas, space: Space, body: Body, organ: Organ, texture: Floats) -> None:
    """Paint an organ, with `texture` (unit variance) times the organ's own; those before it make room."""
    box, found = place(space, organ)
    if not found.size:
        return
    if organ.inside:
        found = smooth_maximum(found, canvas.room[box], 5)
    if organ.gap:
        lost = (found < organ.gap) & (canvas.labels[box] > 0)
        canvas.labels[box][lost] = 0
        rim = np.where(lost, found - np.float32(organ.gap), np.float32(canvas.soft))
        canvas.cover(rim, body.density["fat"], box)
    value = np.float32(body.density[organ.density]) + np.float32(organ.texture) * texture[box]
    canvas.cover(found, value, box)
    canvas.labels[box][found < 0] = organ.label


def _paint_ribs(canvas: Canvas, space: Space, body: Body, wall: Floats) -> None:
    """Ribs run down to the front within the wall, as far as the costal arch; their front ends are cartilage."""
    x, y, z = space.x, space.y, space.z
    pitch = np.float32(27.0)
    slope = np.float32(0.5)
    level = z + slope * (y + 30) - 20
    offset = (level - pitch * np.round(level / pitch)) * np.float32(0.9)
    arch = -26 + 1.15 * (y - 40).clip(0, None)
    rib = np.sqrt((wall - 5) ** 2 + (offset * 0.7) ** 2) - np.float32(4.6)
    rib = np.maximum(rib, np.maximum((arch - z) * 0.6, -10 - level))
    rib = np.maximum(rib, 14 - np.abs(x))
    cartilage = y > 98
    canvas.cover(rib, np.where(cartilage, np.float32(110), np.float32(body.density["cortex"] * 0.9)))
    canvas.cover(np.where(cartilage, 10, rib + 2.6).astype(np.float32), body.density["marrow"])


def paint_skeleton(canvas: Canvas, space: Space, body: Body, wall: Floats) -> None:
    """Ribs, the spine with its canal, the muscles of the back and the iliac crests."""
    hu = body.density
    _paint_ribs(canvas, space, body, wall)
    for at in (1, -1):
        crest = Ellipsoid((at * 62, 14, -190), (64, 62, 78))
        box, found = distance(space, [crest])
        bone = np.maximum(np.abs(found) - 4.5, np.maximum(space.y[box] - 26, 60 - at * space.x[box]))
        canvas.displace(bone, hu["cortex"] * 0.8, box)
        canvas.cover(bone + 2.5, hu["marrow"], box)
        box, found = distance(space, [Ellipsoid((at * 35, -44, 0), (30, 18, 600))])
        canvas.displace(found, hu["muscle"], box)
    reach = 250.0  # beyond any field of view
    box = space.box((-66, -76, -reach), (66, 26, reach))
    x, y, z = space.x[box], space.y[box], space.z[box]
    level = z - np.float32(_LEVEL) * np.round(z / np.float32(_LEVEL))  # from the middle of the next vertebra
    height = np.abs(level)
    column = _ellipse(x, y, 24, 18)
    canvas.displace(column, hu["disc"], box)
    vertebra = np.maximum(column + 0.004 * (15 - height) ** 2, height - 14)
    canvas.cover(vertebra, hu["cortex"], box)
    canvas.cover(vertebra + 2.5, hu["marrow"], box)
    arch = np.maximum(np.abs(_ellipse(x, y + 27, 15, 12)) - 3.5, height - 11)
    spine = np.maximum(_ellipse(x, y + 54, 4, 18), height - 8 + 0.2 * (y + 40))
    side = np.maximum(_ellipse(np.abs(x) - 30, y + 24, 18, 4.5), height - 6)
    bone = np.minimum(np.minimum(arch, spine), side)
    canvas.displace(bone, hu["cortex"] * 0.75, box)
    canvas.displace(_ellipse(x, y + 27, 11.5, 8.5), 35.0, box)
