"""The organs of an abdominal phantom: where they lie in an adult, how large they are, and how patients differ.

Phantoms are drawn, not scanned: positions, sizes and densities are typical of an adult in the portal venous phase, but
no patient is behind them, and nothing clinical follows from them.

The body's frame is in millimetres: x to the patient's right, y to the front, z to the head (the axes of NIfTI's RAS+),
with its origin in the centre of the first lumbar vertebra.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from .phantom_shapes import Ellipsoid, Floats, Part, Space, distance, rotation, smooth_maximum, tube

__all__ = ["DENSITIES", "Body", "Organ", "draw_patient", "organs", "place"]

# Hounsfield units: mean, and the standard deviation between patients.
DENSITIES = dict(
    fat=(-105, 5), muscle=(58, 5), lung=(-850, 25), marrow=(190, 40), cortex=(560, 60), disc=(85, 8), gas=(-950, 0),
    bowel=(38, 8), blood=(148, 12), aorta=(158, 14), veins=(142, 10), portal=(168, 12), spleen=(120, 9),
    cortex_renal=(200, 14), medulla_renal=(165, 14), bile=(8, 4), oesophagus=(52, 6), liver=(108, 10), wall=(75, 7),
    contents=(22, 10), pancreas=(96, 8), adrenal=(72, 6),
)  # fmt: skip


def _normal(rng: Generator, deviation: float, size: int | tuple[int, ...] = ()) -> NDArray[np.float64]:
    """Normal numbers of mean 0 without the tails, for nobody's organs lie outside the body."""
    return np.clip(rng.normal(0, deviation, size), -2 * deviation, 2 * deviation)


@dataclass(frozen=True)
class Organ:
    """One thing to paint over what lies there already.

    Attributes:
        parts: its shapes, millimetres.
        density: a key of `DENSITIES`.
        label: of BTCV; 0 for what BTCV does not label.
        blend: millimetres over which seams between the parts are filled.
        gap: millimetres of fat between it and the organs before it.
        texture: standard deviation of its smooth inhomogeneity, HU.
        shape: changes its distance, given its coordinates in millimetres and the distance.
        inside: whether it is kept within the abdominal cavity.
    """

    parts: list[Part]
    density: str
    label: int = 0
    blend: float = 0.0
    gap: float = 0.0
    texture: float = 4.0
    shape: Callable[[Floats, Floats, Floats, Floats], Floats] | None = None
    inside: bool = True


@dataclass(frozen=True)
class Body:
    """What a patient is like: how its organs vary, its habitus and its densities.

    Attributes:
        scale: of the body along x, y and z.
        fat: thickness beneath the skin at the sides, the front and the back, millimetres.
        cavity: half width and half depth of the body within its fat, millimetres.
        density: HU of each key of `DENSITIES`.
        food: part of the stomach's lumen that is not gas.
        jitter: random numbers of the organs' positions, one call an organ.
    """

    scale: NDArray[np.float64]
    fat: tuple[float, float, float]
    cavity: tuple[float, float]
    density: dict[str, float]
    food: float
    jitter: Generator

    def shift(self, deviation: float = 3.0, points: int | None = None) -> NDArray[np.float64]:
        """A random displacement (3,), or one for each of some points, in millimetres."""
        size = (3,) if points is None else (points, 3)
        return _normal(self.jitter, deviation, size)

    def size(self, deviation: float = 0.06) -> float:
        """A random factor about 1."""
        return float(np.exp(_normal(self.jitter, deviation)))

    def tilt(self, degrees: ArrayLike, deviation: float = 5.0) -> NDArray[np.float64]:
        """A rotation by about the angles, with a random part."""
        return rotation(np.asarray(degrees) + _normal(self.jitter, deviation, 3))


