"""What a report collects: rankings, reasons, choice of queries, and agreement with the result."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.config import MatchingConfig
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.report.charts import distance_chart, training_chart
from pipeline.evaluation.report.collect import ReportInput, choose_queries, collect
from pipeline.evaluation.report.failures import LOOK_ALIKE, MATCH_HIDDEN, NOTHING_SHARED, ONE_PART, failure_reasons
from pipeline.evaluation.report.page import render
from pipeline.evaluation.report.ranking import rankings
from pipeline.formats.features import Features
from pipeline.matching.distance import MatchingRule, RuleName, distance_matrix
from pipeline.parts import PARTS
from tests.helpers.evaluation import TestSet
from tests.helpers.features import clustered

RULES: tuple[RuleName, ...] = ("shrunk", "mean", "sum", "query", "all")


def with_ids(features: Features, num_ids: int, seed: int) -> Features:
    camids = np.random.default_rng(seed).integers(1, 4, len(features))
    names = np.array([f"{seed}/{i}.jpg" for i in range(len(features))])
    return replace(features, pids=np.arange(len(features)) % num_ids, camids=camids, names=names)


def report_input(test_set: TestSet, rule: RuleName = "shrunk", **changes: object) -> ReportInput:
    config = MatchingConfig(rule=rule, bootstrap=100)
    evaluation = evaluate(test_set.features, dataset=test_set.dataset, config=config)
    features = Features.load(test_set.features)
    return ReportInput(evaluation, features, MatchingRule.from_config(config), test_set.dataset, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RULES)
def test_rankings__equal_a_plain_sort_of_the_matrix(name: RuleName) -> None:
    query, gallery = with_ids(clustered(20, 1), 12, 1), with_ids(clustered(70, 2), 12, 2)
    rule = MatchingRule(name)
    found = rankings(query, gallery, rule, k=5)
    matrix = distance_matrix(query, gallery, rule=rule).astype(np.float64)
    same = query.pids[:, None] == gallery.pids
    junk = same & (query.camids[:, None] == gallery.camids)
    matrix[junk] = np.inf
    assert found.distances == pytest.approx(np.sort(matrix, axis=1)[:, :5], abs=1e-6)
    matches = np.where(same & ~junk, matrix, np.inf)
    best = np.where(np.isfinite(matches).any(axis=1), matches.argmin(axis=1), -1)
    assert found.best_match.tolist() == best.tolist()
    assert found.histogram.genuine.sum() == (same & ~junk).sum()
    assert found.histogram.impostor.sum() == (~same).sum()
    threshold = found.histogram.threshold(0.01)
    assert (matrix[~same] < threshold).mean() <= 0.01
    width = found.histogram.upper / len(found.histogram.impostor)
    assert (matrix[~same] < threshold + 2 * width).mean() > 0.01
    assert found.histogram.true_positive_rate(threshold) == pytest.approx((matches[same & ~junk] < threshold).mean())


def features(rows: Sequence[tuple[int, int, Sequence[float], Sequence[int]]]) -> Features:
    """Rows of person id, camera id, an angle for each part, and which parts are visible."""
    angles = np.array([row[2] for row in rows])
    return Features.from_arrays(
        np.stack([np.cos(angles), np.sin(angles)], axis=2),
        None,
        np.array([row[3] for row in rows], np.float32),
        pids=[row[0] for row in rows],
        camids=[row[1] for row in rows],
        names=[str(i) for i in range(len(rows))],
    )


@pytest.mark.parametrize(
    ("reason", "wrong", "match"),
    [
        (LOOK_ALIKE, ([0.1] * 7, [1] * 7), ([0.6] * 7, [1] * 7)),
        (ONE_PART, ([0.3] * 7, [1] * 7), ([2.5, *[0.2] * 6], [1] * 7)),
        (MATCH_HIDDEN, ([0.5] * 7, [1] * 7), ([0.0] * 7, [0] * 7)),
        ("", ([0.9] * 7, [1] * 7), ([0.1] * 7, [1] * 7)),
    ],
)
def test_failure_reasons__name_the_dominant_one(
    reason: str, wrong: tuple[list[float], list[int]], match: tuple[list[float], list[int]]
) -> None:
    query = features([(1, 1, [0.0] * 7, [1] * 7)])
    gallery = features([(2, 2, *wrong), (1, 3, *match)])
    rule = MatchingRule("mean")
    assert failure_reasons(query, gallery, rankings(query, gallery, rule), rule).tolist() == [reason]


def test_failure_reasons__nothing_shared_comes_before_the_camera() -> None:
    query = features([(1, 1, [0.0] * 7, [1, 0, 0, 0, 0, 0, 0])])
    gallery = features([(2, 1, [0.1] * 7, [0, 1, 1, 1, 1, 1, 1]), (1, 3, [0.1] * 7, [0, 1, 1, 1, 1, 1, 1])])
    rule = MatchingRule("mean")
    assert failure_reasons(query, gallery, rankings(query, gallery, rule), rule).tolist() == [NOTHING_SHARED]


def test_choose_queries__takes_the_worst_and_a_spread_of_the_rest() -> None:
    ap = np.linspace(1, 0, 101)
    chosen = choose_queries(ap, 20)
    assert len(set(chosen.tolist())) == 20
    assert set(chosen[:10].tolist()) == set(range(91, 101))
    assert {0, 90} <= set(chosen[10:].tolist())
    assert sorted(choose_queries(ap[:7], 20).tolist()) == list(range(7))


@pytest.mark.parametrize("rule", RULES)
def test_collect__contributions_add_up_to_the_distances(test_set: TestSet, rule: RuleName) -> None:
    report = collect([report_input(test_set, rule)], title="t")
    pairs = [hit for query in report.tests[0].queries for hit in query.hits]
    assert len(pairs) > 100
    for hit in pairs:
        assert sum(product for _, _, product in hit.contributions) == pytest.approx(hit.distance, abs=1e-5)
        assert len(hit.contributions) == len(report.parts)


def test_collect__figures_equal_the_result(test_set: TestSet, tmp_path: Path) -> None:
    one = report_input(test_set)
    report = collect([one], title="t")
    one.evaluation.result.save(tmp_path / "result.json")
    stored = next(iter(json.loads((tmp_path / "result.json").read_text())["tests"].values()))
    row = next(report.tables[0].text_rows())
    for column in ("Rank-1", "mAP"):
        key = {"Rank-1": "rank1"}.get(column, column)
        assert row[report.tables[0].columns.index(column)] == f"{100 * stored['metrics'][key]:.1f}"
    right = [query.hits[0].correct for query in report.tests[0].queries]
    assert len(right) == stored["counts"]["query_images"]
    assert np.mean(right) == pytest.approx(stored["metrics"]["rank1"])
    failing = sum(group.count for group in report.tests[0].groups)
    assert failing == len(right) - sum(right)
    assert f"{100 * stored['metrics']['mAP']:.1f}" in render(report)


def test_collect__says_what_the_page_lacks(test_set: TestSet, tmp_path: Path) -> None:
    full = report_input(test_set)
    assert not collect([replace(full, dataset=None)], title="t").images
    assert any("data set" in notice for notice in collect([replace(full, dataset=None)], title="t").notices)
    without_masks = collect([full], title="t")
    assert without_masks.images
    assert not without_masks.mask_parts
    assert any("checkpoint" in notice for notice in without_masks.notices)
    assert not collect([full], title="t", images=False).images
    moved = replace(full.dataset, root=tmp_path)  # type: ignore[type-var]
    gone = collect([replace(full, dataset=moved)], title="t")
    assert not gone.images
    assert any("cannot be read" in notice for notice in gone.notices)
    assert str(tmp_path) not in render(gone)


def test_collect__masks_belong_to_their_images(test_set: TestSet) -> None:
    def masks(paths: Sequence[Path]) -> npt.NDArray[np.uint8]:
        return np.stack([np.full((4, 8, 4), sum(path.name.encode()) % 256, np.uint8) for path in paths])

    report = collect([report_input(test_set)], title="t", queries=6, masks=masks)
    assert report.mask_size == (8, 4)
    assert len(report.masks) == len(report.images)
    query = report.tests[0].queries[0]
    assert query.image is not None
    assert base64.b64decode(report.masks[query.image])[0] == sum(Path(query.name).name.encode()) % 256


def test_charts__densities_and_training_curves(tmp_path: Path) -> None:
    query, gallery = with_ids(clustered(20, 1), 12, 1), with_ids(clustered(70, 2), 12, 2)
    chart = distance_chart(rankings(query, gallery, MatchingRule()).histogram)
    for series in chart.series:
        assert sum(value for value in series.y if value is not None) == pytest.approx(1)
    lines = [{"kind": "epoch", "epoch": epoch, "loss": 3.0 / epoch, "masks": 1.0} for epoch in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    curves = training_chart(tmp_path / "metrics.jsonl")
    assert curves is not None
    assert [series.name for series in curves.series] == ["loss", "masks"]
    assert list(curves.series[0].y) == [3.0, 1.5, 1.0]
    assert len(PARTS) == 7
