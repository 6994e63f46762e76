"""Street furniture, vehicles and plants: what stands behind a person, hides a part of one, or is sat on.

Everything stands on the ground (its lowest point is z = 0), is centred near the origin and turns its front to -y.
A kind has a fixed number of variants, each drawn from its own stream, so a worker builds every variant once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from pipeline.runtime import seeds
from sgsfa_synth.mesh import Mesh
from sgsfa_synth.solids import (
    Array,
    Colour,
    Finish,
    Solid,
    bars,
    box,
    disc,
    ellipsoid,
    join,
    lathe,
    leaves,
    linear,
    plate,
    sheet,
    to_mesh,
    tube,
)

VARIANTS = 24
"""Different objects of each kind."""

Random = np.random.Generator

_BLACK = linear((0.07, 0.07, 0.075))
_DARK = linear((0.16, 0.16, 0.17))
_STEEL = linear((0.62, 0.63, 0.65))
_GLASS = linear((0.10, 0.13, 0.15))
_WHITE = linear((0.90, 0.90, 0.88))


@dataclass(frozen=True, slots=True)
class Prop:
    """An object to put into a scene.

    Attributes:
        kind: Name of its kind.
        mesh: Its triangles, all of label 0.
        finish: (F,) uint8 `Finish` of each face.
    """

    kind: str
    mesh: Mesh
    finish: npt.NDArray[np.uint8]


def prop(kind: str, variant: int) -> Prop:
    """Return variant `variant` modulo `VARIANTS` of a kind named in `KINDS` or `SEATS`."""
    return _build(kind, variant % VARIANTS)


@functools.lru_cache(maxsize=160)
def _build(kind: str, variant: int) -> Prop:
    builder = KINDS[kind] if kind in KINDS else SEATS[kind]
    shape = builder(seeds.rng(0, "prop", kind, variant))
    shape = shape.moved(z=-float(shape.vertices[:, 2].min()))
    mesh, finish = to_mesh(shape)
    return Prop(kind, mesh, finish)


def paint(random: Random, *, saturation: float = 0.85, low: float = 0.12, high: float = 0.92) -> Array:
    """Draw the linear colour of a painted thing: every hue, more often muted than bright."""
    hue, strength, value = random.random(), saturation * random.random() ** 1.4, random.uniform(low, high)
    wheel = np.clip(np.abs((hue + np.array([1.0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return linear(value * (1 - strength * (1 - wheel)))


# ---------------------------------------------------------------------------------------------- vehicles


def _rounded(half_width: float, low: float, high: float, sides: int, power: float) -> Array:
    """Build a cross-section (sides, 2) in y and z: an ellipse pushed towards its bounding box."""
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False) + np.pi / sides
    y = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    z = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
    return np.stack([half_width * y, (low + high) / 2 + (high - low) / 2 * z], 1)


def _wheel(radius: float, width: float, spokes: int, rim: Colour) -> Solid:
    """Build a car wheel about the y axis, its outer side towards -y."""
    w, r = width / 2, radius
    tyre = lathe(
        [[r * 0.66, -w], [r * 0.9, -w], [r * 0.985, -w * 0.75], [r, -w * 0.3], [r, w * 0.3], [r * 0.985, w * 0.75]]
        + [[r * 0.9, w], [r * 0.66, w]],
        _BLACK,
        Finish.RUBBER,
        sides=28,
    )
    ring = lathe([[r * 0.66, w * 0.98], [r * 0.60, w * 0.9], [r * 0.57, w * 0.4]], rim, Finish.METAL, sides=28)
    well = lathe([[0.0, w * 0.3], [r * 0.62, w * 0.3]], _BLACK, Finish.MATT, sides=20)
    hub = lathe([[0.0, w * 0.85], [r * 0.16, w * 0.8], [r * 0.18, w * 0.4]], rim, Finish.METAL, sides=12)
    angle = np.linspace(0, 2 * np.pi, spokes, endpoint=False)
    out = np.stack([np.cos(angle), np.sin(angle), np.zeros(spokes)], 1)
    arms = bars(out * r * 0.1 + [0, 0, w * 0.6], out * r * 0.6 + [0, 0, w * 0.72], r * 0.075, rim, Finish.METAL, 6)
    return join([tyre, ring, well, hub, arms]).turned(np.pi / 2, axis=0)


@dataclass(frozen=True, slots=True)
class _CarShape:
    """Measures of a car in metres: `belt` is the height of the lower edge of its windows."""

    length: float
    width: float
    height: float
    belt: float
    estate: bool
    coat: Array


def _around(stations: int, sides: int) -> tuple[Array, Array]:
    """Return for each triangle of a wrapped sheet: its row's share of the length, and its angle around the section."""
    row, column = np.divmod(np.arange(stations * sides), sides)
    share, angle = (row + 0.5) / stations, 2 * np.pi * (column + 1) / sides
    return np.repeat(share, 2), np.repeat(angle, 2)


def _car_body(car_shape: _CarShape) -> Solid:
    """Return the lower body: cross-sections that narrow towards bumpers, bonnet and boot."""
    sides, stations = 36, []
    half = car_shape.width / 2
    ends = np.linspace(-1, 1, 41)
    for t in ends:
        taper = math.sqrt(max(0.0, 1 - abs(t) ** 9))
        bonnet = 0.13 * np.clip((t - 0.35) / 0.65, 0, 1) ** 1.5 + 0.05 * np.clip((-t - 0.55) / 0.45, 0, 1)
        top = car_shape.belt - bonnet - 0.13 * (1 - taper)
        section = _rounded(half * (0.86 + 0.14 * taper), 0.22 + 0.10 * (1 - taper), top, sides, 0.42)
        stations.append(np.column_stack([np.full(sides, t * car_shape.length / 2), section]))
    grid = [np.repeat(ring.mean(0, keepdims=True), sides, 0) for ring in (stations[0], stations[-1])]
    body = sheet(np.array([grid[0], *stations, grid[1]]), car_shape.coat, Finish.PAINT, wrap=True)
    _, angle = _around(len(ends) + 1, sides)
    return body.coloured(np.sin(angle) < -0.86, _DARK, Finish.MATT)