def draw_patient(rng: Generator) -> Body:
    """A random patient: from slim to obese, of either sex, contrast early or late in the portal venous phase."""
    obese = rng.beta(1.6, 2.4)
    late = float(_normal(rng, 1))
    density = {key: mean + float(_normal(rng, sd)) for key, (mean, sd) in DENSITIES.items()}
    for key in ("aorta", "cortex_renal", "spleen"):  # they fade together while the liver stays
        density[key] -= 5 * late
    return Body(
        scale=1 + _normal(rng, 0.03) + _normal(rng, 0.025, 3),
        fat=(8 + 22 * obese, 7 + 26 * obese, 12 + 16 * obese),
        cavity=(140 + 8 * obese + float(_normal(rng, 3)), 98 + 10 * obese + float(_normal(rng, 3))),
        density=density,
        food=rng.uniform(0.55, 0.95),
        jitter=rng,
    )


def _along(body: Body, points: ArrayLike, radii: ArrayLike, wander: float = 2.0, size: float = 0.05) -> list[Part]:
    """A tube whose points wander and whose width varies."""
    points = np.asarray(points, dtype=np.float64)
    return tube(points + body.shift(wander, len(points)), np.asarray(radii) * body.size(size))


def _liver(body: Body) -> Organ:
    move, size = body.shift(3), body.size(0.05)
    right = Ellipsoid(np.array([76, 40, 28]) + move, np.array([72, 84, 92]) * size, body.tilt((0, 12, 0)))
    left = Ellipsoid(
        np.array([4, 88, 56]) + move, np.array([76, 38, 34]) * size * body.size(0.12), body.tilt((0, 8, 12))
    )
    caudate = Ellipsoid(np.array([30, 52, 48]) + move, np.array([20, 15, 24]) * size, body.tilt((0, 0, 0)))
    edge = np.array([98.0, 45.0, -72.0]) + move + body.shift(6)

    def visceral(x: Floats, y: Floats, z: Floats, d: Floats) -> Floats:
        """Cut by the visceral surface, which rises from the right lobe's tip to the left and the back."""
        rise = 0.98 * np.abs(edge[0] - x) - 0.15 * (y - edge[1]) + 0.004 * (y - 60) ** 2 * (y < 60)
        return smooth_maximum(d, ((edge[2] + rise - z) * 0.72).astype(np.float32), 16)

    return Organ([right, left, caudate], "liver", 6, blend=30, texture=5, shape=visceral)


def _bowel(body: Body) -> Iterator[Organ]:
    """Colon and duodenum, which BTCV does not label."""
    gas = body.jitter.uniform(-14, 10)

    def pocket(x: Floats, y: Floats, z: Floats, d: Floats) -> Floats:
        """Gas fills the front of the lumen, between the folds."""
        return np.maximum(d + 4.5, np.float32(gas) + 9 * np.sin(z / 13) * np.cos(x / 15) + 12 - 0.05 * y)

    colons = [
        ([(98, 16, -170), (98, 18, -110), (94, 26, -66), (76, 58, -62)], (23, 24, 21, 18)),
        ([(76, 60, -64), (40, 96, -82), (0, 102, -92), (-44, 96, -66), (-84, 60, -14), (-98, 30, 6)], (19,) * 6),
        ([(-98, 28, 4), (-108, 8, -40), (-106, 4, -100), (-98, 10, -170)], (15, 14, 14, 15)),
    ]
    for points, radii in colons:
        parts = _along(body, points, radii, 4, 0.1)
        yield Organ(parts, "bowel", texture=14)
        yield Organ(parts, "gas", texture=0, shape=pocket)


def _duodenum(body: Body) -> Organ:
    points = [(38, 68, 0), (58, 56, -8), (62, 46, -38), (44, 40, -66), (6, 44, -70), (-24, 52, -54)]
    return Organ(_along(body, points, (11, 13, 14, 13, 11, 11)), "bowel", gap=1.0, texture=8)


def _stomach(body: Body) -> list[Organ]:
    points = [(-60, 24, 74), (-62, 44, 52), (-58, 68, 22), (-42, 86, -4), (-8, 90, -18), (20, 82, -10), (36, 70, 0)]
    points = np.asarray(points) + body.shift(4)
    full = 0.72 + 0.4 * body.food
    radii = np.array([26, 29, 27 * full, 24 * full, 19 * full, 14, 10])
    parts = _along(body, points, radii, 3, 0.06)
    level = 20 + 85 * body.food  # the patient lies on the back: gas rises to the front
    lumen = lambda x, y, z, d: d + 4  # noqa: E731
    bubble = lambda x, y, z, d: smooth_maximum(d + 4, np.float32(level) - y, 1)  # noqa: E731
    return [
        Organ(parts, "wall", 7, blend=8, gap=2),
        Organ(parts, "contents", 7, blend=8, texture=9, shape=lumen),
        Organ(parts, "gas", 7, blend=8, texture=0, shape=bubble),
    ]


