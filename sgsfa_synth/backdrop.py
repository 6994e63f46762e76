"""What is behind everything: ground, a wall, trees, the sky, drawn a pixel at a time by tracing rays.

A `Place` is a spot that a camera watches. The camera is at (0, 0, height) of the place's frame, the wall a plane at
some distance, the ground z = 0. A person somewhere in a place sees the same bricks and windows as the next person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.runtime import seeds
from sgsfa_synth.camera import View, Window
from sgsfa_synth.jit import njit
from sgsfa_synth.light import Light, ShadowMap, sunlit
from sgsfa_synth.noise import cell_index, cloud2, lattice, noise2
from sgsfa_synth.props import paint
from sgsfa_synth.solids import linear

Array = npt.NDArray[np.float64]
Array32 = npt.NDArray[np.float32]

GROUNDS = ("asphalt", "tiles", "bricks", "grass", "concrete", "indoor", "gravel", "cobbles")
WALLS = ("brick", "facade", "shop", "plaster", "metal", "trees", "concrete", "tiled")

_GROUND_COLOUR = {
    "asphalt": (0.33, 0.33, 0.34),
    "tiles": (0.64, 0.61, 0.57),
    "bricks": (0.56, 0.38, 0.31),
    "grass": (0.32, 0.43, 0.17),
    "concrete": (0.60, 0.59, 0.56),
    "indoor": (0.72, 0.68, 0.61),
    "gravel": (0.58, 0.54, 0.47),
    "cobbles": (0.45, 0.43, 0.41),
}
_GROUND_SHARES = {
    "asphalt": 0.24, "tiles": 0.22, "concrete": 0.20, "cobbles": 0.12, "bricks": 0.09, "grass": 0.07, "gravel": 0.06,
}  # fmt: skip
_INDOOR_WALLS = ("plaster", "tiled", "shop", "concrete")
_OUTDOOR_WALLS = ("brick", "facade", "shop", "plaster", "metal", "trees", "concrete")
_OUTDOOR_SHARES = (0.16, 0.20, 0.16, 0.12, 0.08, 0.20, 0.08)


@dataclass(frozen=True, slots=True)
class Place:
    """A spot with its ground, wall and light.

    Attributes:
        ground: Kind under the feet, of `GROUNDS`.
        ground_colour: (3,) linear.
        strip: Kind of ground beyond the kerb.
        strip_colour: (3,) linear.
        kerb: Metres from the wall plane to the kerb; 0 when there is none.
        wall: Kind, of `WALLS`.
        wall_colour: (3,) linear.
        accent: (3,) linear; frames, doors, signboards.
        wall_gap: Metres between the place's middle and the wall.
        wall_yaw: Radians by which the wall is turned out of the picture plane.
        wall_height: Metres.
        skyline: Metres of height of what is far behind a low wall.
        texture: Seed of all patterns.
        sun: Strength of the sun, 0 indoors.
        azimuth: Radians, of the sun in the place's frame.
        elevation: Radians.
        warmth: -1 to 1, of the sun's colour.
    """

    ground: str
    ground_colour: Array
    strip: str
    strip_colour: Array
    kerb: float
    wall: str
    wall_colour: Array
    accent: Array
    wall_gap: float
    wall_yaw: float
    wall_height: float
    skyline: float
    texture: int
    sun: float
    azimuth: float
    elevation: float
    warmth: float


_WALL_COLOUR = {
    "brick": ((0.55, 0.31, 0.24), (0.62, 0.42, 0.30), (0.66, 0.56, 0.40), (0.42, 0.25, 0.22), (0.78, 0.76, 0.72)),
    "facade": ((0.85, 0.80, 0.68), (0.78, 0.70, 0.58), (0.80, 0.64, 0.50), (0.72, 0.74, 0.74), (0.88, 0.87, 0.84)),
    "plaster": ((0.86, 0.83, 0.76), (0.80, 0.72, 0.58), (0.70, 0.72, 0.70), (0.82, 0.68, 0.60), (0.66, 0.72, 0.76)),
    "metal": ((0.62, 0.64, 0.66), (0.35, 0.44, 0.54), (0.42, 0.50, 0.44), (0.58, 0.54, 0.48), (0.50, 0.30, 0.26)),
}


def _wall_colour(wall: str, random: np.random.Generator) -> Array:
    """Draw a wall colour: mostly brick red, sand, grey or white; one in six is painted."""
    if random.random() < 0.16:
        return paint(random, saturation=0.45, low=0.4, high=0.9)
    colours = _WALL_COLOUR.get(wall, _WALL_COLOUR["plaster"])
    chosen = np.array(colours[int(random.integers(len(colours)))])
    return linear(np.clip(chosen * random.uniform(0.85, 1.1) * random.uniform(0.96, 1.04, 3), 0, 0.95))


def sample_place(random: np.random.Generator) -> Place:
    """Draw a place: mostly grey, sand or brick, as towns are; lawns and painted walls are the exception."""
    indoor = random.random() < 0.10
    ground = "indoor" if indoor else str(random.choice(list(_GROUND_SHARES), p=list(_GROUND_SHARES.values())))
    wall = str(random.choice(_INDOOR_WALLS)) if indoor else str(random.choice(_OUTDOOR_WALLS, p=_OUTDOOR_SHARES))
    strip = str(random.choice(["asphalt", "grass", "tiles", "cobbles"], p=[0.4, 0.2, 0.2, 0.2]))
    tall = {"trees": 14.0, "metal": 3.2, "concrete": 3.6}.get(wall, 12.0)
    return Place(
        ground=ground,
        ground_colour=linear(_GROUND_COLOUR[ground]) * random.uniform(0.85, 1.15) * random.uniform(0.97, 1.03, 3),
        strip=strip,
        strip_colour=linear(_GROUND_COLOUR[strip]) * random.uniform(0.7, 1.3),
        kerb=0.0 if indoor or random.random() < 0.5 else float(random.uniform(1.2, 7.0)),
        wall=wall,
        wall_colour=_wall_colour(wall, random),
        accent=paint(random, saturation=0.8, low=0.12, high=0.75),
        wall_gap=float(
            random.uniform(1.1, 4.0)
            if indoor
            else random.choice([random.uniform(1.2, 6.0), random.uniform(7, 24)], p=[0.7, 0.3])
        ),
        wall_yaw=float(random.normal(0, 0.45)),
        wall_height=tall if indoor or random.random() < 0.75 else float(random.uniform(1.2, 2.6)),
        skyline=float(random.uniform(3.0, 9.0)),
        texture=int(random.integers(1 << 20)),
        sun=0.12 if indoor else float(random.uniform(0.2, 1.0)),
        azimuth=float(random.uniform(0, 2 * math.pi)),
        elevation=math.radians(float(random.uniform(28, 72))),
        warmth=float(random.uniform(-1, 1)),
    )


def camera_place(seed: int, camera: int) -> Place:
    """Return the place that camera number `camera` watches."""
    return sample_place(seeds.rng(seed, "place", camera))


@dataclass(frozen=True, slots=True)
class Stand:
    """Where in its place a person stands.

    Attributes:
        bearing: Radians between the place's middle line and the line from the camera to the person.
        distance: Metres from the camera.
        wall: Metres from the camera to the wall plane.
    """

    bearing: float
    distance: float
    wall: float


def paint_backdrop(
    place: Place,
    stand: Stand,
    view: View,
    window: Window,
    light: Light,
    shadows: ShadowMap,
    contact: Array32,
    contact_extent: float,
    covered: npt.NDArray[np.bool_],
) -> Array32:
    """Return the radiance of ground, wall and sky where nothing stands before them.

    Args:
        place: What to draw.
        stand: Where the scene's origin is in it.
        view: The camera, in the scene frame.
        window: What of the image plane to draw.
        light: In the scene frame.
        shadows: Of everything that stands on the ground.
        contact: Of `light.contact`.
        contact_extent: Metres, half a side of `contact`.
        covered: (H, W) pixels that something stands before; they stay 0.

    Returns:
        (H, W, 3) linear radiance.
    """
    height, width = covered.shape
    out = np.zeros((height, width, 3), np.float32)
    turn = stand.bearing
    colours = np.stack([place.ground_colour, place.strip_colour, place.wall_colour, place.accent])
    numbers = np.array([stand.wall, place.wall_yaw, place.wall_height, place.kerb, place.skyline, contact_extent])
    kinds = np.array(
        [GROUNDS.index(place.ground), GROUNDS.index(place.strip), WALLS.index(place.wall), place.texture], np.int64
    )
    _paint(
        np.array([window.left, window.top, window.width, window.height]),
        view.position,
        view.rotation,
        np.array([math.cos(turn), math.sin(turn)]),
        kinds,
        numbers,
        colours,
        light.direction,
        light.sun,
        light.sky,
        shadows.depth,
        shadows.axes,
        shadows.frame,
        contact,
        covered,
        out,
    )
    return out


@njit
def _step(value: float, edge: float, soft: float) -> float:
    """Return 0 below `edge`, 1 above, with a ramp `soft` wide: an anti-aliased comparison."""
    return min(max((value - edge) / max(soft, 1e-6) + 0.5, 0.0), 1.0)


@njit
def _band(value: float, half: float, soft: float) -> float:
    """Return 1 where |value| < half, with soft borders; fainter when it is thinner than a pixel."""
    inner = 1.0 - _step(abs(value), half, soft)
    return inner * min(1.0, 2.0 * half / max(soft, 1e-6) + 0.15)


@njit
def _ground(kind: int, u: float, v: float, pixel: float, seed: int, colour: Array, out: Array) -> None:
    """Return the albedo of the ground at (u, v) metres; `pixel` is a pixel's size there."""
    value = 1.0
    tint = 0.0
    wide = cloud2(u * 0.45, v * 0.45, 3, seed)
    fine = noise2(u * 55.0, v * 55.0, seed + 5) * max(0.0, 1.0 - pixel * 25.0) + 0.5 * min(1.0, pixel * 25.0)
    if kind == 0 or kind == 4:  # asphalt, concrete
        speck = noise2(u * 130.0, v * 130.0, seed + 6) if pixel < 0.02 else 0.5
        value = 0.80 + 0.28 * (fine - 0.5) + 0.30 * (speck - 0.5) + 0.30 * (wide - 0.3)
        crack = abs(cloud2(u * 0.9 + 7.0, v * 0.9, 3, seed + 9) - 0.5)
        value *= 1.0 - 0.35 * _band(crack, 0.004, 0.004 + pixel * 0.4) * _step(
            noise2(u * 0.3, v * 0.3, seed + 2), 0.55, 0.2
        )
        if kind == 4:
            value *= 1.0 - 0.45 * max(
                _band((u / 2.4) % 1.0 - 0.5, 0.004, 0.002 + pixel), _band((v / 2.4) % 1.0 - 0.5, 0.004, 0.002 + pixel)
            )
    elif kind == 1 or kind == 5:  # paving slabs, indoor tiles
        size = 0.5 if kind == 1 else 0.6
        a, b = u / size, v / size
        each = lattice(cell_index(a), cell_index(b), 3, seed)
        joint = 0.018 if kind == 1 else 0.006
        line = max(
            _band(a % 1.0 - 0.5, joint / 2 / size, pixel / size), _band(b % 1.0 - 0.5, joint / 2 / size, pixel / size)
        )
        spread = 0.30 if kind == 1 else 0.08
        value = 1.0 - spread / 2 + spread * each + 0.12 * (fine - 0.5) + 0.22 * (wide - 0.5)
        value *= 1.0 - (0.45 if kind == 1 else 0.25) * line
        tint = 0.06 * (lattice(cell_index(a), cell_index(b), 4, seed) - 0.5)
    elif kind == 2 or kind == 7:  # brick paving, cobbles
        w, h = (0.21, 0.105) if kind == 2 else (0.13, 0.12)
        row = cell_index(v / h)
        a = u / w + 0.5 * (row % 2.0)
        b = v / h
        if kind == 7:
            a += 0.25 * (noise2(u * 6.0, v * 6.0, seed + 3) - 0.5)
        each = lattice(cell_index(a), row, 3, seed)
        joint = 0.010 if kind == 2 else 0.018
        edge_a, edge_b = 0.5 - abs(a % 1.0 - 0.5), 0.5 - abs(b % 1.0 - 0.5)
        line = max(1.0 - _step(edge_a, joint / 2 / w, pixel / w), 1.0 - _step(edge_b, joint / 2 / h, pixel / h))
        line *= max(0.25, 1.0 - pixel * 9.0)
        value = 0.78 + 0.42 * each + 0.20 * (fine - 0.5) + 0.20 * (wide - 0.5)
        if kind == 7:
            value *= 0.85 + 0.3 * min(min(edge_a, edge_b) * 4.0, 1.0)
        value *= 1.0 - 0.5 * line
        tint = 0.12 * (lattice(cell_index(a), row, 4, seed) - 0.5)
    elif kind == 3:  # grass
        blade = noise2(u * 90.0, v * 38.0, seed + 6)
        tuft = noise2(u * 16.0, v * 16.0, seed + 7)
        worn = _step(cloud2(u * 0.35, v * 0.35, 3, seed + 8), 0.60, 0.12)
        value = 0.45 + 0.55 * blade * max(0.3, 1.0 - pixel * 9.0) + 0.45 * tuft + 0.35 * (wide - 0.5)
        tint = 0.25 * worn + 0.2 * (noise2(u * 3.0, v * 3.0, seed + 4) - 0.5)
    else:  # gravel
        a, b = u * 38.0, v * 38.0
        stone = lattice(cell_index(a + 0.5 * noise2(b, a, seed)), cell_index(b), 5, seed)
        value = 0.70 + 0.6 * stone * max(0.15, 1.0 - pixel * 25.0) + 0.25 * (wide - 0.5)
        tint = 0.08 * (stone - 0.5)
    out[0] = colour[0] * max(value, 0.05) * (1.0 + tint)
    out[1] = colour[1] * max(value, 0.05)
    out[2] = colour[2] * max(value, 0.05) * (1.0 - tint)


