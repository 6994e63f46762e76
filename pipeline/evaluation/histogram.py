"""A baseline without training: rank by colour histograms of stripes of the whole image.

A trained model must clearly exceed it. Its second figure, how often the nearest image is of the query's own camera,
shows how far the cameras of a data set are recognisable by colours and backgrounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.datasets.images import read_resized
from pipeline.datasets.records import Dataset, Record
from pipeline.matching.metrics import RankMetrics, rank_metrics

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

HEIGHT, WIDTH = 128, 64
STRIPES = 8
"""Horizontal stripes, each with its own histogram, so that shirt and trousers stay apart."""

BINS = (8, 4, 4)
"""Bins of hue, saturation and value."""


@dataclass(frozen=True, slots=True)
class HistogramBaseline:
    """Result of ranking by colour histograms.

    Attributes:
        metrics: Rank-1, mAP and so on, by the same protocol as any result.
        same_camera: Share of the queries whose first entry is of the query's own camera, and so another identity.
    """

    metrics: RankMetrics
    same_camera: float

    @property
    def rank1(self) -> float:
        """Share of the queries with a correct first entry."""
        return self.metrics.rank(1)


def histogram_baseline(
    dataset: Dataset, queries: Sequence[Record] | None = None, gallery: Sequence[Record] | None = None
) -> HistogramBaseline:
    """Rank gallery records for query records by histograms; None: those of the data set.

    Raises:
        ImageError: An image cannot be read.
        DataError: No query has a match in another camera.
    """
    sides = [dataset.split("query") if queries is None else queries]
    sides.append(dataset.split("gallery") if gallery is None else gallery)
    left, right = (
        np.stack([histogram(read_resized(dataset.path_of(record), HEIGHT, WIDTH)) for record in records])
        for records in sides
    )
    # One minus the Bhattacharyya coefficient.
    distances = np.asarray(1.0 - left @ right.T, np.float32)
    query_pids, gallery_pids = (np.array([record.pid for record in records], np.int64) for records in sides)
    query_camids, gallery_camids = (np.array([record.camid for record in records], np.int64) for records in sides)
    ids = (query_pids, gallery_pids, query_camids, gallery_camids)
    return HistogramBaseline(rank_metrics(distances, *ids), same_camera_share(distances, *ids))


def histogram(image: npt.NDArray[np.uint8]) -> Floats:
    """Return the HSV histograms of the stripes of an image (HEIGHT, WIDTH, 3): square roots, scaled to length 1.

    The inner product of two such vectors is the Bhattacharyya coefficient of the two histograms.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    band = hsv.shape[0] // STRIPES
    parts = [
        cv2.calcHist([hsv[i * band : (i + 1) * band]], [0, 1, 2], None, list(BINS), [0, 180, 0, 256, 0, 256]).ravel()
        for i in range(STRIPES)
    ]
    root = np.sqrt(np.concatenate(parts))
    return np.asarray(root / np.linalg.norm(root), np.float32)


def same_camera_share(
    distances: npt.NDArray[np.floating], query_pids: Ints, gallery_pids: Ints, query_camids: Ints, gallery_camids: Ints
) -> float:
    """Return the share of queries whose nearest entry, junk removed, is of their own camera."""
    same_camera = query_camids[:, None] == gallery_camids[None]
    junk = same_camera & (query_pids[:, None] == gallery_pids[None])
    nearest = np.where(junk, np.inf, distances).argmin(1)
    return float(same_camera[np.arange(len(nearest)), nearest].mean())