def _car_cabin(car_shape: _CarShape) -> Solid:
    """Build roof, pillars and glass; a triangle's place in the grid decides, so that edges are even."""
    sides, count = 48, 72
    back, front = (-0.93 if car_shape.estate else -0.68), 0.44
    slope = 0.13 if car_shape.estate else 0.30
    bottom = car_shape.belt - 0.08
    places = np.linspace(back, front, count + 1)
    rings = []
    for t in places:
        rise = math.sin(math.pi / 2 * float(np.clip(min((front - t) / 0.30, (t - back) / slope), 0, 1))) ** 0.9
        roof = max(car_shape.belt - 0.05 + (car_shape.height - car_shape.belt + 0.05) * rise, bottom + 0.02)
        section = _rounded(car_shape.width * 0.465, bottom, roof, sides, 0.55)
        share = np.clip((section[:, 1] - bottom) / (car_shape.height - bottom), 0, 1)
        section[:, 0] *= 1 - 0.24 * share
        rings.append(np.column_stack([np.full(sides, t * car_shape.length / 2), section]))
    cabin = sheet(np.array(rings), car_shape.coat, Finish.PAINT, wrap=True)
    share, angle = _around(count, sides)
    along = back + share * (front - back)
    height = np.sin(angle)
    side = (height > -0.36) & (height < 0.66)
    doors = (along > back + slope * 0.62) & (along < front - 0.19) & (np.abs(along + 0.10) > 0.020)
    middle = cabin.centres()[:, 2]
    screens = (height > 0.78) & (middle > car_shape.belt + 0.01)
    screens &= ((along > front - 0.27) & (along < front - 0.02)) | (
        (along < back + slope * 0.88) & (along > back + 0.012)
    )
    return cabin.coloured((side & doors) | screens, _GLASS, Finish.GLASS)


def _car_details(car_shape: _CarShape, random: Random) -> list[Solid]:
    """Return wheels, lamps, mirrors, handles, seams and number plates."""
    length, half, belt, coat = car_shape.length, car_shape.width / 2, car_shape.belt, car_shape.coat
    radius, axle = random.uniform(0.31, 0.35), length * 0.305
    rim = linear(np.full(3, random.choice([0.35, 0.62, 0.75])))
    wheel = _wheel(radius, 0.21, int(random.integers(5, 9)), rim)
    arch = disc(radius * 1.13, 0.02, _BLACK, Finish.MATT, sides=28)
    lamp = ellipsoid((0.10, 0.17, 0.075), linear((0.92, 0.92, 0.88)), Finish.LAMP, power=0.8)
    tail_lamp = ellipsoid((0.07, 0.13, 0.10), linear((0.62, 0.05, 0.05)), Finish.LAMP, power=0.7)
    mirror = ellipsoid((0.07, 0.11, 0.075), coat, Finish.PAINT, power=0.7)
    handle = box((0.17, 0.03, 0.025), coat * 0.8, Finish.PAINT, bevel=0.008)
    seam = box((0.012, 0.01, 0.48), coat * 0.25, Finish.MATT, bevel=0.001)
    sill = box((axle * 2 - 2.4 * radius, 0.03, 0.05), _DARK, Finish.MATT)
    number = box(
        (0.02, 0.52, 0.11), _WHITE if random.random() < 0.7 else linear((0.85, 0.75, 0.2)), Finish.MATT, bevel=0.004
    )
    grille = box((0.03, 0.86, 0.16), _BLACK, Finish.MATT, bevel=0.012)
    parts = [grille.moved(length / 2 - 0.012, 0, 0.52)]
    for sign in (-1, 1):
        for x in (-axle, axle):
            facing = wheel if sign < 0 else wheel.turned(np.pi)
            parts.append(facing.moved(x, sign * (half - 0.085), radius))
            parts.append(arch.moved(x, sign * (half - 0.012), radius + 0.02))
        parts.append(lamp.moved(length / 2 - 0.13, sign * (half - 0.27), belt - 0.24))
        parts.append(tail_lamp.moved(-length / 2 + 0.10, sign * (half - 0.22), belt - 0.16))
        parts.append(mirror.moved(length * 0.16, sign * (half + 0.05), belt + 0.05))
        parts.append(sill.moved(0, sign * (half - 0.01), 0.30))
        for x in (-0.02, -0.25):
            parts.append(handle.moved(x * length, sign * (half + 0.004), belt - 0.13))
            parts.append(seam.moved((x + 0.065) * length, sign * (half - 0.001), 0.36))
    parts += [number.moved(end * (length / 2 - 0.002), 0, 0.42) for end in (-1, 1)]
    return parts


def car(random: Random) -> Solid:
    """Build a passenger car, lofted from cross-sections, driving to -x or +x."""
    coat = paint(random, saturation=0.8, low=0.08, high=0.95)
    if random.random() < 0.6:
        coat = linear(np.full(3, random.choice([0.08, 0.18, 0.42, 0.66, 0.9])) * random.uniform(0.95, 1.05, 3))
    car_shape = _CarShape(
        length=random.uniform(3.9, 4.7),
        width=random.uniform(1.68, 1.84),
        height=random.uniform(1.42, 1.62),
        belt=random.uniform(0.86, 0.96),
        estate=bool(random.random() < 0.4),
        coat=coat,
    )
    shape = join([_car_body(car_shape), _car_cabin(car_shape), *_car_details(car_shape, random)])
    return shape if random.random() < 0.5 else shape.turned(np.pi)


