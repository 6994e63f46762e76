"""Metrics of groups of queries: by visible fraction, by visible parts and by pair of cameras."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.formats.results import Gain, Group
from pipeline.matching.intervals import bootstrap_mean
from pipeline.matching.metrics import AveragePrecision, Ranking, RankMetrics
from pipeline.parts import PARTS, SEMANTIC

Bools = npt.NDArray[np.bool_]

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Edges of the bins of the visible fraction; the last bin holds its right edge."""

_MOST_CAMERAS = 64


def by_fraction(metrics: RankMetrics, fraction: npt.NDArray[np.float64]) -> list[Group]:
    """Group by the visible fraction of the query, in four bins, without queries of unknown fraction (NaN)."""
    bin_of = np.clip(np.searchsorted(FRACTIONS, fraction, side="right") - 1, 0, len(FRACTIONS) - 2)
    known = ~np.isnan(fraction)
    return [
        group
        for i, (low, high) in enumerate(itertools.pairwise(FRACTIONS))
        for group in _group("visible fraction", f"{low:.0%} to {high:.0%}", metrics, known & (bin_of == i))
    ]


def by_part(metrics: RankMetrics, visible: Bools) -> list[Group]:
    """Group by each part: queries where it is visible and where it is not. `visible` is (Q,7)."""
    return [
        group
        for i, part in enumerate(PARTS)
        for value, chosen in (("visible", visible[:, i]), ("hidden", ~visible[:, i]))
        for group in _group(part, value, metrics, chosen)
    ]


def by_visible_set(metrics: RankMetrics, visible: Bools) -> list[Group]:
    """Group by the set of visible semantic parts, most frequent first."""
    semantic = visible[:, : len(SEMANTIC)]
    code = semantic @ (1 << np.arange(len(SEMANTIC)))
    codes, counts = np.unique(code[metrics.valid], return_counts=True)
    return [
        group
        for one in codes[np.argsort(-counts, kind="stable")].tolist()
        for group in _group("semantic parts", _names(one), metrics, code == one)
    ]


def by_camera_pair(
    ranking: Ranking,
    query_camids: npt.NDArray[np.int64],
    gallery_camids: npt.NDArray[np.int64],
    average_precision: AveragePrecision = "mean",
) -> list[Group]:
    """Group by camera of the query and of the match; matches of other cameras are removed.

    Empty for more than 64 cameras: too many pairs, or one camera per image where cameras are unknown.
    """
    if len(np.union1d(query_camids, gallery_camids)) > _MOST_CAMERAS:
        return []
    related = ranking.related
    from_camera, to_camera = query_camids[related.query], gallery_camids[related.entry]
    pairs = np.unique(np.stack([from_camera, to_camera], axis=1)[related.positive], axis=0)
    found: list[Group] = []
    for a, b in pairs.tolist():
        try:
            metrics = ranking.metrics(1, average_precision, among=(from_camera == a) & (to_camera == b))
        except DataError:
            continue
        found += _group("cameras", f"{a} to {b}", metrics, metrics.valid)
    return found


def gain(shared: RankMetrics, ignored: RankMetrics, *, samples: int = 1000) -> Gain | None:
    """Compare the AP of each query under two rankings of the same gallery; None without a query in both."""
    difference = (shared.per_query_ap - ignored.per_query_ap)[shared.valid & ignored.valid]
    interval = bootstrap_mean(difference, samples=samples)
    if interval is None:
        return None
    better, worse = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
    return Gain(interval.mean, interval.low, interval.high, better, worse, len(difference) - better - worse)


def _group(by: str, value: str, metrics: RankMetrics, queries: Bools) -> Iterator[Group]:
    """Yield the group, or nothing where none of its queries has a match."""
    chosen = metrics.subset(queries)
    if chosen is not None:
        yield Group(by, value, chosen.num_valid_queries, chosen.rank(1), chosen.mAP, chosen.mINP)


def _names(code: int) -> str:
    return " + ".join(part for i, part in enumerate(SEMANTIC) if code >> i & 1) or "none"
