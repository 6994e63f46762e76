"""Things pasted in front of people: kinds that training draws from, and others kept for the test.

A kind gives an opacity map and a picture, both of the crop's size; its pixels become background in the labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from tools.parser.textures import colour, fractal, leaves, noise

Paint = Callable[[int, int], np.ndarray]
"""(height, width) -> (height, width, 3) uint8, what the occluder is covered with."""


@dataclass(frozen=True, slots=True)
class Occluder:
    """One thing in front.

    Attributes:
        opacity: (H, W) float32 in [0, 1].
        picture: (H, W, 3) uint8.
    """

    opacity: np.ndarray
    picture: np.ndarray


Kind = Callable[[np.random.Generator, int, int, Paint], Occluder]
"""(random numbers, height, width, paint) -> an occluder for a crop of that size."""


def polygon(height: int, width: int, points: np.ndarray) -> np.ndarray:
    """Draw a filled polygon with smooth edges; points (N, 2) are x, y as shares of the width and height."""
    opacity = np.zeros((height, width), np.uint8)
    fixed = np.round(points * (width, height) * 16).astype(np.int32)
    cv2.fillPoly(opacity, [fixed], 255, cv2.LINE_AA, 4)
    return opacity.astype(np.float32) / 255


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Draw corners of an upright rectangle, as `polygon` takes them."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)


def box(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a board, crate or parcel, somewhat askew."""
    w, h = rng.uniform(0.2, 0.8), rng.uniform(0.12, 0.5)
    x, y = rng.uniform(-0.2, 1.0) - w / 2 + 0.1, rng.uniform(0.1, 1.05) - h / 2
    corners = rectangle(x, y, x + w, y + h) + rng.normal(0, 0.03, (4, 2))
    return Occluder(polygon(height, width, corners), paint(height, width))