@njit
def _foliage(u: float, z: float, pixel: float, seed: int, out: Array) -> None:
    """Return the albedo of leaves: clumps lit from above, made of small leaves."""
    clump = cloud2(u * 1.1, z * 1.1, 3, seed)
    above = cloud2(u * 1.1, z * 1.1 + 0.22, 3, seed)
    fade = max(0.0, 1.0 - pixel * 14.0)
    leaf = noise2(u * 21.0, z * 24.0, seed + 3) * fade + 0.5 * (1.0 - fade)
    small = noise2(u * 47.0, z * 51.0, seed + 4) * fade + 0.5 * (1.0 - fade)
    lit = 0.42 + 2.6 * (clump - above) + 0.75 * (clump - 0.5) + 0.62 * (leaf - 0.5) + 0.42 * (small - 0.5)
    lit = min(max(lit, 0.06), 1.5)
    hue = noise2(u * 0.8, z * 0.8, seed + 8)
    out[0] = (0.055 + 0.055 * hue) * lit
    out[1] = (0.120 + 0.030 * hue) * lit
    out[2] = 0.030 * lit


@njit
def _trees(u: float, z: float, pixel: float, seed: int, sky: Array, out: Array) -> None:
    """Return a row of trees with trunks over shrubs; the sky shows through the crowns."""
    _foliage(u, z, pixel, seed, out)
    cell = cell_index(u / 2.3)
    middle = 0.5 + 0.5 * (lattice(cell, 1, 0, seed) - 0.5)
    stem = u / 2.3 - cell - middle
    shrub = 0.55 + 0.75 * noise2(u * 0.9, 3.0, seed + 21) + 0.25 * noise2(u * 6.0, 1.0, seed + 22)
    crown = 1.9 + 1.3 * noise2(u * 0.5, 9.0, seed + 23) + 0.5 * noise2(u * 4.0, 5.0, seed + 24)
    if shrub < z < crown:
        # Between shrubs and crowns: a shaded gap, and the trunks.
        for c in range(3):
            out[c] *= 0.42
        girth = 0.055 + 0.045 * lattice(cell, 2, 0, seed)
        bark = _band(stem + 0.012 * np.sin(z * 2.0 + cell), girth, pixel / 2.3)
        rough = 0.55 + 0.9 * noise2(u * 40.0, z * 6.0, seed + 5)
        side = 0.75 + 3.0 * stem
        out[0] = out[0] * (1 - bark) + bark * 0.105 * rough * side
        out[1] = out[1] * (1 - bark) + bark * 0.080 * rough * side
        out[2] = out[2] * (1 - bark) + bark * 0.058 * rough * side
    elif z >= crown:
        hole = _step(cloud2(u * 1.6, z * 1.6, 4, seed + 9) + 0.035 * (z - 3.0), 0.66, 0.02)
        for c in range(3):
            out[c] = out[c] * (1 - hole) + hole * sky[c] * 0.9


