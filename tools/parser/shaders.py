"""Procedural textures: random programs, random spectra, heaps of random shapes.

A network trained on a list of named textures learns that list. These have no names: each draw is unique, as in
Baradad et al., "Learning to See by Looking at Noise" (NeurIPS 2021) and "Procedural Image Programs for Representation
Learning" (NeurIPS 2022). All take a generator, a height and a width of at least 16 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from tools.parser.textures import Texture, blend, colour, fractal, noise

_ACTIVATIONS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    np.sin,
    np.tanh,
    np.abs,
    lambda x: np.exp(-x * x),
    lambda x: np.sin(3 * x),
    lambda x: np.minimum(np.abs(x), 1),
    lambda x: x,
)


def program(rng: np.random.Generator, height: int, width: int, outputs: int = 3) -> np.ndarray:
    """Evaluate a random network of coordinates and noise (a CPPN): (height, width, outputs) float32 in [0, 1]."""
    y, x = np.mgrid[0 : height // 2, 0 : width // 2].astype(np.float32)
    rows, columns = y.shape
    x, y = x / columns * 2 - 1, (y / rows * 2 - 1) * rows / columns
    zoom = rng.uniform(0.5, 4)
    centre = rng.normal(0, 0.7, 2)
    inputs = [x * zoom, y * zoom, np.hypot(x - centre[0], y - centre[1]) * zoom * rng.uniform(0.5, 3)]
    inputs += [fractal(rng, rows, columns, rng.uniform(5, 40)) * 4 - 2 for _ in range(2)]
    values = np.stack(inputs, 2)
    for _ in range(int(rng.integers(2, 5))):
        wide = 8
        mixed = values @ rng.normal(0, 1.3 / np.sqrt(values.shape[2]), (values.shape[2], wide)).astype(np.float32)
        mixed += rng.normal(0, 0.8, wide).astype(np.float32)
        for channel in range(wide):
            mixed[..., channel] = _ACTIVATIONS[int(rng.integers(len(_ACTIVATIONS)))](mixed[..., channel])
        values = mixed
    values = values @ rng.normal(0, 0.6, (values.shape[2], outputs)).astype(np.float32)
    low, high = np.quantile(values, (0.02, 0.98), axis=(0, 1))
    scaled = ((values - low) / np.maximum(high - low, 1e-4)).clip(0, 1).astype(np.float32)
    return np.asarray(cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)).reshape(
        height, width, outputs
    )


def shaded(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a random program's three numbers as colours, or its first between two colours."""
    values = program(rng, height, width)
    if rng.random() < 0.4:
        return blend(values[..., 0], colour(rng), colour(rng))
    return palette(rng, values)