def _spoked(radius: float, tyre: Colour, rim: Colour) -> Solid:
    """Build a bicycle wheel about the y axis, centred."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    ring = np.stack([np.cos(angle), np.zeros(32), np.sin(angle)], 1)
    spoke = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    tip = np.stack([np.cos(spoke), np.zeros(24), np.sin(spoke)], 1) * (radius - 0.03)
    hub = np.stack([0.02 * np.cos(spoke + 1.2), 0.03 * (-1.0) ** np.arange(24), 0.02 * np.sin(spoke + 1.2)], 1)
    return join(
        [
            tube(ring * radius, 0.018, tyre, Finish.RUBBER, sides=8, closed=True),
            tube(ring * (radius - 0.022), 0.011, rim, Finish.METAL, sides=6, closed=True),
            bars(hub, tip, 0.0018, rim, Finish.METAL, 3),
            bars([[0, -0.05, 0]], [[0, 0.05, 0]], 0.025, rim, Finish.METAL, 8),
        ]
    )


def bicycle(random: Random) -> Solid:
    """Build a city bicycle on its stand, side on."""
    coat = paint(random)
    r, h = 0.335, 0.353
    rear, front = np.array([-0.52, 0, h]), np.array([0.54, 0, h])
    crank, seat, head, fork = (
        np.array([-0.07, 0, 0.28]),
        np.array([-0.22, 0, 0.80]),
        np.array([0.34, 0, 0.84]),
        np.array([0.37, 0, 0.70]),
    )
    step = random.random() < 0.5
    top = np.array([-0.16, 0, 0.58]) if step else seat
    wheel = _spoked(r, _BLACK, _STEEL)
    parts = [wheel.moved(*rear), wheel.moved(*front)]
    parts.append(bars([crank, top, crank, head], [seat, head, fork, fork], 0.018, coat, Finish.PAINT, 8))
    for side in (-0.05, 0.05):
        shift = np.array([0, side, 0])
        parts.append(bars([rear + shift, rear + shift], [crank, seat], 0.010, coat, Finish.PAINT, 6))
        parts.append(bars([front + shift], [fork], 0.013, coat, Finish.PAINT, 6))
    grip = head + [-0.03, 0, 0.17]
    handle = [grip + [-0.12, -0.29, 0.0], grip + [0.02, -0.22, 0.02], grip, grip + [0.02, 0.22, 0.02]]
    handle.append(grip + [-0.12, 0.29, 0.0])
    parts.append(tube(handle, 0.012, _STEEL, Finish.METAL, sides=6))
    parts.append(bars([head, seat], [grip, seat + [-0.03, 0, 0.12]], 0.013, _STEEL, Finish.METAL, 8))
    parts.append(ellipsoid((0.14, 0.08, 0.035), _BLACK, Finish.MATT, power=0.8).moved(-0.27, 0, 0.945))
    parts.append(disc(0.09, 0.008, _STEEL, Finish.METAL).moved(crank[0], -0.04, crank[2]))
    for sign in (-1, 1):
        foot = crank + [sign * 0.13, sign * 0.09, -sign * 0.09]
        parts.append(bars([crank + [0, sign * 0.06, 0]], [foot], 0.009, _STEEL, Finish.METAL, 5))
        parts.append(box((0.09, 0.07, 0.02), _BLACK, Finish.RUBBER).moved(*(foot + [0, sign * 0.03, -0.01])))
    angle = np.linspace(0.3, 2.6, 12)
    for centre in (rear, front):
        arc = np.stack([np.cos(angle), np.zeros(12), np.sin(angle)], 1) * (r + 0.035) + centre
        parts.append(tube(arc, 0.018, coat if random.random() < 0.6 else _BLACK, Finish.PAINT, sides=6))
    parts.append(bars([crank + [-0.12, 0.03, 0.0]], [[-0.28, 0.17, 0.0]], 0.010, _STEEL, Finish.METAL, 5))
    if random.random() < 0.45:
        parts.append(_wire_basket(0.34, 0.26, 0.24, _STEEL).moved(0.52, 0, 0.78))
    return join(parts)


def _wire_basket(length: float, depth: float, height: float, colour: Colour) -> Solid:
    """Build an open basket of thin wire standing on z=0."""
    x, y = length / 2, depth / 2
    corners = np.array([[-x, -y, 0], [x, -y, 0], [x, y, 0], [-x, y, 0]])
    starts: list[Array] = []
    ends: list[Array] = []
    for level in np.linspace(0, height, 6):
        ring = corners * (0.88 + 0.12 * level / height) + [0, 0, level]
        starts.extend(ring)
        ends.extend(np.roll(ring, -1, 0))
    for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
        for t in np.linspace(0, 1, max(3, int(np.linalg.norm(b - a) / 0.055)))[:-1]:
            point = a + t * (b - a)
            starts.append(point * [0.88, 0.88, 1])
            ends.append(point + [0, 0, height])
    return bars(starts, ends, 0.0035, colour, Finish.METAL, 4)


def cart(random: Random) -> Solid:
    """Build a supermarket trolley with some shopping in it."""
    trim = paint(random, low=0.4)
    parts = [_wire_basket(0.86, 0.54, 0.40, _STEEL).moved(0, 0, 0.58)]
    for y in (-0.24, 0.24):
        rail = [[0.42, y, 0.10], [-0.36, y, 0.13], [-0.40, y, 0.58], [-0.50, y, 1.02]]
        parts.append(tube(rail, 0.013, _STEEL, Finish.METAL, sides=6))
        parts.append(bars([[0.40, y * 0.8, 0.10]], [[-0.02, y, 0.58]], 0.010, _STEEL, Finish.METAL, 5))
        for x in (-0.34, 0.40):
            wheel = disc(0.062, 0.03, _BLACK, Finish.RUBBER, sides=14)
            parts.append(wheel.moved(x, y, 0.062))
            parts.append(box((0.03, 0.045, 0.06), _STEEL, Finish.METAL).moved(x, y, 0.07))
    parts.append(bars([[-0.50, -0.27, 1.02]], [[-0.50, 0.27, 1.02]], 0.019, trim, Finish.MATT, 10))
    parts.append(box((0.80, 0.48, 0.006), _STEEL, Finish.METAL).moved(0, 0, 0.58))
    for _ in range(int(random.integers(2, 6))):
        size = random.uniform((0.12, 0.10, 0.14), (0.28, 0.24, 0.36))
        goods = box(size, paint(random), Finish.CARD, bevel=0.012)
        parts.append(
            goods.turned(random.uniform(0, 3)).moved(random.uniform(-0.25, 0.25), random.uniform(-0.1, 0.1), 0.586)
        )
    return join(parts)


# ---------------------------------------------------------------------------------------------- plants


def _directions(random: Random, count: int) -> Array:
    vectors = random.normal(size=(count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _greens(random: Random, count: int) -> Array:
    base = linear((random.uniform(0.16, 0.34), random.uniform(0.36, 0.52), random.uniform(0.10, 0.22)))
    return np.asarray(base * random.uniform(0.6, 1.5, (count, 1)) * random.uniform(0.85, 1.2, (count, 3)))


def _foliage(random: Random, count: int, radii: Colour, size: float, core: float = 0.86) -> Solid:
    """Return leaves over an ellipsoid about the origin, with a dark core so that it hides what is behind."""
    outward = _directions(random, count)
    depth = random.uniform(0.80, 1.04, (count, 1))
    roots = outward * np.asarray(radii) * depth
    along = outward * 0.7 + _directions(random, count) * 0.8 + [0, 0, 0.15]
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    shade = _greens(random, count) * (0.55 + 0.45 * np.clip((depth - 0.8) / 0.2, 0, 1))
    length = random.uniform(0.7, 1.3, count) * size
    crown = leaves(roots, along, outward, length, length * random.uniform(0.4, 0.6), np.full(count, 0.25), shade, 3)
    inner = ellipsoid(np.asarray(radii) * core, _greens(random, 1)[0] * 0.30, Finish.LEAF, rows=9, sides=14)
    return join([inner, crown])


def plant(random: Random) -> Solid:
    """Build a potted plant: long arching leaves, or a leafy shrub on a stem."""
    pot_height, pot_radius = random.uniform(0.28, 0.5), random.uniform(0.17, 0.27)
    clay = linear((0.62, 0.36, 0.25)) if random.random() < 0.4 else paint(random, saturation=0.3, low=0.2)
    r, h = pot_radius, pot_height
    pot = lathe(
        [
            [0, 0],
            [r * 0.72, 0],
            [r * 0.97, h * 0.86],
            [r * 1.05, h * 0.86],
            [r * 1.05, h],
            [r * 0.92, h],
            [r * 0.9, h - 0.05],
            [0, h - 0.05],
        ],
        clay,
        Finish.CONCRETE,
    )
    pot = pot.coloured(
        (pot.centres()[:, 2] > h - 0.055) & (np.hypot(*pot.centres()[:, :2].T) < r * 0.9), _BLACK, Finish.MATT
    )
    if random.random() < 0.55:
        count = int(random.integers(38, 75))
        angle = random.uniform(0, 2 * np.pi, count)
        lean = random.uniform(0.15, 1.0, count)
        along = np.stack([np.cos(angle) * lean, np.sin(angle) * lean, np.full(count, 1.0)], 1)
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        up = np.stack([-np.cos(angle), -np.sin(angle), lean], 1)
        up /= np.linalg.norm(up, axis=1, keepdims=True)
        roots = np.stack([0.05 * np.cos(angle), 0.05 * np.sin(angle), np.full(count, h - 0.06)], 1)
        length = random.uniform(0.55, 1.25) * random.uniform(0.7, 1.2, count)
        width = random.uniform(0.06, 0.11) * random.uniform(0.8, 1.2, count)
        blades = leaves(roots, along, up, length, width, 0.35 + 0.5 * lean, _greens(random, count), 7)
        return join([pot, blades])
    crown = random.uniform(0.28, 0.45)
    rise = random.uniform(0.15, 0.7)
    stem = tube(
        [[0, 0, h - 0.06], [0.02, 0, h + rise * 0.6], [0, 0.01, h + rise + crown]],
        0.022,
        linear((0.3, 0.22, 0.15)),
        Finish.BARK,
    )
    head = _foliage(random, 620, (crown, crown, crown * random.uniform(1.0, 1.5)), random.uniform(0.08, 0.13))
    return join([pot, stem, head.moved(z=h + rise + crown * 0.9)])


def bush(random: Random) -> Solid:
    """Build a bush of several lobes growing from the ground."""
    parts = []
    for _ in range(int(random.integers(2, 5))):
        radius = random.uniform(0.32, 0.5)
        tall = radius * random.uniform(0.9, 1.35)
        lobe = _foliage(random, 520, (radius, radius * 0.9, tall), random.uniform(0.07, 0.11))
        parts.append(lobe.moved(random.uniform(-0.55, 0.55), random.uniform(-0.2, 0.2), tall * 0.85))
    shape = join(parts)
    # What grows under the ground is cut off by lifting it onto the ground.
    below = shape.vertices[:, 2] < 0
    vertices = shape.vertices.copy()
    vertices[below, 2] = 0.0
    return Solid(vertices, shape.faces, shape.colour, shape.finish)


def hedge(random: Random) -> Solid:
    """Build a clipped hedge, about as high as a hip."""
    length, depth, height = random.uniform(1.4, 2.6), random.uniform(0.4, 0.6), random.uniform(0.75, 1.15)
    core = box((length - 0.08, depth - 0.08, height - 0.04), _greens(random, 1)[0] * 0.35, Finish.LEAF, bevel=0.06)
    count = 1500
    face = random.choice(4, count, p=[0.42, 0.1, 0.38, 0.10])
    x = random.uniform(-length / 2, length / 2, count)
    y = random.uniform(-depth / 2, depth / 2, count)
    z = random.uniform(0.02, height, count)
    outward = np.zeros((count, 3))
    x = np.where(face == 1, length / 2 * np.sign(x), x)
    y = np.where(face == 0, -depth / 2, np.where(face == 3, depth / 2, y))
    z = np.where(face == 2, height - 0.03, z)
    outward[face == 0, 1], outward[face == 3, 1], outward[face == 2, 2] = -1, 1, 1
    outward[face == 1, 0] = np.sign(x[face == 1])
    along = outward * 0.7 + _directions(random, count) * 0.9
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    size = random.uniform(0.05, 0.09, count)
    colour = _greens(random, count) * (0.6 + 0.4 * (z / height))[:, None]
    return join(
        [core, leaves(np.stack([x, y, z], 1), along, outward, size, size * 0.6, np.full(count, 0.2), colour, 3)]
    )


def tree(random: Random) -> Solid:
    """Build a tree's trunk with its roots and first boughs; its crown is above the picture."""
    radius = random.uniform(0.13, 0.27)
    z = np.concatenate([np.linspace(0, 0.35, 6), np.linspace(0.55, 4.6, 10)])
    angle = np.linspace(0, 2 * np.pi, 22, endpoint=False)
    flare = 1 + 0.75 * np.exp(-z / 0.13)
    lobes = (
        1 + 0.28 * np.exp(-z / 0.22)[:, None] * np.cos(angle * int(random.integers(4, 7)) + random.uniform(0, 6))[None]
    )
    girth = radius * (1 - 0.07 * z)[:, None] * flare[:, None] * lobes * random.uniform(0.95, 1.05, (len(z), 22))
    sway = np.cumsum(random.normal(0, 0.02, (len(z), 2)), 0)
    points = np.stack(
        [girth * np.cos(angle) + sway[:, :1], girth * np.sin(angle) + sway[:, 1:], np.repeat(z[:, None], 22, 1)], -1
    )
    bark = linear(np.array([0.36, 0.29, 0.22]) * random.uniform(0.7, 1.35) * random.uniform(0.95, 1.05, 3))
    parts = [sheet(points, bark, Finish.BARK, wrap=True)]
    for _ in range(int(random.integers(1, 4))):
        start = int(random.integers(11, 15))
        turn = random.uniform(0, 2 * np.pi)
        out = np.array([np.cos(turn), np.sin(turn), 0.9])
        root = np.array([*sway[start], z[start]])
        parts.append(
            tube(
                [root, root + out * 0.5, root + out * [1.1, 1.1, 1.5]],
                [radius * 0.5, radius * 0.33, 0.03],
                bark,
                Finish.BARK,
            )
        )
    return join(parts)