def _kidney(body: Body, side: int) -> list[Organ]:
    """Cortex, medulla and the fat of the sinus; `side` is 1 for the right, -1 for the left."""
    centre = np.array([side * 62, 0, -14 if side > 0 else 4]) + body.shift(4)
    turn = body.tilt((8, side * 12, side * 30), 4)
    size = body.size(0.05)
    kidney = Ellipsoid(centre, np.array([28, 25, 56]) * size, turn)
    sinus = Ellipsoid(centre - turn @ [side * 19 * size, 0, 0], np.array([17, 9, 23]) * size, turn)

    def hollow(x: Floats, y: Floats, z: Floats, d: Floats) -> Floats:
        return smooth_maximum(d, -sinus(x, y, z), 5)

    def pyramids(x: Floats, y: Floats, z: Floats, d: Floats) -> Floats:
        wave = 2.5 * np.cos((z - np.float32(centre[2])) / 5) * np.cos(y / 6)
        return hollow(x, y, z, d) + 8 + wave

    label = 2 if side > 0 else 3
    return [
        Organ([kidney], "cortex_renal", label, gap=3, shape=hollow),
        Organ([kidney], "medulla_renal", label, shape=pyramids),
    ]


def _pancreas(body: Body) -> Organ:
    move = body.shift(2)
    head = Ellipsoid(np.array([36, 54, -22]) + move, np.array([14, 13, 21]) * body.size(), body.tilt((0, 0, 0)))
    points = [(32, 54, -32), (24, 60, -10), (8, 66, 2), (-14, 66, 12), (-40, 48, 26), (-68, 22, 38), (-80, 12, 42)]
    neck = _along(body, np.asarray(points) + move, (10, 10, 9, 10, 10, 9.5, 7), 1.5, 0.06)

    def lobules(x: Floats, y: Floats, z: Floats, d: Floats) -> Floats:
        return d + 1.2 * np.sin(x / 2.6 + y / 5) * np.cos(z / 3.1 - y / 4)

    return Organ([head, *neck], "pancreas", 11, blend=7, gap=1, texture=7, shape=lobules)


def _adrenal(body: Body, side: int) -> Organ:
    """Two thin limbs that meet at a ridge in front: an inverted V."""
    ridge = np.array([side * (27 if side > 0 else 31), 24 if side > 0 else 27, 48 if side > 0 else 42]) + body.shift(2)
    size = body.size(0.08)
    limbs = []
    for turn, reach in ((side * 2, 14), (side * 42, 12)):
        matrix = body.tilt((0, 0, turn), 4)
        back = matrix @ [0, -reach + 3, -3.0 if turn else 0.0]
        limbs.append(Ellipsoid(ridge + back, np.array([3.1, reach, 15.5]) * size, matrix))
    return Organ(limbs, "adrenal", 12 if side > 0 else 13, blend=3, gap=1, texture=3)


