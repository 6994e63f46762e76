"""What occluders are covered with: textures that training draws from, and others kept for the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

Texture = Callable[[np.random.Generator, int, int], np.ndarray]
"""(random numbers, height, width) -> (height, width, 3) uint8."""


def noise(rng: np.random.Generator, height: int, width: int, cell: float, stretch: float = 1.0) -> np.ndarray:
    """Return smooth noise (height, width) in [0, 1], its bumps `cell` pixels wide and `stretch` times as high."""
    rows, columns = max(2, round(height / (cell * stretch)) + 1), max(2, round(width / cell) + 1)
    coarse = rng.random((rows, columns), np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1))


def fractal(rng: np.random.Generator, height: int, width: int, cell: float, stretch: float = 1.0) -> np.ndarray:
    """Draw noise on four scales, stretched to [0, 1]: (height, width) float32."""
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        total += noise(rng, height, width, max(1.5, cell / 2**octave), stretch) / 2**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def colour(rng: np.random.Generator, *, dull: float = 0.6) -> np.ndarray:
    """Draw a random colour, drawn towards grey: (3,) float32 in 0..255."""
    vivid = rng.random(3) * 255
    grey = rng.random() * 255
    share = rng.random() ** (1 - dull)
    return np.asarray(vivid * (1 - share) + grey * share, np.float32)


def blend(weight: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Blend from colour `low` at weight 0 to `high` at weight 1: (H, W, 3) uint8."""
    return (low + weight[..., None] * (high - low)).clip(0, 255).astype(np.uint8)