def palette(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Draw three numbers in [0, 1] a pixel as a picture of random light and saturation."""
    grey = values.mean(2, keepdims=True)
    mixed = grey + (values - grey) * rng.uniform(0, 1.2)
    light = rng.uniform(0.25, 0.75) * 255
    return ((mixed - 0.5) * rng.uniform(60, 255) + light + rng.normal(0, 15, 3)).clip(0, 255).astype(np.uint8)


def spectral(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw noise whose power falls with frequency as in photographs, along a preferred direction or none."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    turn, squeeze = rng.random() * np.pi, np.exp(abs(rng.normal(0, 0.7)))
    u, v = fx * np.cos(turn) + fy * np.sin(turn), -fx * np.sin(turn) + fy * np.cos(turn)
    radius = np.hypot(u * squeeze, v / squeeze)
    fall = np.maximum(radius, 1 / max(height, width)) ** -rng.uniform(0.6, 2.2)
    if rng.random() < 0.3:
        fall = fall * np.exp(-(((radius - rng.uniform(0.02, 0.2)) / rng.uniform(0.01, 0.1)) ** 2))
    layers = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * rng.random(fall.shape))
        layer = np.fft.irfft2(fall * phases, (height, width))
        layers.append((layer - layer.mean()) / max(layer.std(), 1e-9) * 0.22 + 0.5)
    values = np.stack(layers, 2).astype(np.float32).clip(0, 1)
    if rng.random() < 0.4:
        values = values[..., :1].repeat(3, 2) * 0.85 + values * 0.15
    return palette(rng, values)


def heaped(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw shapes of all sizes lying over one another ("dead leaves"), as things in a photograph do."""
    picture = np.full((height, width, 3), colour(rng), np.uint8)
    ground = [colour(rng, dull=0.5) for _ in range(int(rng.integers(2, 7)))]
    smallest = rng.uniform(2, 10)
    kind = int(rng.integers(4))
    for _ in range(int(rng.integers(30, 160))):
        size = min(smallest / rng.random() ** 0.6, 70.0)
        spot = rng.random(2) * (width, height)
        tone = (ground[int(rng.integers(len(ground)))] * rng.uniform(0.5, 1.3) + rng.normal(0, 8, 3)).clip(0, 255)
        corners = (3, 4, 24, int(rng.integers(3, 9)))[kind]
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners < 24 else np.linspace(0, 2 * np.pi, 24)
        axes = size * np.exp(rng.normal(0, 0.4, 2))
        points = spot + np.stack([np.cos(angles) * axes[0], np.sin(angles) * axes[1]], 1)
        cv2.fillPoly(picture, [np.round(points * 16).astype(np.int32)], tone.tolist(), cv2.LINE_AA, 4)
    return picture


def veined(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw lines of equal height of a noise: marble, contour lines, moiré, growth."""
    field = fractal(rng, height, width, rng.uniform(15, 90), stretch=float(np.exp(rng.normal(0, 0.6))))
    waves = 0.5 + 0.5 * np.sin(field * rng.uniform(6, 60) + rng.random() * 7)
    return blend(waves ** rng.uniform(0.3, 4), colour(rng), colour(rng))


def levelled(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a noise or a program cut into a few flat colours: camouflage, prints, peeling paint."""
    if rng.random() < 0.5:
        field = fractal(rng, height, width, rng.uniform(8, 60))
    else:
        field = program(rng, height, width, 1)[..., 0]
    tones = np.stack([colour(rng, dull=0.4) for _ in range(int(rng.integers(2, 7)))])
    return tones[(field * len(tones)).astype(int).clip(0, len(tones) - 1)].astype(np.uint8)


def banded(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw bands of uneven width, upright or across, some shaded as if round: shelves, pipes, blinds."""
    length = height if rng.random() < 0.6 else width
    edges = np.sort(rng.integers(0, length, int(rng.integers(2, 16))))
    which = np.searchsorted(edges, np.arange(length))
    tones = np.stack([colour(rng, dull=0.5) for _ in range(len(edges) + 1)])
    if rng.random() < 0.5:
        tones = tones[np.arange(len(tones)) % 2]
    line = tones[which]
    if rng.random() < 0.5:
        line = line * (0.7 + 0.5 * np.sin(np.arange(length) * rng.uniform(0.05, 0.6)))[:, None]
    shape = (height, 1, 3) if length == height else (1, width, 3)
    filled = np.broadcast_to(line.reshape(shape), (height, width, 3))
    return np.asarray(filled * (0.8 + 0.4 * noise(rng, height, width, 50))[..., None]).clip(0, 255).astype(np.uint8)


def scribbled(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw strokes of few colours on a ground: graffiti, twigs, cracks, wiring, scratches."""
    picture = levelled(rng, height, width) if rng.random() < 0.3 else np.full((height, width, 3), colour(rng), np.uint8)
    tones = [colour(rng, dull=0.3) for _ in range(int(rng.integers(1, 4)))]
    widest = int(rng.integers(2, 9))
    for _ in range(int(rng.integers(6, 50))):
        steps = np.cumsum(rng.normal(0, rng.uniform(4, 22), (int(rng.integers(2, 9)), 2)), 0)
        points = np.round(rng.random(2) * (width, height) + steps).astype(np.int32)
        tone = tones[int(rng.integers(len(tones)))]
        cv2.polylines(picture, [points], False, tone.tolist(), int(rng.integers(1, widest)), cv2.LINE_AA)
    return picture


_SIMPLE: tuple[Texture, ...] = (shaded, shaded, spectral, spectral, heaped, veined, levelled, banded, scribbled)


def warped(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw another of these drawn out of shape, or mirrored about its middle lines and repeated."""
    picture = _SIMPLE[int(rng.integers(len(_SIMPLE)))](rng, height, width)
    if rng.random() < 0.4:
        tile = cv2.resize(picture, (max(4, int(rng.integers(8, 60))), max(4, int(rng.integers(8, 60)))))
        tile = np.hstack([tile, tile[:, ::-1]]) if rng.random() < 0.7 else tile
        tile = np.vstack([tile, tile[::-1]]) if rng.random() < 0.7 else tile
        repeated = np.tile(tile, (height // tile.shape[0] + 1, width // tile.shape[1] + 1, 1))
        return np.ascontiguousarray(repeated[:height, :width])
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    reach, cell = rng.uniform(5, 50), rng.uniform(15, 80)
    across = x + (noise(rng, height, width, cell) - 0.5) * 2 * reach
    down = y + (noise(rng, height, width, cell) - 0.5) * 2 * reach
    return np.asarray(cv2.remap(picture, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def quilted(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw rectangles of several of these side by side: stalls, fronts of shops, stacked goods, machines."""
    picture = _SIMPLE[int(rng.integers(len(_SIMPLE)))](rng, height, width)
    for _ in range(int(rng.integers(1, 5))):
        other = _SIMPLE[int(rng.integers(len(_SIMPLE)))](rng, height, width)
        top, left = int(rng.integers(0, height - 8)), int(rng.integers(0, width - 8))
        rows, columns = int(rng.integers(8, height)), int(rng.integers(8, width))
        picture[top : top + rows, left : left + columns] = other[top : top + rows, left : left + columns]
    return picture


TRAINING: tuple[Texture, ...] = (*_SIMPLE, warped, warped, quilted, quilted)
"""Textures that training draws from, beside those of `textures`."""
