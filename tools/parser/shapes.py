"""Random occluders: shapes drawn from families wide enough that no two are alike.

`occluders` lists objects found in streets. A network trained on a list labels other objects as clothes; these families
cover the rest. Each is a `Kind`.
"""

from __future__ import annotations

import cv2
import numpy as np

from tools.parser.occluders import Kind, Occluder, Paint, polygon, rectangle
from tools.parser.shaders import program
from tools.parser.textures import colour, noise


def hull(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a convex body of three to eight corners."""
    spot, size = whereabouts(rng)
    points = (rng.uniform(-1.4, 1.4, (int(rng.integers(3, 9)), 2)) * size + spot) * 1000
    outline = cv2.convexHull(points.astype(np.float32))[:, 0] / 1000
    return Occluder(polygon(height, width, outline), paint(height, width))


def slope(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw all on one side of a line in any direction."""
    turn = rng.random() * 2 * np.pi
    middle = np.array([0.5, 0.55]) + rng.uniform(0.05, 0.4) * np.array([np.cos(turn), np.sin(turn)])
    out, along = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    corners = np.stack([middle - 3 * along, middle + 3 * along, middle + 3 * (along + out), middle + 3 * (out - along)])
    return Occluder(polygon(height, width, corners), paint(height, width))


def plank(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a beam at any angle, its two ends in the picture or not."""
    spot, _ = whereabouts(rng)
    turn = rng.random() * np.pi
    along = np.array([np.cos(turn), np.sin(turn) / 2]) * rng.uniform(0.3, 1.6)
    half = np.array([-np.sin(turn), np.cos(turn) / 2]) * rng.uniform(0.02, 0.16)
    corners = np.stack([spot - along - half, spot + along - half, spot + along + half, spot - along + half])
    opacity = polygon(height, width, corners)
    if rng.random() < 0.3:
        shift = half * rng.uniform(3, 8)
        opacity = np.maximum(opacity, polygon(height, width, corners + shift))
    return Occluder(opacity, paint(height, width))


def cuboid(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a block seen from a corner, its three sides lit differently."""
    spot, size = whereabouts(rng)
    edges = rng.normal(0, 1.1, (3, 2)) * size
    if rng.random() < 0.6:
        edges[0] *= (0.1, 1)
    look = paint(height, width).astype(np.float32)
    picture, opacity = look.copy(), np.zeros((height, width), np.float32)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        a, b = edges[first], edges[second]
        face = polygon(height, width, np.stack([spot, spot + a, spot + a + b, spot + b]))
        picture = np.where(face[..., None] >= 0.5, look * rng.uniform(0.4, 1.2), picture)
        opacity = np.maximum(opacity, face)
    return Occluder(opacity, picture.clip(0, 255).astype(np.uint8))


def cloud(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw what lies where a random program is high: one piece or several, smooth or torn."""
    field = program(rng, height, width, 1)[..., 0]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    spot, size = whereabouts(rng)
    near = np.exp(-(((x / width - spot[0]) / (1.8 * size[0])) ** 2) - ((y / height - spot[1]) / (1.8 * size[1])) ** 2)
    field = field * near
    cut = float(np.quantile(field, rng.uniform(0.55, 0.9)))
    opacity = ((field - cut) * rng.uniform(8, 40) + 0.5).clip(0, 1)
    return Occluder(opacity.astype(np.float32), paint(height, width))


def turned(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a body of revolution with a wavy outline: vase, hydrant, bottle, lamp; upright or hanging."""
    top, tall = rng.uniform(0.05, 0.7), rng.uniform(0.25, 0.8)
    rows = np.linspace(0, 1, 24)
    half = np.full(24, rng.uniform(0.05, 0.2))
    for harmonic in range(1, 6):
        half += rng.normal(0, 0.09 / np.sqrt(harmonic)) * np.sin(harmonic * np.pi * rows + rng.random() * 7)
    half = half.clip(0.015, 0.5)
    x = rng.uniform(0.05, 0.95)
    if rng.random() < 0.2:
        top = -0.1
    y = top + tall * rows
    outline = np.vstack([np.stack([x - half, y], 1), np.stack([x + half, y], 1)[::-1]])
    across = np.abs(np.arange(width) / width - x - rng.uniform(-0.1, 0.1)) / half.max()
    shade = (1.15 - 0.6 * across).clip(0.3, 1.2)
    picture = (paint(height, width) * shade[None, :, None]).clip(0, 255).astype(np.uint8)
    return Occluder(polygon(height, width, outline), picture)


def fronds(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw tapering blades from one root: grass, reeds, palm leaves, ribbons, cables that hang."""
    opacity = np.zeros((height, width), np.float32)
    root = np.array([rng.uniform(0, 1), 1.05 if rng.random() < 0.7 else -0.05])
    up = -1 if root[1] > 0.5 else 1
    thick = rng.uniform(0.01, 0.06)
    for _ in range(int(rng.integers(3, 18))):
        share = np.linspace(0, 1, 12)[:, None]
        reach = np.array([rng.normal(0, 0.35), up * rng.uniform(0.25, 0.9)])
        bend = np.array([rng.normal(0, 0.25), 0.0])
        middle = root + rng.normal(0, 0.08, 2) * (2, 0) + share * reach + share**2 * bend
        half = np.array([thick, 0]) * (1 - share) * np.exp(rng.normal(0, 0.3))
        blade = np.vstack([middle - half, (middle + half)[::-1]])
        opacity = np.maximum(opacity, polygon(height, width, blade))
    return Occluder(opacity, paint(height, width))


def lattice(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw crossing bars at any angle over a part of the picture: fences, trellises, shutters, scaffolds."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    opacity = np.zeros((height, width), np.float32)
    turn = rng.choice([0.0, np.pi / 4, rng.random() * np.pi])
    for angle in (turn, turn + np.pi / 2)[: int(rng.integers(1, 3))]:
        period = rng.uniform(12, 60)
        share = rng.uniform(0.15, 0.5)
        place = (x * np.cos(angle) + y * np.sin(angle)) / period % 1
        opacity = np.maximum(opacity, ((share - np.abs(place - 0.5) * 2) * period / 4 + 0.5).clip(0, 1))
    spot, size = whereabouts(rng)
    window = polygon(height, width, rectangle(*(spot - 2 * size), *(spot + 2 * size)))
    return Occluder((opacity * window).astype(np.float32), paint(height, width))


def frame(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw all but an opening: a window, a doorway, an arch, a car's side window."""
    left, right = rng.uniform(-0.1, 0.3), rng.uniform(0.7, 1.1)
    top, bottom = rng.uniform(-0.1, 0.15), rng.uniform(0.55, 1.1)
    opening = polygon(height, width, rectangle(left, top, right, bottom))
    if rng.random() < 0.5:
        opening = (cv2.GaussianBlur(opening, (0, 0), rng.uniform(4, 20)) * 6 - 2.5).clip(0, 1)
    return Occluder((1 - opening).astype(np.float32), paint(height, width))


def scattered(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw many small pieces: leaves, flowers, bunting, hands, reflections on a pane."""
    mask = np.zeros((height, width), np.uint8)
    spot, size = whereabouts(rng)
    largest = rng.uniform(3, 20)
    for _ in range(int(rng.integers(8, 90))):
        centre = rng.normal(spot, 1.3 * size) * (width, height)
        axes = np.maximum(1, largest * rng.uniform(0.2, 1, 2)).astype(int)
        middle = (int(centre[0]), int(centre[1]))
        cv2.ellipse(mask, middle, (int(axes[0]), int(axes[1])), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return Occluder(mask.astype(np.float32) / 255, paint(height, width))


def limbs(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw capsules end to end: robot arms, hoses, pipes with elbows, animals, tools."""
    mask = np.zeros((height, width), np.uint8)
    point = rng.uniform(0, 1, 2) * (width, height)
    turn = rng.random() * 2 * np.pi
    thick = rng.uniform(0.08, 0.45) * width
    for _ in range(int(rng.integers(2, 7))):
        step = rng.uniform(0.25, 0.9) * width
        following = point + step * np.array([np.cos(turn), np.sin(turn)])
        cv2.line(mask, _pixel(point), _pixel(following), 255, max(2, int(thick)), cv2.LINE_AA)
        point, turn = following, turn + rng.normal(0, 0.9)
        thick *= rng.uniform(0.6, 1.3)
    return Occluder(mask.astype(np.float32) / 255, paint(height, width))


def shell(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a turned superellipse, from rounded rectangle to diamond: machines, bins, bags, balls."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    spot, size = whereabouts(rng)
    turn = rng.normal(0, 0.3) if rng.random() < 0.6 else rng.random() * np.pi
    across, down = x / width - spot[0], (y / height - spot[1]) * 2
    u = np.abs(across * np.cos(turn) + down * np.sin(turn)) / size[0]
    v = np.abs(-across * np.sin(turn) + down * np.cos(turn)) / (2 * size[1])
    power = np.exp(rng.uniform(-0.2, 2.0))
    field = (np.minimum(u, 3) ** power + np.minimum(v, 3) ** power) ** (1 / power)
    opacity = ((1 - field) * 25 + 0.5).clip(0, 1)
    light = np.float32(1)
    if rng.random() < 0.5:
        light = (1.2 - 0.6 * np.hypot(u - 0.3, v - 0.3)).clip(0.3, 1.2)[..., None]
    picture = (paint(height, width) * light).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        rim = ((field > rng.uniform(0.7, 0.92)) & (field < 1.1))[..., None]
        picture = np.where(rim, colour(rng), picture).astype(np.uint8)
    return Occluder(opacity.astype(np.float32), picture)


SIMPLE: tuple[Kind, ...] = (
    hull, slope, plank, cuboid, cloud, turned, fronds, lattice, frame, scattered, limbs, shell,
)  # fmt: skip
"""Families of one body; `assembled` joins some of them."""


def assembled(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw two to four of the solid ones joined near a point, each with a paint of its own: things made of parts."""
    solid = (hull, plank, cuboid, turned, limbs, shell)
    opacity = np.zeros((height, width), np.float32)
    picture = np.zeros((height, width, 3), np.uint8)
    anchor = np.array([rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.95)])
    for _ in range(int(rng.integers(2, 5))):
        piece = solid[int(rng.integers(len(solid)))](rng, height, width, paint)
        if piece.opacity.max() < 0.5:
            continue
        rows, columns = np.nonzero(piece.opacity >= 0.5)
        to = anchor * (width, height) - (columns.mean(), rows.mean()) + rng.normal(0, 0.12, 2) * (width, height)
        scale = rng.uniform(0.5, 1.0)
        matrix = np.array([[scale, 0, 0], [0, scale, 0]], np.float64)
        matrix[:, 2] = np.array([columns.mean(), rows.mean()]) * (1 - scale) + to
        own = cv2.warpAffine(piece.opacity, matrix, (width, height))
        look = cv2.warpAffine(piece.picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
        picture = (picture * (1 - own[..., None]) + look * own[..., None]).astype(np.uint8)
        opacity = np.maximum(opacity, own)
    return Occluder(opacity, picture)


def bent(rng: np.random.Generator, occluder: Occluder) -> Occluder:
    """Draw the same thing drawn out of shape by a smooth random displacement."""
    height, width = occluder.opacity.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    reach, cell = rng.uniform(4, 30), rng.uniform(20, 100)
    across = x + (noise(rng, height, width, cell) - 0.5) * 2 * reach
    down = y + (noise(rng, height, width, cell) - 0.5) * 2 * reach
    opacity = cv2.remap(occluder.opacity, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    picture = cv2.remap(occluder.picture, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return Occluder(np.asarray(opacity), np.asarray(picture))


def rotation(angle: float) -> np.ndarray:
    """Return the (2, 2) matrix that turns by an angle in radians."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def whereabouts(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw what lies where and how large: (2,) centre and (2,) half size, as shares of the width and height."""
    spot = np.array([rng.uniform(0, 1), rng.uniform(0.1, 1.0)])
    size = np.array([rng.uniform(0.2, 0.7), rng.uniform(0.1, 0.42)])
    return spot, size


def _pixel(point: np.ndarray) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


TRAINING: tuple[Kind, ...] = (*SIMPLE, assembled, assembled, assembled)
"""Kinds that training draws from, beside those of `occluders`."""