def painted(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw one colour with a gradient: metal, plaster, plastic."""
    angle = rng.random() * 2 * np.pi
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = (x * np.cos(angle) / width + y * np.sin(angle) / height) * rng.uniform(0, 0.6) + rng.uniform(0.3, 0.7)
    base = colour(rng)
    return blend(ramp.clip(0, 1), base * 0.5, np.minimum(base * 1.4 + 20, 255))


def mottled(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw fractal noise between two colours: stone, dirt, rust, camouflage."""
    return blend(fractal(rng, height, width, rng.uniform(4, 50)), colour(rng), colour(rng))


def striped(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw stripes in any direction."""
    angle, period = rng.random() * np.pi, rng.uniform(4, 40)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    return blend((wave * rng.uniform(1, 8) + 0.5).clip(0, 1), colour(rng), colour(rng))


def checked(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw squares or tiles of two colours."""
    y, x = np.mgrid[0:height, 0:width]
    rows, columns = rng.integers(4, 30, 2)
    weight = ((y // rows + x // columns) % 2).astype(np.float32)
    return blend(weight, colour(rng), colour(rng))


def bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw courses of bricks."""
    course, length = int(rng.integers(5, 16)), int(rng.integers(12, 40))
    y, x = np.mgrid[0:height, 0:width]
    row = y // course
    shifted = x + (row % 2) * (length // 2)
    joint = (y % course == 0) | (shifted % length == 0)
    tint = rng.random((height // course + 1, (width + length) // length + 1), np.float32)[row, shifted // length]
    wall = blend(tint * 0.5 + 0.25, colour(rng), colour(rng))
    wall[joint] = colour(rng)
    return wall


def leaves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a mass of small leaves with dark gaps; mostly green."""
    base = np.array([rng.uniform(20, 150), rng.uniform(60, 190), rng.uniform(10, 90)], np.float32)
    if rng.random() < 0.25:
        base = colour(rng, dull=0.3)
    picture = blend(fractal(rng, height, width, 12), base * 0.1, base * 0.6)
    size = rng.uniform(1.5, 7)
    for _ in range(int(min(500, 1.3 * height * width / size**2 / 2))):
        tone = (base * rng.uniform(0.3, 1.5) + rng.normal(0, 10, 3)).clip(0, 255)
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (max(1, int(size * rng.uniform(0.5, 1.5))), max(1, int(size * rng.uniform(0.2, 0.7))))
        cv2.ellipse(picture, centre, axes, float(rng.uniform(0, 180)), 0, 360, tone.tolist(), -1)
    return picture


def speckled(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw fine grain of two colours: gravel, carpet, asphalt."""
    grain = cv2.GaussianBlur(rng.random((height, width), np.float32), (0, 0), rng.uniform(0.4, 1.5))
    low, high = float(grain.min()), float(grain.max())
    return blend((grain - low) / (high - low), colour(rng), colour(rng))


def clouded(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw each colour with fractal noise of its own, as in blurred pictures of anything."""
    cell = rng.uniform(6, 60)
    layers = np.stack([fractal(rng, height, width, cell) for _ in range(3)], 2)
    grey = layers.mean(2, keepdims=True)
    strength, light = rng.uniform(0.1, 1.0), rng.uniform(60, 200)
    return ((grey + (layers - grey) * strength - 0.5) * rng.uniform(80, 255) + light).clip(0, 255).astype(np.uint8)


def blocks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw large rectangles of few colours: containers, doors, panels, painted kiosks."""
    tones = [colour(rng, dull=0.5) for _ in range(int(rng.integers(2, 5)))]
    picture = np.full((height, width, 3), tones[0], np.uint8)
    for _ in range(int(rng.integers(2, 10))):
        top, left = int(rng.integers(-10, height)), int(rng.integers(-10, width))
        bottom, right = top + int(rng.integers(6, height)), left + int(rng.integers(4, width))
        tone = tones[int(rng.integers(len(tones)))]
        cv2.rectangle(picture, (left, top), (right, bottom), tone.tolist(), -1)
    return picture


def meshed(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw crossing lines on a plain ground: wire, gratings, tiles, window bars."""
    ground, line = colour(rng), colour(rng)
    picture = np.full((height, width, 3), ground, np.uint8)
    step, thick = int(rng.integers(5, 34)), int(rng.integers(1, 4))
    slant = float(rng.choice([0.0, 0.0, 1.0, rng.uniform(-0.4, 0.4)]))
    for offset in range(-height - width, height + width, step):
        cv2.line(picture, (offset, 0), (int(offset + slant * height), height), line.tolist(), thick, cv2.LINE_AA)
        cv2.line(picture, (0, offset), (width, int(offset - slant * width)), line.tolist(), thick, cv2.LINE_AA)
    return picture


def folded(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a sheet of one colour with soft folds: tarpaulin, curtain, cushion."""
    angle, period = rng.random() * np.pi, rng.uniform(10, 70)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    warp = fractal(rng, height, width, 40) * rng.uniform(0, 50)
    wave = 0.5 + 0.5 * np.sin(((x * np.cos(angle) + y * np.sin(angle)) + warp) * 2 * np.pi / period)
    base = colour(rng)
    return blend(wave ** rng.uniform(0.5, 2), base * rng.uniform(0.3, 0.8), np.minimum(base * 1.2 + 10, 255))


def streaked(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw grain drawn out sideways: brushed metal, motion, water, shutters out of focus."""
    grain = noise(rng, height, width, rng.uniform(10, 60), stretch=rng.uniform(0.05, 0.3))
    return blend(grain, colour(rng), colour(rng))


_PLAIN: tuple[Texture, ...] = (
    painted, mottled, striped, checked, bricks, leaves, speckled, clouded, blocks, meshed, folded, streaked,
)  # fmt: skip


def mixed(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw two of the others, one through holes in the other or both at once."""
    first, second = (_PLAIN[int(rng.integers(len(_PLAIN)))](rng, height, width) for _ in range(2))
    share = fractal(rng, height, width, rng.uniform(10, 60))
    if rng.random() < 0.5:
        share = ((share - 0.5) * 12 + 0.5).clip(0, 1)
    return (first * (1 - share[..., None]) + second * share[..., None]).astype(np.uint8)


TRAINING: tuple[Texture, ...] = (*_PLAIN, mixed, mixed)
"""Textures that training draws from."""


def bark(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw long vertical ridges."""
    ridges = np.abs(fractal(rng, height, width, rng.uniform(4, 9), stretch=7.0) * 2 - 1)
    base = np.array([110, 85, 60], np.float32) * rng.uniform(0.5, 1.4)
    return blend(ridges, base * 0.3, np.minimum(base * 1.5, 255))


def wood(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw boards with grain in rings."""
    board = max(8, int(rng.integers(10, 30)))
    warp = fractal(rng, height, width, 30, stretch=4.0)
    x = np.arange(width, dtype=np.float32)[None]
    grain = 0.5 + 0.5 * np.sin(x / rng.uniform(1.2, 3.0) + warp * 25)
    base = np.array([170, 120, 70], np.float32) * rng.uniform(0.5, 1.3)
    picture = blend(grain, base * 0.6, np.minimum(base * 1.1, 255))
    picture[:, ::board] = picture[:, ::board] // 3
    return picture


def dotted(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw round dots in a grid."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period = rng.uniform(7, 24)
    distance = np.hypot(x % period - period / 2, y % period - period / 2)
    return blend((distance < period * rng.uniform(0.2, 0.4)).astype(np.float32), colour(rng), colour(rng))


def cells(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw cells around random points, their joints dark: pebbles, cobbles, cracked earth."""
    count = int(rng.integers(20, 120))
    points = rng.random((count, 2)) * (height, width)
    y, x = np.mgrid[0:height, 0:width]
    distance = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    nearest = np.sort(np.partition(distance, 1, axis=2)[..., :2], axis=2)
    joint = np.sqrt(nearest[..., 1]) - np.sqrt(nearest[..., 0]) < 1.5
    picture = blend(rng.random(count, np.float32)[distance.argmin(2)], colour(rng), colour(rng))
    picture[joint] //= 3
    return picture


def poster(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw blocks and lines of writing."""
    picture = np.full((height, width, 3), colour(rng), np.uint8)
    for _ in range(int(rng.integers(2, 5))):
        corner = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        cv2.circle(picture, corner, int(rng.integers(5, 40)), colour(rng, dull=0.2).tolist(), -1)
    for row in range(int(rng.integers(8, 16)), height, int(rng.integers(10, 24))):
        text = "".join(rng.choice(list("ABCEFGHKLMNOPRSTUVXYZ0123456789 "), 14))
        cv2.putText(picture, text, (2, row), cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.2, 0.6), colour(rng).tolist(), 1)
    return picture


RESERVED: tuple[Texture, ...] = (bark, wood, dotted, cells, poster)
"""Textures that training never sees."""


def from_pictures(pictures: Sequence[np.ndarray], rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a random cut-out of one of the pictures, at a random size, possibly mirrored."""
    picture = pictures[int(rng.integers(len(pictures)))]
    share = rng.uniform(0.3, 1.0)
    rows, columns = max(4, int(picture.shape[0] * share)), max(4, int(picture.shape[1] * share))
    top = int(rng.integers(0, picture.shape[0] - rows + 1))
    left = int(rng.integers(0, picture.shape[1] - columns + 1))
    piece = picture[top : top + rows, left : left + columns]
    piece = piece[:, ::-1] if rng.random() < 0.5 else piece
    return cv2.resize(piece, (width, height), interpolation=cv2.INTER_LINEAR)
