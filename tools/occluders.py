"""Render the cut-outs that training and the occluded development set paste in front of people.

`python -m tools.occluders` writes two sheets of tiles with transparency: `pipeline/training/occluders.webp` for
training, and `benchmarks/occluders.webp` of kinds of objects and of people that the first one does not have.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.runtime import seeds
from pipeline.training.occluders import TILE_HEIGHT, TILE_WIDTH, TILES_PER_ROW
from sgsfa_synth import scene
from sgsfa_synth.camera import Extent
from sgsfa_synth.garments import dress
from sgsfa_synth.identity import sample_identity
from sgsfa_synth.pose import sample_pose
from sgsfa_synth.props import prop
from sgsfa_synth.raster import rasterise

TRAINING = ("car", "bicycle", "plant", "bush", "hedge", "railing", "fence", "pillar", "post", "bin", "barrier", "bench")
HELD_OUT = ("cart", "tree", "sign", "boxes", "parasol", "planter", "stool")
PER_KIND = 12
PEOPLE = 48
HELD_OUT_PEOPLE = 24
FIRST_HELD_OUT = 300
"""People of the training sheet have smaller numbers."""

_MARGIN = 0.02
_CAMERAS = 40


def item_of(kind: str, number: int, random: np.random.Generator) -> scene.Item:
    """A prop of that kind, or a passer-by, turned at random."""
    if kind != "person":
        thing = prop(kind, number)
        item = scene.Item(thing.mesh, finish=thing.finish)
    else:
        identity = sample_identity(0, number, population="passers-by")
        item = scene.Item(dress(identity, sample_pose(random), random), identity)
    # Long objects lie across the view.
    yaw = random.uniform(0, 2 * math.pi) if kind == "person" else random.normal(0, 0.4)
    return item.moved(yaw, 0.0, 0.0)


def cut_out(kind: str, number: int) -> np.ndarray:
    """Render an object by itself: (H, W, 4) uint8 RGBA, tight around it and stretched to a tile."""
    random = seeds.rng(0, "cut-out", kind, number)
    identity = sample_identity(0, number)
    words = (number, sum(map(ord, kind)))
    composed = scene.compose(identity, 0, number % _CAMERAS, words, occluded=False, settings=scene.SceneSettings())
    item = item_of(kind, number, random)
    plane, inverse_depth = composed.view.project(item.mesh.vertices[item.mesh.visible_vertices])
    extent = Extent.of(plane)
    wide, tall = extent.right - extent.left, extent.bottom - extent.top
    window = replace(
        composed.window,
        left=extent.left - _MARGIN * wide,
        top=extent.top - _MARGIN * tall,
        width=(1 + 2 * _MARGIN) * wide,
        height=(1 + 2 * _MARGIN) * tall,
    )
    settings = scene.SceneSettings(height=2 * TILE_HEIGHT, width=2 * TILE_WIDTH, degrade=False)
    alone = replace(composed, items=(item,), window=window)
    picture = scene.draw(alone, settings, random).image
    plane, inverse_depth = composed.view.project(item.mesh.vertices)
    height, width = settings.height * 2, settings.width * 2
    buffer = rasterise(
        window.pixels(plane, height, width), inverse_depth, item.mesh.faces, item.mesh.edges, height, width
    )
    covered = (buffer.face >= 0).astype(np.float32) * 255
    size = (TILE_WIDTH, TILE_HEIGHT)
    opacity = cv2.resize(covered, size, interpolation=cv2.INTER_AREA)
    colour = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.dstack([colour, opacity.round().astype(np.uint8)])


def sheet(tiles: Sequence[np.ndarray]) -> Image.Image:
    """Tiles side by side, `TILES_PER_ROW` in a row; the last row is filled with empty ones."""
    rows = -(-len(tiles) // TILES_PER_ROW)
    empty = np.zeros_like(tiles[0])
    padded = [*tiles, *[empty] * (rows * TILES_PER_ROW - len(tiles))]
    lines = [np.concatenate(padded[i : i + TILES_PER_ROW], 1) for i in range(0, len(padded), TILES_PER_ROW)]
    return Image.fromarray(np.concatenate(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--training", type=Path, default=Path("pipeline/training/occluders.webp"))
    parser.add_argument("--held-out", type=Path, default=Path("benchmarks/occluders.webp"))
    arguments = parser.parse_args()
    for path, kinds, people in (
        (arguments.training, TRAINING, range(PEOPLE)),
        (arguments.held_out, HELD_OUT, range(FIRST_HELD_OUT, FIRST_HELD_OUT + HELD_OUT_PEOPLE)),
    ):
        tiles = [cut_out(kind, number) for kind in kinds for number in range(PER_KIND)]
        tiles += [cut_out("person", number) for number in people]
        sheet(tiles).save(path, quality=80, method=6)
        print(f"{path}: {len(tiles)} tiles, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