# ---------------------------------------------------------------------------------------------- street furniture


def railing(random: Random) -> Solid:
    """Build a metal railing with upright bars, or with rails along it."""
    coat = paint(random, saturation=0.5) if random.random() < 0.6 else _STEEL
    finish = Finish.PAINT
    length, height = random.uniform(1.8, 2.6), random.uniform(0.95, 1.15)
    x = length / 2
    parts = []
    posts = np.array([-x, 0.0, x])
    parts.append(bars([[p, 0, 0] for p in posts], [[p, 0, height] for p in posts], 0.027, coat, finish, 10))
    parts += [lathe([[0, 0], [0.07, 0], [0.07, 0.015], [0.03, 0.03]], coat, finish, sides=14).moved(p) for p in posts]
    parts.append(bars([[-x - 0.03, 0, height]], [[x + 0.03, 0, height]], 0.03, coat, finish, 10))
    if random.random() < 0.6:
        count = int(length / random.uniform(0.10, 0.16))
        spots = np.linspace(-x, x, count + 2)[1:-1]
        parts.append(bars([[p, 0, 0.14] for p in spots], [[p, 0, height - 0.1] for p in spots], 0.009, coat, finish, 6))
        parts.append(
            bars([[-x, 0, 0.14], [-x, 0, height - 0.1]], [[x, 0, 0.14], [x, 0, height - 0.1]], 0.013, coat, finish, 8)
        )
    else:
        levels = np.linspace(0.22, height - 0.2, int(random.integers(2, 5)))
        parts.append(
            bars([[-x, 0, level] for level in levels], [[x, 0, level] for level in levels], 0.015, coat, finish, 8)
        )
    return join(parts)


