"""Average label maps over the cells of a mask file, and rate how plausible the masks are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets.images import WHOLE_AREA, Area
from pipeline.formats.masks import PARTS_SIZE

RESIZE_RULE = "area"
"""Recorded in mask files: each cell is the mean of the label map over the exact area of the cell."""

PLAUSIBLE_AREA = (0.12, 0.75)
"""Plausible range of the share of a person crop that the body covers."""

PRESENT = 1.0 / (PARTS_SIZE[0] * PARTS_SIZE[1])
"""A part is present where its mean occupancy is at least that of one full cell."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def area_average(maps: Tensor, size: tuple[int, int], areas: NDArray[np.float64] | None = None) -> Tensor:
    """Average maps (B, K, h, w) over the cells of a grid on the image: (B, K, rows, columns).

    Cell (i, j) is the mean of the map over the rectangle of the cell; pixels at its border are weighted by the share
    inside it. So the mean over all cells is the mean over the image, whatever the sizes. `areas` (B, 4) is the part of
    each map that the image covers (top, left, bottom, right as fractions); None: all.
    """
    if areas is None or bool((areas == WHOLE_AREA).all()):
        return _average(maps, size, WHOLE_AREA)
    averaged = maps.new_empty((*maps.shape[:2], *size))
    # Images of one shape share an area; in most data sets that is all of them.
    distinct, member = np.unique(areas, axis=0, return_inverse=True)
    for index, area in enumerate(distinct):
        rows = torch.from_numpy(np.flatnonzero(member.reshape(-1) == index)).to(maps.device)
        averaged[rows] = _average(maps[rows], size, tuple(area.tolist()))
    return averaged


def _average(maps: Tensor, size: tuple[int, int], area: Area) -> Tensor:
    if area == WHOLE_AREA and maps.shape[2:] == size:
        return maps
    top, left, bottom, right = area
    rows = _overlaps(maps.shape[2], size[0], top, bottom).to(maps)
    columns = _overlaps(maps.shape[3], size[1], left, right).to(maps)
    return rows @ maps @ columns.T


def _overlaps(count: int, cells: int, low: float, high: float) -> Tensor:
    """(cells, count) weights, each row summing to 1: the overlap of each cell with each pixel of an axis."""
    edges = torch.linspace(low * count, high * count, cells + 1, dtype=torch.float64)
    pixels = torch.arange(count, dtype=torch.float64)
    begin = torch.maximum(edges[:-1, None], pixels)
    end = torch.minimum(edges[1:, None], pixels + 1)
    weights = (end - begin).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def quantise(occupancy: Tensor) -> Bytes:
    """Return occupancy in [0, 1] as 0..255, rounded half up; the error is at most 1/510."""
    return torch.floor(occupancy * 255 + 0.5).clamp(0, 255).to(torch.uint8).cpu().numpy()


def confidence(soft: Tensor, body: Tensor) -> Floats:
    """Return (N,) float32 in [0, 1], the mean confidence of a parser's labels on the body.

    conf = sum_x w(x) max_c p_c(x) / sum_x w(x), with p the soft labels (B, C, h, w) and w the body occupancy
    (B, 1, h, w) of pixel x; 0 for an empty body.
    """
    best = soft.amax(dim=1)
    weights = body[:, 0]
    total = weights.sum(dim=(1, 2))
    mean = (weights * best).sum(dim=(1, 2)) / total.clamp(min=1e-6)
    return mean.clamp(0, 1).float().cpu().numpy()


def body_area(body: Bytes) -> NDArray[np.float64]:
    """Return (N,) the share of each image that its body mask (N, 64, 32) covers."""
    return np.asarray(body.mean(axis=(1, 2), dtype=np.float64) / 255)


def part_area(parts: Bytes) -> NDArray[np.float64]:
    """Return (N, 4) the share of each image that its part masks (N, 4, 16, 8) cover."""
    return np.asarray(parts.mean(axis=(2, 3), dtype=np.float64) / 255)


def centroid_rows(parts: Bytes) -> NDArray[np.float64]:
    """Return (N, 4) the height of each part's centroid, 0 at the image's top and 1 at its bottom; NaN if absent."""
    rows = (np.arange(parts.shape[2]) + 0.5) / parts.shape[2]
    weight = parts.sum(axis=3, dtype=np.float64)
    total = weight.sum(axis=2)
    present = part_area(parts) >= PRESENT
    return np.where(present, (weight * rows).sum(axis=2) / np.maximum(total, 1), np.nan)


def plausible_order(parts: Bytes) -> NDArray[np.float64]:
    """Return (N,) the share of neighbouring present parts in order from head to shoes; 1 for fewer than two."""
    heights = centroid_rows(parts)
    ordered = np.ones(len(parts))
    for row, values in enumerate(heights):
        present = values[~np.isnan(values)]
        if len(present) > 1:
            ordered[row] = float((np.diff(present) > 0).mean())
    return ordered


def plausibility(parts: Bytes, body: Bytes) -> Floats:
    """Rate how plausible masks are for a person crop: parts (N, 4, 16, 8) and body (N, 64, 32), uint8.

    The product of two factors. Area: 1 where the body covers 12 to 75 % of the image, falling linearly to 0 at 0 and
    at 100 %. Order: the share of neighbouring present parts whose centroids are in order from head to shoes.

    Returns:
        (N,) float32 in [0, 1].
    """
    low, high = PLAUSIBLE_AREA
    area = body_area(body)
    factor = np.clip(np.minimum(area / low, (1 - area) / (1 - high)), 0, 1)
    return (factor * plausible_order(parts)).astype(np.float32)