@njit
def _window(a: float, b: float, pixel: float, seed: int, sky: Array, frame: Array, out: Array) -> None:
    """Return a window pane at (a, b) in [0, 1]^2: reflected sky, something dim inside, a frame."""
    curtain = lattice(seed, 5, 1, 77)
    glint = cloud2(a * 1.7 + seed, b * 1.3 + a, 3, seed)
    for c in range(3):
        out[c] = 0.025 + sky[c] * (0.05 + 0.34 * b * b + 0.26 * max(glint - 0.45, 0.0))
    if curtain > 0.55:
        fold = 0.6 + 0.4 * np.sin(a * 60.0)
        drawn = abs(a - 0.5) > 0.5 - 0.32 * lattice(seed, 6, 1, 77)
        if drawn:
            for c in range(3):
                out[c] = 0.6 * out[c] + 0.17 * fold
    bar = max(_band(a - 0.5, 0.022, pixel), _band(b - 0.68, 0.02, pixel))
    rim = 1.0 - _step(min(min(a, 1 - a), min(b, 1 - b)), 0.05, pixel)
    bar = max(bar, rim)
    for c in range(3):
        out[c] = out[c] * (1 - bar) + bar * frame[c]


@njit
def _wall(
    kind: int, u: float, z: float, pixel: float, seed: int, colour: Array, accent: Array, sky: Array, out: Array
) -> None:
    """Return the albedo of a wall at `u` metres along it and `z` above the ground."""
    stain = cloud2(u * 0.6, z * 0.5, 4, seed + 40)
    fine = noise2(u * 70.0, z * 70.0, seed + 41) if pixel < 0.03 else 0.5
    drip = noise2(u * 9.0, z * 0.6, seed + 42)
    value = 0.86 + 0.30 * (stain - 0.5) + 0.12 * (fine - 0.5) + 0.10 * (drip - 0.5)
    pane = np.zeros(3)
    if kind == 0:  # brick
        row = cell_index(z / 0.075)
        a = u / 0.24 + 0.5 * (row % 2.0)
        each = lattice(cell_index(a), row, 1, seed)
        edge_a, edge_z = (0.5 - abs(a % 1.0 - 0.5)) * 0.24, (0.5 - abs((z / 0.075) % 1.0 - 0.5)) * 0.075
        mortar = 1.0 - _step(min(edge_a, edge_z), 0.006, pixel)
        mortar *= max(0.3, 1.0 - pixel * 10.0)
        burnt = _step(lattice(cell_index(a), row, 2, seed), 0.86, 0.05)
        tone = value * (0.72 + 0.5 * each) * (1.0 - 0.4 * burnt)
        for c in range(3):
            out[c] = colour[c] * tone * (1 - mortar) + mortar * (0.30 + 0.25 * colour[c]) * value
    elif kind == 1 or kind == 3:  # a house front with windows and doors; plaster with few
        span = 1.9 if kind == 1 else 4.6
        cell = cell_index(u / span)
        level = cell_index((z - 0.1) / 3.0)
        a = (u / span - cell - 0.5) * span
        b = z - 0.1 - level * 3.0
        one = int(lattice(cell, level, 7, seed) * 4096.0)
        crack = abs(cloud2(u * 0.8, z * 0.8 + 5.0, 4, seed + 44) - 0.5)
        value *= 1.0 - 0.30 * _band(crack, 0.003, 0.003 + pixel * 0.3) * _step(stain, 0.55, 0.1)
        plinth = 1.0 - _step(z, 0.48, pixel)
        ledge = _band(b - 2.86, 0.07, pixel)
        for c in range(3):
            out[c] = colour[c] * value * (1.0 - 0.42 * plinth) * (1.0 + 0.18 * ledge)
        door = level == 0 and lattice(cell, 3, 7, seed) > 0.72
        if door and abs(a) < 0.56 and b < 2.2:
            rim = 1.0 - _step(min(0.56 - abs(a), 2.2 - b), 0.08, pixel)
            field = max(_band(abs(a) - 0.22, 0.016, pixel), _band((b / 0.68) % 1.0 - 0.5, 0.02, pixel / 0.68))
            for c in range(3):
                leafed = accent[c] * (0.95 - 0.35 * field) * (0.9 + 0.2 * fine)
                out[c] = leafed * (1 - rim) + rim * (0.35 + 0.4 * colour[c])
        elif not door and abs(a) < 0.60 and 0.85 < b < 2.35:
            for c in range(3):
                pane[c] = 0.25 * accent[c] + 0.42 if kind == 1 else accent[c]
            _window((a + 0.60) / 1.20, (b - 0.85) / 1.50, pixel / 1.2, one, sky, pane, out)
        elif not door and abs(a) < 0.68 and 0.77 < b <= 0.85:
            for c in range(3):
                out[c] = (0.30 + 0.5 * colour[c]) * (1.1 - 2.0 * (0.85 - b))
    elif kind == 2:  # shop front
        cell = cell_index(u / 1.45)
        a = u / 1.45 - cell
        shop = cell_index(cell / 4.0)
        board = lattice(shop, 2, 1, seed)
        if z < 0.32:
            for c in range(3):
                out[c] = (0.20 + 0.3 * colour[c]) * value
        elif z < 2.55:
            rim = 1.0 - _step(min(min(a, 1 - a) * 1.45, min(z - 0.32, 2.55 - z)), 0.035, pixel)
            shelf = cell_index((z - 0.32) / 0.46)
            item = cell_index(u / (0.13 + 0.11 * lattice(shelf, shop, 3, seed)))
            tall = 0.46 * (0.35 + 0.5 * lattice(item, shelf, 4, seed))
            inside = 0.10 + 0.10 * noise2(u * 0.7, z * 0.7, seed + 3)
            lamp = _step(noise2(u * 1.3, 2.0, seed + 14), 0.45, 0.3) * max(0.0, z - 0.6) * 0.10
            shown = 1.0 if (z - 0.32) % 0.46 < tall and lattice(item, shelf, 5, seed) > 0.3 else 0.0
            glass = 0.10 + 0.32 * max(cloud2(u * 0.35, z * 0.5, 3, seed + 6) - 0.42, 0.0)
            plank = _band((z - 0.32) % 0.46 - 0.012, 0.014, pixel)
            for c in range(3):
                goods = 0.08 + 0.5 * lattice(item, shelf, 6 + c, seed) ** 2
                seen = inside * (0.75 + 0.25 * (2 - c) * 0.5) + lamp * (1.1 - 0.15 * c)
                seen = seen * (1 - shown) + shown * goods * (0.30 + 1.5 * lamp)
                seen = seen * (1 - 0.5 * plank) + glass * sky[c]
                out[c] = seen * (1 - rim) + rim * accent[c] * 0.7
        elif z < 3.15:
            text = 0.0
            letter = cell_index(u / 0.17)
            if 2.70 < z < 3.0 and lattice(letter, shop, 8, seed) > 0.28 and 0.2 < (u / 5.8) % 1.0 < 0.8:
                text = 1.0 - _step(noise2(u * 13.0, z * 11.0, seed + 15), 0.62, 0.1)
            for c in range(3):
                ground = accent[c] * (1 - board) + board * lattice(shop, 3 + c, 2, seed) * 0.7
                out[c] = ground * (1 - text) + text * 0.82
        else:
            for c in range(3):
                out[c] = colour[c] * value
    elif kind == 4:  # ribbed metal
        wave = np.sin(u * 2 * np.pi / 0.19)
        shadow = 0.80 + 0.20 * wave * max(0.2, 1.0 - pixel * 9.0)
        seam = _band((u / 1.14) % 1.0 - 0.5, 0.006, pixel / 1.14)
        rust = _step(cloud2(u * 1.5, z * 0.5, 4, seed + 45) - 0.05 * z, 0.60, 0.08)
        for c in range(3):
            out[c] = colour[c] * value * shadow * (1 - 0.5 * seam) * (1 - 0.5 * rust * (0.4 + 0.3 * c))
    elif kind == 5:
        _trees(u, z, pixel, seed, sky, out)
    elif kind == 6:  # board-marked concrete
        a, b = u / 1.25, z / 0.62
        line = max(_band(a % 1.0 - 0.5, 0.006, pixel / 1.25), _band(b % 1.0 - 0.5, 0.010, pixel / 0.62))
        hole_a, hole_b = (abs(a % 1.0 - 0.5) - 0.25) * 1.25, (b % 1.0) * 0.62 - 0.31
        hole = 1.0 - _step(np.sqrt(hole_a * hole_a + hole_b * hole_b), 0.018, pixel)
        tone = value * (0.94 + 0.12 * lattice(cell_index(a), cell_index(b), 1, seed))
        for c in range(3):
            out[c] = (0.30 + 0.12 * colour[c]) * tone * (1 - 0.45 * line) * (1 - 0.7 * hole)
    else:  # tiled passage
        a, b = u / 0.30, z / 0.20
        line = max(_band(a % 1.0 - 0.5, 0.008, pixel / 0.30), _band(b % 1.0 - 0.5, 0.012, pixel / 0.20))
        each = lattice(cell_index(a), cell_index(b), 1, seed)
        stripe = _band(z - 1.3, 0.2, pixel)
        for c in range(3):
            out[c] = (0.62 * (1 - stripe) + accent[c] * stripe) * (0.95 + 0.08 * each) * value * (1 - 0.3 * line)
    # Posters and notices on plain walls.
    if kind == 0 or kind == 3 or kind == 4 or kind >= 6:
        cell = cell_index(u / 2.7)
        if lattice(cell, 11, 9, seed) > 0.62:
            a = u - (cell + 0.5) * 2.7
            b = z - 1.15 - 0.4 * lattice(cell, 12, 9, seed)
            half = 0.22 + 0.2 * lattice(cell, 13, 9, seed)
            if abs(a) < half and 0.0 < b < 2.6 * half:
                row = cell_index(b / 0.11)
                printed = lattice(cell, row, 14, seed)
                mark = 1.0 if abs(a) < half * 0.8 * printed else 0.0
                for c in range(3):
                    paper = 0.35 + 0.5 * lattice(cell, 15 + c, 9, seed)
                    out[c] = paper * (1 - mark) + mark * 0.7 * lattice(cell, row, 16 + c, seed)