def fence(random: Random) -> Solid:
    """Build a wooden fence of pickets or of boards."""
    wood = linear((0.46, 0.34, 0.22)) * random.uniform(0.6, 1.6) if random.random() < 0.7 else _WHITE
    length, height = random.uniform(1.6, 2.4), random.uniform(0.8, 1.2)
    width = random.uniform(0.07, 0.13)
    gap = random.uniform(0.015, 0.08)
    parts = []
    pointed = random.random() < 0.5
    for x in np.arange(-length / 2, length / 2, width + gap):
        tall = height * (1 + random.normal(0, 0.006))
        w = width / 2
        outline = (
            [[-w, 0], [w, 0], [w, tall - w], [0, tall], [-w, tall - w]]
            if pointed
            else [[-w, 0], [w, 0], [w, tall], [-w, tall]]
        )
        parts.append(plate(outline, 0.022, wood * random.uniform(0.82, 1.15), Finish.WOOD).moved(x))
    rail = box((length + 0.02, 0.04, 0.07), wood * 0.8, Finish.WOOD)
    parts += [rail.moved(-width / 2, 0.035, z) for z in (0.22 * height, 0.75 * height)]
    stake = box((0.09, 0.09, height + 0.05), wood * 0.75, Finish.WOOD)
    parts += [stake.moved(x, 0.08) for x in (-length / 2, length / 2 - width)]
    return join(parts)


