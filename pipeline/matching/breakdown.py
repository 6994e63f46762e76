"""Where a ranking is good and where it is not: by what the query shows, and by pair of cameras."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.matching.intervals import bootstrap_mean
from pipeline.matching.metrics import AveragePrecision, Ranking, RankMetrics
from pipeline.parts import PARTS, SEMANTIC

Bools = npt.NDArray[np.bool_]

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Edges of the bins of the visible fraction; the last bin holds its right edge."""


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics of some queries.

    Attributes:
        by: What divides the queries: visible fraction, a part, the set of semantic parts, cameras.
        value: Which of the groups.
        queries: Queries with a match.
        rank1: Share of them whose first entry is the right person.
        mAP: Their mean average precision.
        mINP: Their mean inverse negative penalty.
    """

    by: str
    value: str
    queries: int
    rank1: float
    mAP: float  # noqa: N815
    mINP: float  # noqa: N815


@dataclass(frozen=True, slots=True)
class Gain:
    """What looking only at shared parts gained, query by query, against the same rule with visibility ignored.

    Attributes:
        mean: Mean difference of AP.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        better: Queries whose AP rose.
        worse: Queries whose AP fell.
        equal: Queries whose AP stayed.
    """

    mean: float
    low: float
    high: float
    better: int
    worse: int
    equal: int


def by_fraction(metrics: RankMetrics, fraction: npt.NDArray[np.float64]) -> list[Group]:
    """By the visible fraction of the query, in four bins; queries of unknown fraction (NaN) are left out."""
    bin_of = np.clip(np.searchsorted(FRACTIONS, fraction, side="right") - 1, 0, len(FRACTIONS) - 2)
    known = ~np.isnan(fraction)
    return [
        group
        for i, (low, high) in enumerate(itertools.pairwise(FRACTIONS))
        for group in _group("visible fraction", f"{low:.0%} to {high:.0%}", metrics, known & (bin_of == i))
    ]


def by_part(metrics: RankMetrics, visible: Bools) -> list[Group]:
    """For each part, queries that show it and queries that do not. `visible` is (Q,7)."""
    return [
        group
        for i, part in enumerate(PARTS)
        for value, chosen in (("visible", visible[:, i]), ("hidden", ~visible[:, i]))
        for group in _group(part, value, metrics, chosen)
    ]


def by_visible_set(metrics: RankMetrics, visible: Bools, *, at_least: int = 1) -> list[Group]:
    """By the set of semantic parts that the query shows, most frequent first; sets of fewer queries are left out."""
    semantic = visible[:, : len(SEMANTIC)]
    code = semantic @ (1 << np.arange(len(SEMANTIC)))
    codes, counts = np.unique(code[metrics.valid], return_counts=True)
    return [
        group
        for one, count in sorted(zip(codes.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
        if count >= at_least
        for group in _group("semantic parts", _names(one), metrics, code == one)
    ]


def by_camera_pair(
    ranking: Ranking,
    query_camids: npt.NDArray[np.int64],
    gallery_camids: npt.NDArray[np.int64],
    average_precision: AveragePrecision = "mean",
) -> list[Group]:
    """By camera of the query and of the match: only the matches of one camera count, those of others are removed."""
    relatives = ranking.relatives
    from_camera, to_camera = query_camids[relatives.query], gallery_camids[relatives.entry]
    pairs = np.unique(np.stack([from_camera, to_camera], axis=1)[relatives.match], axis=0)
    found: list[Group] = []
    for a, b in pairs.tolist():
        try:
            metrics = ranking.metrics(1, average_precision, among=(from_camera == a) & (to_camera == b))
        except DataError:
            continue
        found += _group("cameras", f"{a} to {b}", metrics, metrics.valid)
    return found


def gain(shared: RankMetrics, ignored: RankMetrics, *, samples: int = 1000) -> Gain:
    """Compare the AP of each query under two rankings of the same gallery."""
    difference = (shared.per_query_ap - ignored.per_query_ap)[shared.valid & ignored.valid]
    interval = bootstrap_mean(difference, samples=samples)
    better, worse = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
    return Gain(interval.mean, interval.low, interval.high, better, worse, len(difference) - better - worse)


def _group(by: str, value: str, metrics: RankMetrics, queries: Bools) -> Iterator[Group]:
    """One group, or none where no query of it has a match."""
    chosen = metrics.subset(queries)
    if chosen is not None:
        yield Group(by, value, chosen.num_valid_queries, chosen.rank(1), chosen.mAP, chosen.mINP)


def _names(code: int) -> str:
    return " + ".join(part for i, part in enumerate(SEMANTIC) if code >> i & 1) or "none"