@njit
def _paint(
    window: Array,
    eye: Array,
    rotation: Array,
    stand: Array,
    kinds: npt.NDArray[np.int64],
    numbers: Array,
    colours: Array,
    direction: Array,
    sun: Array,
    sky: Array,
    shadow_depth: Array,
    shadow_axes: Array,
    shadow_frame: Array,
    contact: Array32,
    covered: npt.NDArray[np.bool_],
    out: Array32,
) -> None:
    height, width = covered.shape
    cos, sin = stand[0], stand[1]
    wall_distance, yaw, wall_height, kerb, skyline, extent = numbers
    across, ahead = np.cos(yaw), np.sin(yaw)  # along the wall; its normal is (ahead, across) in the place's frame
    seed = kinds[3]
    albedo = np.zeros(3)
    cells = contact.shape[0]
    # The wall's sun, by its normal turned into the scene's frame.
    normal_x, normal_y = cos * ahead - sin * across, sin * ahead + cos * across
    towards = max(0.0, -(normal_x * direction[0] + normal_y * direction[1]))
    scale = window[2] / width
    for j in range(height):
        py = window[1] + (j + 0.5) / height * window[3]
        for i in range(width):
            if covered[j, i]:
                continue
            px = window[0] + (i + 0.5) / width * window[2]
            dx = rotation[0, 0] * px + rotation[1, 0] * py + rotation[2, 0]
            dy = rotation[0, 1] * px + rotation[1, 1] * py + rotation[2, 1]
            dz = rotation[0, 2] * px + rotation[1, 2] * py + rotation[2, 2]
            # The place's frame: the camera at (0, 0), the person `distance` away at the stand's bearing.
            gx, gy = cos * dx + sin * dy, -sin * dx + cos * dy
            facing = ahead * gx + across * gy
            wall_t = wall_distance / facing if facing > 1e-6 else 1e9
            ground_t = -eye[2] / dz if dz < -1e-6 else 1e9
            if ground_t < wall_t:
                x, y = eye[0] + dx * ground_t, eye[1] + dy * ground_t
                u, v = gx * ground_t, gy * ground_t
                off = wall_distance - (ahead * u + across * v)
                pixel = ground_t * scale
                far = pixel / max(-dz, 0.05)
                kind, layer = kinds[0], 0
                if kerb > 0.0 and off < kerb:
                    kind, layer = kinds[1], 1
                _ground(
                    kind,
                    u * across - v * ahead,
                    u * ahead + v * across,
                    0.5 * (pixel + far),
                    seed,
                    colours[layer],
                    albedo,
                )
                if kerb > 0.0:
                    stone = _band(off - kerb, 0.07, far)
                    for c in range(3):
                        albedo[c] = albedo[c] * (1 - stone) + stone * 0.40
                lit = sunlit(shadow_depth, shadow_axes, shadow_frame, x, y, 0.0, 1.6) * direction[2]
                a, b = int((x + extent) * cells / (2 * extent)), int((y + extent) * cells / (2 * extent))
                open_ = 1.0
                if 0 <= a < cells and 0 <= b < cells:
                    open_ = 1.0 - contact[b, a]
                # The foot of a wall sees less of the sky.
                open_ *= 1.0 - 0.35 * np.exp(-max(off, 0.0) / 0.5) * (1.0 if wall_height > 1.0 else 0.0)
                for c in range(3):
                    out[j, i, c] = albedo[c] * (sky[c] * open_ + sun[c] * lit)
                continue
            z = eye[2] + dz * wall_t
            if wall_t < 1e8 and z < wall_height:
                u = (gx * across - gy * ahead) * wall_t
                pixel = wall_t * scale
                _wall(kinds[2], u, z, pixel, seed, colours[2], colours[3], sky, albedo)
                if kinds[2] == 5:
                    for c in range(3):
                        out[j, i, c] = albedo[c] * (0.9 * sky[c] + 0.6 * sun[c]) * 1.3
                    continue
                x, y = eye[0] + dx * wall_t, eye[1] + dy * wall_t
                lit = sunlit(shadow_depth, shadow_axes, shadow_frame, x, y, z, 1.6) * towards
                open_ = 0.72 - 0.25 * np.exp(-z / 0.35)
                for c in range(3):
                    out[j, i, c] = albedo[c] * (sky[c] * open_ + sun[c] * lit)
                continue
            # Beyond the wall: a line of trees or houses, and the sky.
            rise = dz / np.sqrt(gx * gx + gy * gy)
            bearing = np.arctan2(gx, gy)
            ridge = (
                skyline + 2.5 * noise2(bearing * 14.0, 1.0, seed + 60) + 0.5 * noise2(bearing * 120.0, 2.0, seed + 61)
            ) / 30.0
            if rise < ridge * 0.6 - 0.02:
                _foliage(bearing * 30.0, rise * 30.0, 0.02, seed + 62, albedo)
                haze = 0.25
                for c in range(3):
                    out[j, i, c] = albedo[c] * (0.8 * sky[c] + 0.5 * sun[c]) * (1 - haze) + haze * 0.55 * sky[c]
            else:
                cloud = _step(cloud2(bearing * 3.0, rise * 7.0, 4, seed + 63), 0.55, 0.3)
                for c in range(3):
                    clear = sky[c] * (1.05 + (0.30 if c == 2 else 0.05 * c)) * (1.0 - 0.18 * min(max(rise, 0.0), 1.0))
                    out[j, i, c] = clear * (1 - 0.75 * cloud) + 0.75 * cloud * 1.25 * sky[1]