def pillar(random: Random) -> Solid:
    """Build a column, square or round, with a foot; some carry a poster."""
    stone = paint(random, saturation=0.22, low=0.45, high=0.9)
    r = random.uniform(0.11, 0.25)
    if random.random() < 0.5:
        return lathe(
            [[0, 0], [r * 1.35, 0], [r * 1.35, 0.10], [r * 1.2, 0.16], [r * 1.02, 0.2], [r, 0.26], [r, 5.2], [0, 5.2]],
            stone,
            Finish.CONCRETE,
            sides=28,
        )
    shaft = box((2 * r, 2 * r, 5.2), stone, Finish.CONCRETE, bevel=0.02)
    foot = box((2.3 * r, 2.3 * r, 0.16), stone * 0.75, Finish.CONCRETE)
    parts = [shaft, foot]
    if random.random() < 0.4:
        parts.append(
            box((1.4 * r, 0.01, 2.0 * r), paint(random, low=0.5), Finish.CARD, bevel=0.002).moved(0, -r - 0.004, 1.25)
        )
        parts.append(
            box((1.1 * r, 0.01, 0.5 * r), paint(random), Finish.CARD, bevel=0.002).moved(0, -r - 0.008, 1.25 + 1.2 * r)
        )
    return join(parts)


def post(random: Random) -> Solid:
    """Build a lamp post: a slim tapering mast with a service hatch."""
    coat = paint(random, saturation=0.4, low=0.12, high=0.6)
    r = random.uniform(0.055, 0.09)
    shaft = lathe(
        [
            [0, 0],
            [r * 2.0, 0],
            [r * 2.0, 0.05],
            [r * 1.5, 0.09],
            [r * 1.4, 0.85],
            [r * 1.05, 0.95],
            [r * 0.8, 5.2],
            [0, 5.2],
        ],
        coat,
        Finish.PAINT,
        sides=18,
    )
    return join([shaft, box((r * 1.3, 0.012, 0.32), coat * 0.8, Finish.PAINT).moved(0, -r * 1.42, 0.42)])


def sign(random: Random) -> Solid:
    """Build a traffic sign or an information board on a post, or a folding board on the pavement."""
    first, second = paint(random, low=0.35), paint(random, low=0.1)
    style = random.integers(4)
    if style == 3:
        width, height = random.uniform(0.55, 0.75), random.uniform(0.95, 1.2)
        panel = [box((width, 0.025, height), _DARK, Finish.WOOD, bevel=0.008)]
        panel.append(
            box((width * 0.88, 0.008, height * 0.84), first, Finish.CARD, bevel=0.002).moved(0, -0.016, height * 0.09)
        )
        for row, level in enumerate(np.linspace(0.75, 0.25, 4)):
            wide = width * random.uniform(0.35, 0.7)
            stripe = box((wide, 0.006, height * 0.05 * (2 if row == 0 else 1)), second, Finish.CARD, bevel=0.001)
            panel.append(stripe.moved(random.uniform(-0.05, 0.05), -0.021, height * level))
        front = join(panel).turned(-0.20, axis=0)
        top = float(front.vertices[:, 1].max())
        back = front.turned(np.pi)
        return join([front.moved(0, -top), back.moved(0, top)])
    parts = [
        bars([[0, 0, 0]], [[0, 0, 2.7]], 0.032, _STEEL, Finish.METAL, 12),
        lathe([[0, 0], [0.10, 0], [0.10, 0.02], [0.03, 0.04]], _STEEL, Finish.METAL, sides=14),
    ]
    if style == 0:
        red, blue = linear((0.72, 0.08, 0.08)), linear((0.10, 0.25, 0.65))
        ring = red if random.random() < 0.6 else blue
        parts.append(disc(0.32, 0.015, ring, Finish.PAINT).moved(0, -0.05, 1.75))
        parts.append(disc(0.24, 0.016, _WHITE, Finish.PAINT).moved(0, -0.055, 1.75))
        parts.append(box((0.09, 0.016, 0.26), _BLACK, Finish.PAINT).moved(0, -0.06, 1.62))
    elif style == 1:
        triangle = np.array([[0, 0.40], [-0.38, -0.26], [0.38, -0.26]])
        parts.append(plate(triangle, 0.015, linear((0.72, 0.08, 0.08)), Finish.PAINT).moved(0, -0.05, 1.7))
        parts.append(plate(triangle * 0.70, 0.016, _WHITE, Finish.PAINT).moved(0, -0.055, 1.69))
        parts.append(box((0.05, 0.016, 0.22), _BLACK, Finish.PAINT).moved(0, -0.06, 1.60))
    else:
        width, height = random.uniform(0.6, 0.95), random.uniform(0.7, 1.2)
        low = random.uniform(0.55, 0.9)
        parts.append(box((width, 0.03, height), second, Finish.PAINT).moved(0, -0.05, low))
        parts.append(
            box((width * 0.9, 0.012, height * 0.9), _WHITE, Finish.CARD, bevel=0.002).moved(
                0, -0.066, low + height * 0.05
            )
        )
        parts.append(
            box((width * 0.8, 0.008, height * 0.22), first, Finish.CARD, bevel=0.002).moved(
                0, -0.075, low + height * 0.66
            )
        )
        for level in np.linspace(0.14, 0.56, 5):
            wide = width * random.uniform(0.4, 0.72)
            parts.append(
                box((wide, 0.006, 0.02), _DARK, Finish.CARD, bevel=0.001).moved(
                    -0.06 * random.random(), -0.075, low + height * level
                )
            )
    return join(parts)


def boxes(random: Random) -> Solid:
    """Return parcels piled up, each with its tape and label."""
    parts = []
    level = 0.0
    wide = random.uniform(0.55, 0.85)
    for _ in range(int(random.integers(2, 5))):
        size = np.array([wide, wide * random.uniform(0.6, 0.85), random.uniform(0.26, 0.5)])
        card = linear(np.array([0.66, 0.50, 0.34]) * random.uniform(0.75, 1.15))
        if random.random() < 0.25:
            card = paint(random, saturation=0.6, low=0.3)
        pile = [box(size, card, Finish.CARD, bevel=0.008)]
        tape = linear((0.75, 0.66, 0.48))
        pile.append(box((0.055, size[1] + 0.004, 0.003), tape, Finish.CARD, bevel=0.001).moved(0, 0, size[2] - 0.001))
        pile.append(
            box((0.055, 0.003, size[2] * 0.3), tape, Finish.CARD, bevel=0.001).moved(
                0, -size[1] / 2 - 0.001, size[2] * 0.7
            )
        )
        pile.append(
            box((size[0] * 0.3, 0.003, size[2] * 0.32), _WHITE, Finish.CARD, bevel=0.001).moved(
                size[0] * 0.24, -size[1] / 2 - 0.001, size[2] * 0.18
            )
        )
        parcel = join(pile).turned(random.normal(0, 0.10))
        parts.append(parcel.moved(random.normal(0, 0.02), random.normal(0, 0.02), level))
        level += size[2]
        wide *= random.uniform(0.82, 0.98)
    return join(parts)