def _vessels(body: Body) -> Iterator[Organ]:
    aorta = [(-15, 25, 165), (-14, 27, 100), (-9, 31, 50), (-6, 32, 0), (-5, 32, -60), (-2, 31, -108)]
    aorta = np.asarray(aorta) + body.shift(1.5)
    caval = [(20, 27, -112), (22, 30, -50), (22, 33, 0), (24, 40, 48), (22, 52, 90), (16, 62, 118)]
    caval = np.asarray(caval) + body.shift(1.5)
    meeting = np.array([14, 50, -1]) + body.shift(1.5)
    wide = body.size(0.06)
    for side in (1, -1):
        renal = [(side * 8 - 4, 33, -8), (side * 26, 24, -10), (side * 42, 10, -8)]
        yield Organ(_along(body, renal, (3, 3, 2.6), 1), "aorta")
        veins = [(22, 34, -4), (22 + side * (6 if side > 0 else 22), 42 - 8 * (side > 0), -3), (side * 42, 14, -4)]
        yield Organ(_along(body, veins, (5, 5, 4.5), 1), "veins")
        iliac = [aorta[-1], (side * 18 - 2, 27, -135), (side * 34, 24, -170)]
        yield Organ(_along(body, iliac, (7, 6, 5.5), 0), "aorta")
        iliac = [caval[0], (20 + side * 16, 20, -138), (side * 34 + 6, 14, -170)]
        yield Organ(_along(body, iliac, (9, 7, 7), 0), "veins")
    yield Organ(_along(body, [(-5, 40, 2), (-3, 50, -14), (0, 52, -50), (6, 56, -90)], (4, 4, 3.6, 2.5), 1), "aorta")
    yield Organ(_along(body, [meeting, (18, 56, -34), (16, 60, -90)], (6, 5.5, 4), 1), "portal")
    yield Organ(_along(body, [(-7, 40, 20), (-5, 54, 24), (14, 58, 26)], (4, 3.5, 3), 1), "aorta")
    splenic = [meeting, (-10, 52, 10), (-38, 36, 26), (-66, 14, 40), (-84, 2, 46)]
    portal = [meeting, (22, 53, 14), (34, 56, 30), (46, 56, 40)]
    branches = [[portal[-1], (62, 52, 44), (80, 44, 44)], [portal[-1], (36, 68, 50), (22, 82, 54)]]
    parts = _along(body, splenic, (5.5, 5, 5, 4.8, 4.2), 0) + _along(body, portal, np.array((7, 7.5, 7.5, 7)) * wide, 0)
    for branch in branches:
        parts += _along(body, branch, (6.5, 5, 3.5), 0)
    yield Organ(parts, "portal", 10, blend=3)
    yield Organ(tube(caval, np.array((10.5, 11, 11.5, 12, 12.5, 12.5)) * wide), "veins", 9, gap=0.5, texture=6)
    yield Organ(tube(aorta, np.array((12, 11.5, 11, 10, 9, 8.5)) * body.size(0.08)), "aorta", 8, gap=0.5, inside=False)


def organs(body: Body) -> Iterator[Organ]:
    """Everything soft in the abdominal cavity, in the order of painting: the later ones displace the earlier."""
    yield from _bowel(body)
    yield _liver(body)
    for middle, end in (((60, 50, 76), (96, 40, 66)), ((34, 72, 82), (52, 96, 70)), ((12, 72, 78), (-12, 90, 66))):
        yield Organ(_along(body, [(22, 53, 92), middle, end], (5, 4, 2.6)), "veins", label=6)
    turn = body.tilt((-32, 10, -18))
    spleen = Ellipsoid(np.array([-104, -4, 44]) + body.shift(3), np.array([38, 52, 68]) * body.size(0.07), turn)
    yield Organ([spleen], "spleen", 1, texture=4)
    yield _duodenum(body)
    yield from _stomach(body)
    for side in (1, -1):
        yield from _kidney(body, side)
    yield _pancreas(body)
    bladder = [(76, 94, -34), (66, 84, -16), (54, 70, 6), (46, 62, 18)]
    yield Organ(_along(body, np.asarray(bladder) + body.shift(4), (13.5, 14, 9, 4), 1, 0.1), "bile", 4, texture=2)
    for side in (1, -1):
        yield _adrenal(body, side)
    gullet = [(-8, 46, 165), (-10, 46, 110), (-18, 47, 92), (-34, 42, 80), (-52, 34, 72)]
    yield Organ(_along(body, gullet, (7.5, 8, 8, 8.5, 10), 1), "oesophagus", 5, texture=6, inside=False)
    yield from _vessels(body)


def place(space: Space, organ: Organ) -> tuple[tuple[slice, slice, slice], Floats]:
    """The box of an organ and its distance there, before it is kept within the cavity."""
    box, found = distance(space, organ.parts, organ.blend)
    if organ.shape is not None and found.size:
        found = np.asarray(organ.shape(space.x[box], space.y[box], space.z[box], found), dtype=np.float32)
    return box, found
