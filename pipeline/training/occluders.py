"""Cut-outs of objects and people to paste in front of training images (rendered by `tools/occluders.py`)."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

TILE_HEIGHT = 96
TILE_WIDTH = 64
TILES_PER_ROW = 16


def read_tiles(path: Path) -> Tensor:
    """Read a sheet of cut-outs.

    Returns:
        (N, 4, 96, 64) uint8 RGBA; tiles without an opaque pixel are left out.
    """
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGBA"))
    rows, columns = sheet.shape[0] // TILE_HEIGHT, sheet.shape[1] // TILE_WIDTH
    tiles = sheet.reshape(rows, TILE_HEIGHT, columns, TILE_WIDTH, 4).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(-1, 4, TILE_HEIGHT, TILE_WIDTH)
    return torch.from_numpy(np.ascontiguousarray(tiles[tiles[:, 3].any((1, 2))]))


@functools.lru_cache(maxsize=1)
def occluder_tiles() -> Tensor:
    """The cut-outs of this package: (N, 4, 96, 64) uint8 RGBA on the CPU."""
    with resources.as_file(resources.files("pipeline.training") / "occluders.webp") as path:
        return read_tiles(path)