def street_bin(random: Random) -> Solid:
    """Build a street bin on the pavement, or a wheeled refuse bin."""
    coat = paint(random, saturation=0.8, low=0.1, high=0.5)
    if random.random() < 0.5:
        w, d, h = 0.29, 0.33, random.uniform(0.92, 1.05)
        hull = []
        for z, share in ((0.06, 0.72), (0.30, 0.82), (h - 0.08, 1.0), (h - 0.05, 1.07), (h, 1.07)):
            section = _rounded(d * share, -w * share, w * share, 24, 0.35)
            hull.append(np.column_stack([section[:, 1], section[:, 0], np.full(24, z)]))
        base = np.repeat(hull[0].mean(0, keepdims=True), 24, 0)
        parts = [sheet(np.array([base, *hull]), coat, Finish.MATT, wrap=True)]
        lid = []
        for z, share in ((h, 1.10), (h + 0.035, 1.08), (h + 0.07, 0.9), (h + 0.085, 0.0)):
            section = _rounded(d * share, -w * share, w * share, 24, 0.4)
            lid.append(np.column_stack([section[:, 1], section[:, 0], np.full(24, z)]))
        parts.append(
            sheet(
                np.array(lid),
                coat if random.random() < 0.5 else paint(random, low=0.2, high=0.6),
                Finish.MATT,
                wrap=True,
            )
        )
        wheel = disc(0.11, 0.05, _BLACK, Finish.RUBBER).turned(np.pi / 2)
        parts += [wheel.moved(x, 0.28, 0.11) for x in (-0.24, 0.24)]
        parts.append(bars([[-0.24, 0.36, h + 0.01]], [[0.24, 0.36, h + 0.01]], 0.014, _BLACK, Finish.RUBBER, 8))
        foot = box((0.3, 0.06, 0.08), _BLACK, Finish.RUBBER)
        parts += [foot.moved(0, y) for y in (-0.16, 0.16)]
        return join(parts)
    r, h = random.uniform(0.23, 0.30), random.uniform(0.82, 1.0)
    hull_solid = lathe(
        [[0, 0], [r * 0.9, 0], [r, 0.05], [r, h * 0.86], [r * 1.04, h * 0.86], [r * 1.04, h * 0.9]], coat, Finish.PAINT
    )
    mouth = lathe([[r * 0.8, h * 0.9], [r * 0.8, h * 1.08]], _BLACK, Finish.MATT)
    lid_solid = lathe(
        [[r * 1.04, h * 1.06], [r * 1.04, h * 1.10], [r * 0.8, h * 1.18], [0, h * 1.22]], coat * 0.8, Finish.PAINT
    )
    slats = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    ring = np.stack([np.cos(slats), np.sin(slats)], 1) * (r + 0.004)
    ribs = bars(
        np.column_stack([ring, np.full(18, 0.08)]),
        np.column_stack([ring, np.full(18, h * 0.84)]),
        0.012,
        coat * 0.6,
        Finish.PAINT,
        5,
    )
    stays = bars(
        [[x * r, 0, h * 0.88] for x in (-0.95, 0.95)],
        [[x * r, 0, h * 1.08] for x in (-0.95, 0.95)],
        0.014,
        coat,
        Finish.PAINT,
    )
    return join([hull_solid, mouth, lid_solid, ribs, stays])


def parasol(random: Random) -> Solid:
    """Build a café parasol on its foot, open and a little tilted by its fold."""
    first = paint(random, low=0.35)
    second = first if random.random() < 0.5 else _WHITE
    ribs, steps = 8, 4
    radius, top = random.uniform(1.0, 1.35), random.uniform(2.25, 2.5)
    t = np.linspace(0, 1, 7)
    grid = []
    for share in t:
        angle = np.linspace(0, 2 * np.pi, ribs * steps, endpoint=False)
        between = np.abs((angle / (2 * np.pi / ribs)) % 1 - 0.5) * 2  # 1 at a rib, 0 half-way
        reach = radius * share * (1 - 0.05 * share * (1 - between))
        sag = top - 0.42 * share**1.25 - 0.05 * share * (1 - between)
        grid.append(np.stack([reach * np.cos(angle), reach * np.sin(angle), sag], 1))
    valance = grid[-1] - [0, 0, 0.14]
    cloth = sheet(np.array([*grid, valance]), first, Finish.FABRIC, wrap=True)
    middle = cloth.centres()
    panel = np.floor(np.arctan2(middle[:, 1], middle[:, 0]) / (2 * np.pi / ribs)).astype(int)
    cloth = cloth.coloured(panel % 2 == 0, second, Finish.FABRIC)
    pole = bars(
        [[0, 0, 0]],
        [[0, 0, top + 0.06]],
        0.024,
        linear((0.5, 0.36, 0.22)) if random.random() < 0.5 else _STEEL,
        Finish.WOOD,
        10,
    )
    foot = lathe(
        [[0, 0], [0.27, 0], [0.27, 0.05], [0.06, 0.09], [0.05, 0.30], [0, 0.30]],
        linear((0.45, 0.45, 0.44)),
        Finish.CONCRETE,
    )
    return join([cloth, pole, foot])


