"""Breakdowns against metrics computed on the subset from scratch."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.matching import breakdown
from pipeline.matching.metrics import Ranking, RankMetrics, RankStream, rank_metrics


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, tuple[np.ndarray, ...], Ranking, RankMetrics]:
    rng = np.random.default_rng(8)
    distances = rng.random((30, 90), dtype=np.float32)
    ids = rng.integers(0, 9, 30), rng.integers(0, 9, 90), rng.integers(0, 3, 30), rng.integers(0, 3, 90)
    stream = RankStream(*ids)
    stream.update(distances)
    return distances, ids, stream.ranking(), stream.compute()


def from_scratch(case: tuple, queries: np.ndarray, removed: np.ndarray | None = None) -> RankMetrics:
    distances, (qp, gp, qc, gc), _, _ = case
    kept = np.ones(len(gp), dtype=bool) if removed is None else ~removed
    return rank_metrics(distances[queries][:, kept], qp[queries], gp[kept], qc[queries], gc[kept])


def test_by_fraction(case: tuple) -> None:
    fraction = np.linspace(0, 1, 30)
    fraction[3] = np.nan
    groups = breakdown.by_fraction(case[3], fraction)
    assert [group.value for group in groups] == ["0% to 25%", "25% to 50%", "50% to 75%", "75% to 100%"]
    last = from_scratch(case, fraction >= 0.75)
    assert (groups[-1].queries, groups[-1].mAP) == (last.num_valid_queries, pytest.approx(last.mAP))
    assert sum(group.queries for group in groups) == case[3].subset(np.arange(30) != 3).num_valid_queries


def test_by_part_and_by_set(case: tuple) -> None:
    visible = np.random.default_rng(1).random((30, 7)) < 0.6
    for group in breakdown.by_part(case[3], visible):
        column = ("head", "upper", "lower", "shoes", "top", "middle", "bottom").index(group.by)
        expected = from_scratch(case, visible[:, column] == (group.value == "visible"))
        assert group.mAP == pytest.approx(expected.mAP)
        assert group.rank1 == pytest.approx(expected.rank(1))
    sets = breakdown.by_visible_set(case[3], visible)
    assert sum(group.queries for group in sets) == case[3].num_valid_queries
    assert [group.queries for group in sets] == sorted((group.queries for group in sets), reverse=True)
    chosen = visible[:, 0] & ~visible[:, 1] & visible[:, 2] & ~visible[:, 3]
    expected_set = from_scratch(case, chosen)
    assert next(group for group in sets if group.value == "head + lower").mINP == pytest.approx(expected_set.mINP)


def test_by_camera_pair_removes_matches_of_other_cameras(case: tuple) -> None:
    distances, (qp, gp, qc, gc), ranking, _ = case
    groups = {group.value: group for group in breakdown.by_camera_pair(ranking, qc, gc)}
    assert len(groups) == 6
    total = 0.0
    queries = np.flatnonzero(qc == 1)
    for i in queries:
        removed = (gp == qp[i]) & (gc != 2)
        if (gp[~removed] == qp[i]).any():
            total += rank_metrics(distances[[i]][:, ~removed], qp[[i]], gp[~removed], qc[[i]], gc[~removed]).mAP
    group = groups["1 to 2"]
    assert group.mAP == pytest.approx(total / group.queries)


def test_gain(case: tuple) -> None:
    metrics = case[3]
    same = breakdown.gain(metrics, metrics)
    assert (same.mean, same.better, same.worse, same.equal) == (0, 0, 0, metrics.num_valid_queries)
    worse = rank_metrics(np.random.default_rng(2).random((30, 90)), *case[1])
    found = breakdown.gain(metrics, worse)
    assert found.mean == pytest.approx(metrics.mAP - worse.mAP)
    assert found.low < found.mean < found.high
    assert found.better + found.worse + found.equal == metrics.num_valid_queries