def wall(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw all below a line: a low wall, a counter, a hedge, a parked thing too wide to end in the picture."""
    top = rng.uniform(0.4, 0.92)
    edge = np.array([(0.0, top + rng.normal(0, 0.03)), (1.0, top + rng.normal(0, 0.03))])
    points = np.vstack([edge, [(1.0, 1.05), (0.0, 1.05)]])
    return Occluder(polygon(height, width, points), paint(height, width))


def side(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw all beside a line: a door, a corner of a house, the edge of a van."""
    share = rng.uniform(0.15, 0.5)
    tilt = rng.normal(0, 0.05)
    points = np.array([(-0.05, -0.05), (share + tilt, -0.05), (share - tilt, 1.05), (-0.05, 1.05)])
    if rng.random() < 0.5:
        points[:, 0] = 1 - points[:, 0]
    return Occluder(polygon(height, width, points), paint(height, width))


def pole(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a post or lamp, upright or leaning."""
    half = rng.uniform(0.02, 0.11)
    x = rng.uniform(0.1, 0.9)
    lean = rng.normal(0, 0.06)
    top = rng.uniform(-0.1, 0.5) if rng.random() < 0.5 else -0.05
    points = np.array(
        [(x - half + lean, top), (x + half + lean, top), (x + half - lean, 1.05), (x - half - lean, 1.05)]
    )
    return Occluder(polygon(height, width, points), paint(height, width))


def railing(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw rails and bars with the person seen between them."""
    opacity = np.zeros((height, width), np.float32)
    top, bottom = rng.uniform(0.4, 0.75), rng.uniform(0.85, 1.1)
    thick = rng.uniform(0.015, 0.04)
    for y in (top, bottom - thick):
        opacity = np.maximum(opacity, polygon(height, width, rectangle(-0.05, y, 1.05, y + thick)))
    step = rng.uniform(0.1, 0.35)
    bar = min(rng.uniform(0.02, 0.06), 0.4 * step)
    for x in np.arange(rng.uniform(-0.1, step), 1.05, step):
        opacity = np.maximum(opacity, polygon(height, width, rectangle(x, top, x + bar, bottom)))
    return Occluder(opacity, paint(height, width))


def bush(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw foliage: a heap of round clumps with a ragged edge, from below, a side or above."""
    mask = np.zeros((height, width), np.uint8)
    centre = {0: (rng.uniform(0, 1), 1.0), 1: (rng.choice([0.0, 1.0]), rng.uniform(0.3, 1)), 2: (rng.random(), 0.05)}[
        int(rng.choice(3, p=[0.6, 0.3, 0.1]))
    ]
    spread = (rng.uniform(0.15, 0.5), rng.uniform(0.08, 0.3))
    for _ in range(int(rng.integers(8, 40))):
        x, y = rng.normal(centre, spread)
        radius = rng.uniform(0.05, 0.18) * width
        cv2.circle(mask, (int(x * width), int(y * height)), int(radius), 255, -1)
    ragged = noise(rng, height, width, rng.uniform(3, 7)) - 0.5
    opacity = cv2.GaussianBlur(mask, (0, 0), 2.5).astype(np.float32) / 255
    opacity = ((opacity + ragged * rng.uniform(0.3, 1.2) - 0.4) * 4).clip(0, 1)
    picture = leaves(rng, height, width) if rng.random() < 0.75 else paint(height, width)
    return Occluder(opacity, picture)


def sprig(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw twigs with single leaves, much of the person seen through."""
    mask = np.zeros((height, width), np.uint8)
    start = np.array([rng.choice([-0.05, 1.05]), rng.uniform(0.2, 1.0)]) * (width, height)
    if rng.random() < 0.5:
        start = np.array([rng.uniform(0, 1), 1.05]) * (width, height)
    for _ in range(int(rng.integers(3, 10))):
        end = rng.uniform(0, 1, 2) * (width, height)
        cv2.line(mask, tuple(start.astype(int)), tuple(end.astype(int)), 255, int(rng.integers(1, 3)))
        for share in np.linspace(0.2, 1, int(rng.integers(4, 14))):
            point = start + share * (end - start) + rng.normal(0, 5, 2)
            axes = (int(rng.integers(4, 12)), int(rng.integers(2, 5)))
            cv2.ellipse(mask, tuple(point.astype(int)), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    picture = leaves(rng, height, width) if rng.random() < 0.6 else paint(height, width)
    return Occluder(mask.astype(np.float32) / 255, picture)


def car(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw bonnet, body, windows and wheels of a car that stands in front; mostly more of it than the picture holds."""
    scale, top = rng.uniform(0.8, 2.2), rng.uniform(0.45, 0.85)
    x, tall = rng.uniform(-0.9, 0.4), rng.uniform(0.2, 0.4)
    roof = top - tall * rng.uniform(0.0, 0.6)
    body = np.array(
        [(0, top + 0.1 * tall), (0.25, top), (0.4, roof), (0.75, roof), (0.92, top), (1.0, top + 0.15 * tall),
         (1.0, top + tall), (0, top + tall)]
    )  # fmt: skip
    body[:, 0] = x + body[:, 0] * scale
    if rng.random() < 0.5:
        body[:, 0] = 1 - body[:, 0]
    opacity = polygon(height, width, body)
    base = colour(rng, dull=0.7)
    rows = np.linspace(1.3, 0.5, height, dtype=np.float32)[:, None, None]
    shine = 0.8 + 0.5 * fractal(rng, height, width, 40, stretch=0.4)[..., None]
    picture = (base * rows * shine).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        picture = paint(height, width)
    if roof < top - 0.05:
        window = body[[1, 2, 3, 4]] * [1, 1] + np.array([(0.04, -0.01), (0.03, 0.02), (-0.03, 0.02), (-0.04, -0.01)])
        glass = polygon(height, width, window)[..., None]
        picture = (picture * (1 - glass) + colour(rng) * rng.uniform(0.1, 0.6) * glass).astype(np.uint8)
    radius = int(rng.uniform(0.3, 0.5) * tall * height)
    wheels = np.zeros((height, width), np.uint8)
    for share in (0.2, 0.8):
        place = body[0, 0] + share * (body[5, 0] - body[0, 0])
        spot = (int(place * width), int((top + 0.95 * tall) * height))
        cv2.circle(wheels, spot, radius, 255, -1, cv2.LINE_AA)
        cv2.circle(picture, spot, radius, (25, 25, 28), -1, cv2.LINE_AA)
        cv2.circle(picture, spot, radius // 2, colour(rng).tolist(), -1, cv2.LINE_AA)
    lamp = (int((body[0, 0] + 0.06 * (body[5, 0] - body[0, 0])) * width), int((top + 0.3 * tall) * height))
    cv2.ellipse(picture, lamp, (8, 5), 0, 0, 360, (250, 245, 220), -1)
    return Occluder(np.maximum(opacity, wheels.astype(np.float32) / 255), picture)


def umbrella(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a canopy over the head or held in front, its panels in two tones, with a shaft."""
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.75)
    rx, ry = rng.uniform(0.35, 0.8), rng.uniform(0.1, 0.25)
    angles = np.linspace(np.pi, 2 * np.pi, 40)
    rim = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1)
    ribs = int(rng.integers(4, 8))
    lower = np.linspace(x + rx, x - rx, 40)
    sag = y - 0.03 * np.abs(np.sin(np.linspace(0, ribs * np.pi, 40)))
    opacity = polygon(height, width, np.vstack([rim, np.stack([lower, sag], 1)]))
    picture = paint(height, width)
    if rng.random() < 0.7:
        fabric = np.full((height, width, 3), colour(rng, dull=0.3), np.float32)
        columns = (np.arange(width) / width - x) / rx * ribs / 2
        fabric *= (0.75 + 0.35 * (np.floor(columns) % 2))[None, :, None]
        picture = fabric.clip(0, 255).astype(np.uint8)
    shaft = polygon(height, width, rectangle(x - 0.012, y - 0.03, x + 0.012, y + rng.uniform(0.2, 0.4)))
    return Occluder(np.maximum(opacity, shaft), picture)


def blob(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a closed smooth curve, for everything without a name."""
    count = int(rng.integers(4, 10))
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = np.ones(60)
    for harmonic in range(1, count):
        radius += rng.normal(0, 0.3 / harmonic) * np.cos(harmonic * angles + rng.random() * 7)
    centre = (rng.uniform(0, 1), rng.uniform(0.1, 1.0))
    size = (rng.uniform(0.12, 0.45), rng.uniform(0.07, 0.28))
    points = np.stack([centre[0] + size[0] * radius * np.cos(angles), centre[1] + size[1] * radius * np.sin(angles)], 1)
    return Occluder(polygon(height, width, points), paint(height, width))


def table(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a table or bench: a slab on legs."""
    top, thick = rng.uniform(0.5, 0.8), rng.uniform(0.03, 0.1)
    left, right = rng.uniform(-0.4, 0.3), rng.uniform(0.6, 1.4)
    opacity = polygon(height, width, rectangle(left, top, right, top + thick))
    for x in np.linspace(left + 0.05, right - 0.1, int(rng.integers(2, 4))):
        opacity = np.maximum(opacity, polygon(height, width, rectangle(x, top, x + rng.uniform(0.03, 0.08), 1.05)))
    return Occluder(opacity, paint(height, width))


def bicycle(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw two wheels and a frame: thin lines over the legs."""
    mask = np.zeros((height, width), np.uint8)
    radius = int(rng.uniform(0.18, 0.4) * width)
    line = int(rng.integers(2, 6))
    x, y = rng.uniform(-0.1, 0.5) * width, rng.uniform(0.75, 0.95) * height
    first, second = (int(x), int(y)), (int(x + 2.6 * radius), int(y))
    for wheel in (first, second):
        cv2.circle(mask, wheel, radius, 255, line, cv2.LINE_AA)
    saddle = (int(x + radius), int(y - 1.5 * radius))
    bars = (int(x + 2.2 * radius), int(y - 1.7 * radius))
    crank = (int(x + 1.2 * radius), int(y))
    for a, b in ((first, saddle), (saddle, crank), (crank, bars), (bars, second), (saddle, bars), (first, crank)):
        cv2.line(mask, a, b, 255, line, cv2.LINE_AA)
    return Occluder(mask.astype(np.float32) / 255, paint(height, width))


def suitcase(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a trolley case or bag that stands before the legs."""
    w, h = rng.uniform(0.25, 0.6), rng.uniform(0.15, 0.35)
    x, bottom = rng.uniform(-0.1, 0.9), rng.uniform(0.85, 1.05)
    opacity = polygon(height, width, rectangle(x, bottom - h, x + w, bottom))
    radius = 0.15
    opacity = (cv2.GaussianBlur(opacity, (0, 0), radius * 20) * 6 - 2.5).clip(0, 1)
    handle = polygon(height, width, rectangle(x + 0.3 * w, bottom - 1.6 * h, x + 0.36 * w, bottom - h))
    return Occluder(np.maximum(opacity, handle), paint(height, width))


def rag(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a ragged piece of noise, with holes: everything without a plain outline."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    centre = rng.uniform(0, 1, 2)
    reach = ((x / width - centre[0]) / rng.uniform(0.3, 0.9)) ** 2 + (
        (y / height - centre[1]) / rng.uniform(0.15, 0.5)
    ) ** 2
    ragged = fractal(rng, height, width, rng.uniform(10, 50)) * rng.uniform(0.6, 1.4)
    return Occluder(((1.2 - reach - ragged) * rng.uniform(4, 20)).clip(0, 1).astype(np.float32), paint(height, width))


def banner(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw all above a line: an awning, a branch's foliage, a banner, the frame of a window."""
    bottom = rng.uniform(0.08, 0.4)
    slope = rng.normal(0, 0.06)
    points = np.array([(-0.05, -0.05), (1.05, -0.05), (1.05, bottom + slope), (-0.05, bottom - slope)])
    return Occluder(polygon(height, width, points), paint(height, width))


def pillar(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a round column from the top to the bottom of the picture."""
    x, half = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.25)
    lit_from = rng.uniform(-0.6, 0.6)
    across = (np.arange(width) / width - x) / half
    shade = (1.15 - 0.7 * np.abs(across - lit_from)).clip(0.25, 1.2)
    picture = (paint(height, width) * shade[None, :, None]).clip(0, 255).astype(np.uint8)
    return Occluder(polygon(height, width, rectangle(x - half, -0.05, x + half, 1.05)), picture)


def chair(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a chair or stool: a back or none, a seat, legs."""
    left, seat = rng.uniform(-0.2, 0.6), rng.uniform(0.6, 0.85)
    right, thick = left + rng.uniform(0.3, 0.7), rng.uniform(0.02, 0.07)
    bar = rng.uniform(0.03, 0.08)
    opacity = polygon(height, width, rectangle(left, seat, right, seat + thick))
    for x in (left, right - bar):
        opacity = np.maximum(opacity, polygon(height, width, rectangle(x, seat, x + bar, 1.05)))
    if rng.random() < 0.7:
        top = seat - rng.uniform(0.15, 0.35)
        low = seat if rng.random() < 0.5 else top + rng.uniform(0.05, 0.12)
        opacity = np.maximum(opacity, polygon(height, width, rectangle(left, top, right, low)))
        opacity = np.maximum(opacity, polygon(height, width, rectangle(left, top, left + bar, seat)))
        opacity = np.maximum(opacity, polygon(height, width, rectangle(right - bar, top, right, seat)))
    return Occluder(opacity, paint(height, width))


def cable(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a thick curved stroke: hose, cable, arm of a machine, handrail."""
    ends = rng.uniform(-0.2, 1.2, (4, 2)) * (width, height)
    share = np.linspace(0, 1, 40)[:, None]
    curve = (
        (1 - share) ** 3 * ends[0]
        + 3 * share * (1 - share) ** 2 * ends[1]
        + 3 * share**2 * (1 - share) * ends[2]
        + share**3 * ends[3]
    )
    mask = np.zeros((height, width), np.uint8)
    thick = max(1, int(rng.uniform(0.02, 0.16) * width))
    cv2.polylines(mask, [np.round(curve).astype(np.int32)], False, 255, thick, cv2.LINE_AA)
    return Occluder(mask.astype(np.float32) / 255, paint(height, width))


def ring(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a tyre, hoop or frame seen through its middle."""
    mask = np.zeros((height, width), np.uint8)
    centre = (int(rng.uniform(0, 1) * width), int(rng.uniform(0.2, 1.0) * height))
    axes = (int(rng.uniform(0.2, 0.7) * width), int(rng.uniform(0.2, 0.7) * width))
    thick = max(2, int(rng.uniform(0.05, 0.25) * width))
    cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, thick, cv2.LINE_AA)
    return Occluder(mask.astype(np.float32) / 255, paint(height, width))


def cushion(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a round or oval body shaded as a solid: ball, helmet, sack, animal, balloon."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    centre = (rng.uniform(0.05, 0.95) * width, rng.uniform(0.15, 1.0) * height)
    axes = (rng.uniform(0.2, 0.55) * width, rng.uniform(0.2, 0.8) * width)
    turn = rng.random() * np.pi
    u = ((x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)) / axes[0]
    v = (-(x - centre[0]) * np.sin(turn) + (y - centre[1]) * np.cos(turn)) / axes[1]
    radius = u**2 + v**2
    light = (1.1 - 0.6 * np.hypot(x - centre[0] + 0.4 * axes[0], y - centre[1] + 0.5 * axes[1]) / max(axes)).clip(
        0.2, 1.2
    )
    picture = (paint(height, width) * light[..., None]).clip(0, 255).astype(np.uint8)
    return Occluder(((1 - radius) * 12).clip(0, 1).astype(np.float32), picture)


def angle_piece(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw two boards at right angles, an L or a T: shelves, gates, machines, scaffolds."""
    x, y = rng.uniform(-0.1, 0.7), rng.uniform(0.2, 0.8)
    across, down = rng.uniform(0.3, 0.9), rng.uniform(0.2, 0.6)
    first, second = rng.uniform(0.04, 0.15), rng.uniform(0.08, 0.3)
    foot = x + rng.choice([0.0, (across - second) / 2, across - second])
    opacity = polygon(height, width, rectangle(x, y, x + across, y + first))
    opacity = np.maximum(opacity, polygon(height, width, rectangle(foot, y, foot + second, y + down)))
    return Occluder(opacity, paint(height, width))


TRAINING: tuple[Kind, ...] = (
    box, box, wall, side, pole, railing, bush, bush, sprig, car, car, umbrella, blob, blob, table, bicycle, suitcase,
    rag, rag, banner, pillar, chair, cable, ring, cushion, angle_piece,
)  # fmt: skip
"""Kinds that training draws from; those named twice are drawn twice as often."""


def sign(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a round or triangular board on a post."""
    x, y, radius = rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.6), rng.uniform(0.2, 0.4)
    corners = 3 if rng.random() < 0.4 else 40
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) - np.pi / 2
    board = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles) * width / height], 1)
    post = polygon(height, width, rectangle(x - 0.03, y, x + 0.03, 1.05))
    return Occluder(np.maximum(polygon(height, width, board), post), paint(height, width))


def trunk(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a tree's trunk, curved, wider at the root, with branches."""
    rows = np.linspace(-0.05, 1.05, 30)
    middle = (
        rng.uniform(0.15, 0.85) + rng.normal(0, 0.08) * np.sin(rows * rng.uniform(1, 4)) + rng.normal(0, 0.1) * rows
    )
    half = rng.uniform(0.06, 0.16) * (0.7 + 0.8 * rows**3)
    outline = np.vstack([np.stack([middle - half, rows], 1), np.stack([middle + half, rows], 1)[::-1]])
    opacity = polygon(height, width, outline)
    for _ in range(int(rng.integers(0, 4))):
        start = int(rng.integers(3, 15))
        reach = rng.choice([-1, 1]) * rng.uniform(0.2, 0.6)
        thick = rng.uniform(0.01, 0.025)
        x, y = middle[start], rows[start]
        branch = np.array([(x, y - thick), (x + reach, y - 0.15), (x + reach, y - 0.14), (x, y + thick)])
        opacity = np.maximum(opacity, polygon(height, width, branch))
    return Occluder(opacity, paint(height, width))


def barrel(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a cone, bin or barrel on the ground, shaded as if round."""
    x, bottom = rng.uniform(0.1, 0.9), rng.uniform(0.9, 1.05)
    low, high = rng.uniform(0.2, 0.45), rng.uniform(0.03, 0.4)
    tall = rng.uniform(0.25, 0.5)
    points = np.array([(x - high, bottom - tall), (x + high, bottom - tall), (x + low, bottom), (x - low, bottom)])
    shade = 1.1 - 0.7 * np.abs(np.linspace(0, 1, width) - x) / max(low, high)
    picture = (paint(height, width) * shade.clip(0.2, 1.2)[None, :, None]).clip(0, 255).astype(np.uint8)
    return Occluder(polygon(height, width, points), picture)


def star(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a jagged shape with many corners."""
    count = int(rng.integers(5, 12)) * 2
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    radius = np.where(np.arange(count) % 2, rng.uniform(0.15, 0.3), rng.uniform(0.35, 0.6))
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.95)
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles) * 0.6], 1)
    return Occluder(polygon(height, width, points), paint(height, width))


def ladder(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
    """Draw a ladder or shelf: two uprights and rungs."""
    x, w, bar = rng.uniform(0.0, 0.6), rng.uniform(0.25, 0.5), rng.uniform(0.03, 0.07)
    top = rng.uniform(-0.1, 0.5)
    opacity = np.zeros((height, width), np.float32)
    for left in (x, x + w):
        opacity = np.maximum(opacity, polygon(height, width, rectangle(left, top, left + bar, 1.05)))
    for y in np.arange(top + 0.05, 1.05, rng.uniform(0.08, 0.2)):
        opacity = np.maximum(opacity, polygon(height, width, rectangle(x, y, x + w, y + bar / 2)))
    return Occluder(opacity, paint(height, width))


RESERVED: tuple[Kind, ...] = (sign, trunk, barrel, star, ladder)
"""Kinds that training never draws. The families of `shapes` are wide enough to come near some of them: a tapering body
of `turned` near a barrel, a `lattice` near a ladder."""
