"""Statistics of a mask file: areas, presence of parts, and the share of implausible masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.formats.masks import BODY_SIZE, FAILED, OK, PART_NAMES, PENDING, MaskFile
from pipeline.masks.occupancy import PLAUSIBLE_AREA, body_area, centroid_rows, part_area, plausible_order

WORST = 50

EMPTY = 1.0 / (BODY_SIZE[0] * BODY_SIZE[1])
"""A body mask that covers less than one cell is empty."""


@dataclass(frozen=True, slots=True)
class PartStats:
    """One part over all images; all numbers are zeros if the labels do not have it (`absent`).

    Attributes:
        present: Share of the images in which it covers at least one cell.
        area: Mean share of the image it covers, over images in which it is present.
        height: Mean height of its centroid, over the same images; 0 at the image's top, 1 at the bottom.
    """

    name: str
    absent: bool
    present: float
    area: float
    height: float


@dataclass(frozen=True, slots=True)
class MaskStats:
    """Statistics of a mask file. Shares are of the images with masks.

    Attributes:
        images: Images in the file.
        done: Images with masks.
        pending: Images of an incomplete file that have not been parsed yet.
        failed: Images that could not be parsed.
        parts: The four parts.
        area_mean: Mean share of an image that the body covers.
        area_plausible: Share of images in which it covers 12 to 75 %.
        empty: Share of images with an empty body mask.
        complete: Share of images in which all four parts are present.
        order_plausible: Share of those whose centroids are in the order head, upper body, lower body, shoes.
        implausible: Share of images whose area is implausible or whose present parts are out of order.
        quality_mean: Mean quality.
        worst: Names of the images of the lowest quality, the worst first.
    """

    images: int
    done: int
    pending: int
    failed: int
    parts: tuple[PartStats, ...]
    area_mean: float
    area_plausible: float
    empty: float
    complete: float
    order_plausible: float
    implausible: float
    quality_mean: float
    worst: tuple[str, ...]


def mask_stats(masks: MaskFile, *, worst: int = WORST) -> MaskStats:
    """Compute the statistics of a mask file; `worst` of the images of the lowest quality are listed."""
    good = np.flatnonzero(masks.status == OK)
    parts, body, quality = masks.parts[good], masks.body[good], masks.quality[good]
    areas, heights, bodies = part_area(parts), centroid_rows(parts), body_area(body)
    present = ~np.isnan(heights)
    sound_area = (bodies >= PLAUSIBLE_AREA[0]) & (bodies <= PLAUSIBLE_AREA[1])
    sound_order = np.asarray(plausible_order(parts) == 1)
    complete = np.asarray(present.all(axis=1))
    per_part = tuple(
        PartStats(
            name,
            absent=name in masks.absent_parts,
            present=_share(present[:, part]),
            area=_mean(areas[present[:, part], part]),
            height=_mean(heights[present[:, part], part]),
        )
        for part, name in enumerate(PART_NAMES)
    )
    return MaskStats(
        images=len(masks),
        done=len(good),
        pending=int((masks.status == PENDING).sum()),
        failed=int((masks.status == FAILED).sum()),
        parts=per_part,
        area_mean=_mean(bodies),
        area_plausible=_share(sound_area),
        empty=_share(np.asarray(bodies < EMPTY)),
        complete=_share(complete),
        order_plausible=_share(sound_order[complete]),
        implausible=_share(np.asarray(~(sound_area & sound_order))),
        quality_mean=_mean(quality),
        worst=worst_names(masks, worst),
    )


def worst_names(masks: MaskFile, count: int) -> tuple[str, ...]:
    """Return the images of the lowest quality, the worst first; failed images are left out."""
    good = np.flatnonzero(masks.status == OK)
    order = good[np.argsort(masks.quality[good], kind="stable")]
    return tuple(masks.names[row] for row in order[:count].tolist())


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else 0.0


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else 0.0