def barrier(random: Random) -> Solid:
    """Build a road works barrier: striped boards on two stands, or a concrete block."""
    if random.random() < 0.35:
        length = random.uniform(1.4, 2.2)
        outline = np.array(
            [
                [-0.30, 0],
                [0.30, 0],
                [0.30, 0.08],
                [0.15, 0.30],
                [0.09, 0.80],
                [-0.09, 0.80],
                [-0.15, 0.30],
                [-0.30, 0.08],
            ]
        )
        concrete = linear((0.62, 0.61, 0.58)) * random.uniform(0.7, 1.1)
        wall = plate(outline, length, concrete, Finish.CONCRETE)
        return wall.turned(np.pi / 2)
    warning = linear((0.78, 0.10, 0.08)) if random.random() < 0.6 else linear((0.90, 0.55, 0.08))
    length = random.uniform(1.3, 1.9)
    parts = []
    for z in (0.72, 0.36):
        parts.append(box((length, 0.03, 0.20), _WHITE, Finish.PAINT, bevel=0.005).moved(0, 0, z))
        for x in np.arange(-length / 2 + 0.08, length / 2 - 0.22, 0.30):
            stripe = np.array([[0, 0.002], [0.13, 0.002], [0.21, 0.198], [0.08, 0.198]])
            parts.append(plate(stripe, 0.034, warning, Finish.PAINT).moved(x, 0, z))
    for x in (-length / 2 + 0.12, length / 2 - 0.12):
        parts.append(box((0.05, 0.05, 0.98), _STEEL, Finish.METAL).moved(x, 0.04))
        parts.append(box((0.10, 0.62, 0.06), _DARK, Finish.RUBBER).moved(x, 0.04))
    return join(parts)


def planter(random: Random) -> Solid:
    """Build a long trough with low plants, as on squares."""
    length, depth, height = random.uniform(1.0, 1.6), random.uniform(0.42, 0.55), random.uniform(0.45, 0.7)
    style = random.random()
    colour, finish = (
        (linear((0.45, 0.32, 0.2)), Finish.WOOD)
        if style < 0.4
        else (paint(random, saturation=0.2, low=0.3), Finish.CONCRETE)
    )
    parts = [
        box((length, depth, height), colour, finish, bevel=0.015),
        box((length + 0.05, depth + 0.05, 0.05), colour * 0.85, finish).moved(z=height - 0.03),
    ]
    for x in np.arange(-length / 2 + 0.2, length / 2 - 0.1, 0.3):
        r = random.uniform(0.2, 0.27)
        parts.append(
            _foliage(random, 230, (r, r * 0.9, r * random.uniform(0.8, 1.2)), 0.08).moved(x, 0, height + r * 0.55)
        )
    return join(parts)


# ---------------------------------------------------------------------------------------------- seats


def bench(random: Random) -> Solid:
    """Build a slatted bench; its seat is 0.45 m high, its back is towards +y."""
    wood = linear((0.45, 0.31, 0.19)) * random.uniform(0.6, 1.5)
    iron = _DARK if random.random() < 0.7 else _STEEL
    length = random.uniform(1.3, 1.8)
    parts = [
        box((length, 0.075, 0.03), wood * random.uniform(0.85, 1.1), Finish.WOOD).moved(0, y, 0.42)
        for y in np.linspace(-0.18, 0.18, 5)
    ]
    for level, y in ((0.60, 0.245), (0.72, 0.27), (0.84, 0.295)):
        parts.append(box((length, 0.028, 0.085), wood * random.uniform(0.85, 1.1), Finish.WOOD).moved(0, y, level))
    for x in (-length / 2 + 0.14, length / 2 - 0.14):
        parts.append(
            tube(
                [[x, -0.20, 0], [x, -0.19, 0.40], [x, 0.22, 0.40], [x, 0.31, 0.92]], 0.022, iron, Finish.METAL, sides=8
            )
        )
        parts.append(bars([[x, 0.30, 0.0]], [[x, 0.20, 0.41]], 0.022, iron, Finish.METAL, 8))
    return join(parts)


def stool(random: Random) -> Solid:
    """Build a low round stool or a cube to sit on; its top is 0.45 m high."""
    cover = paint(random, low=0.15, high=0.7)
    if random.random() < 0.5:
        return box((0.46, 0.46, 0.45), cover, Finish.FABRIC if random.random() < 0.5 else Finish.WOOD, bevel=0.03)
    seat = lathe([[0, 0.38], [0.19, 0.38], [0.21, 0.41], [0.20, 0.445], [0, 0.45]], cover, Finish.FABRIC)
    angle = np.linspace(0, 2 * np.pi, 4, endpoint=False) + 0.6
    out = np.stack([np.cos(angle), np.sin(angle)], 1)
    legs = bars(
        np.column_stack([out * 0.21, np.zeros(4)]),
        np.column_stack([out * 0.14, np.full(4, 0.39)]),
        0.018,
        linear((0.4, 0.28, 0.18)),
        Finish.WOOD,
        8,
    )
    return join([seat, legs])


def block(random: Random) -> Solid:
    """Build a stone block to sit on; its top is 0.45 m high."""
    stone = paint(random, saturation=0.12, low=0.45, high=0.8)
    return box((random.uniform(0.9, 1.5), 0.48, 0.45), stone, Finish.CONCRETE, bevel=0.03)


SEAT_HEIGHT = 0.45
"""Metres; the top of every seat."""

KINDS: Mapping[str, Callable[[Random], Solid]] = MappingProxyType(
    {
        "car": car,
        "bicycle": bicycle,
        "cart": cart,
        "plant": plant,
        "bush": bush,
        "hedge": hedge,
        "tree": tree,
        "railing": railing,
        "fence": fence,
        "pillar": pillar,
        "post": post,
        "sign": sign,
        "boxes": boxes,
        "bin": street_bin,
        "parasol": parasol,
        "barrier": barrier,
        "planter": planter,
    }
)

SEATS: Mapping[str, Callable[[Random], Solid]] = MappingProxyType({"bench": bench, "stool": stool, "block": block})
