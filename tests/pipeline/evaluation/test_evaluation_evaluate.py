"""Evaluation end to end on made-up features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import MatchingConfig
from pipeline.datasets.images import read_image
from pipeline.errors import ConfigError, DataError, FormatError
from pipeline.evaluation import evaluate as module
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.queries import QueryTable
from pipeline.formats.features import Features
from pipeline.formats.results import breakdown_table, load_results, method
from pipeline.matching.distance import MatchingRule, distance_matrix
from pipeline.matching.metrics import RankMetrics, rank_metrics
from tests.helpers.evaluation import NUM_GALLERY, NUM_QUERY, TestSet, write_features

EVERYTHING = MatchingConfig(
    rerank=True, verification=True, bootstrap=50, histogram=True, figures=3, rerank_k1=6, rerank_k2=2
)


def expected_metrics(path: Path, rule: MatchingRule = MatchingRule(), **options: Any) -> RankMetrics:  # noqa: B008
    loaded = Features.load(path)
    q, g = loaded.split("query"), loaded.split("gallery")
    matrix = distance_matrix(q, g, rule=rule)
    return rank_metrics(matrix, q.pids, g.pids, q.camids, g.camids, **options)


@pytest.mark.parametrize("rule", ["shrunk", "mean", "sum", "query", "all"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_metrics_are_those_of_the_rule(test_set: TestSet, rule: Any, kind: Any) -> None:
    config = MatchingConfig(rule=rule, visibility=kind, breakdown=False)
    found = evaluate(test_set.features, config=config)
    expected = expected_metrics(test_set.features, MatchingRule(rule, visibility=kind))
    np.testing.assert_array_equal(found.queries.ap, expected.per_query_ap)
    assert found.result.metrics.mINP == expected.mINP
    assert found.result.metrics.cmc == tuple(expected.cmc)
    assert found.result.test_set == "toy"
    assert found.result.notes == ("pseudo cameras",)
    assert found.rankings == ()
    in_memory = evaluate(Features.load(test_set.features), config=config)
    assert in_memory.result.metrics == found.result.metrics


def test_trapezoid_is_named(test_set: TestSet) -> None:
    config = MatchingConfig(average_precision="trapezoid", breakdown=False)
    result = evaluate(test_set.features, config=config).result
    assert result.metrics.mAP == expected_metrics(test_set.features, average_precision="trapezoid").mAP
    assert result.table().rows[0][1] == method(result.protocol) == "rule shrunk, trapezoid AP"


def test_save__everything_written_comes_back(test_set: TestSet, tmp_path: Path) -> None:
    found = evaluate(test_set.features, dataset=test_set.dataset, config=EVERYTHING)
    result = found.save(tmp_path / "out", test_set.dataset)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["queries.csv", "ranking-1.png", "result.json"]
    assert load_results(tmp_path / "out" / "result.json") == {"toy": result}
    assert result.figures == ("ranking-1.png",)
    table = result.table()
    assert [row[1] for row in table.rows] == ["rule shrunk, re-ranking", "without re-ranking", "colour histogram"]
    assert table.rows[0][2:8] == tuple(
        getattr(result.metrics, name) for name in ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
    )
    assert f"{100 * result.metrics.mAP:.1f}" in str(table)
    assert result.before_rerank is not None
    assert result.metrics.mAP > result.before_rerank.mAP == expected_metrics(test_set.features).mAP
    assert result.metrics.cmc[0] == result.metrics.rank1
    assert result.protocol["rerank"] is True
    assert result.protocol["visible_fraction"] == "data set"
    assert (result.counts["query_images"], result.counts["gallery_images"]) == (NUM_QUERY, NUM_GALLERY)
    assert result.intervals["mAP"].low < result.metrics.mAP < result.intervals["mAP"].high
    assert result.verification is not None
    assert len(result.verification.true_positive_rates) == 3
    assert result.gain is not None
    assert result.gain.mean > 0
    groups = {row[0] for row in breakdown_table(result).rows}
    assert groups >= {"visible fraction", "head", "semantic parts", "cameras"}
    assert "cameras" not in {row[0] for row in breakdown_table(result, without=("cameras",)).rows}
    figure = read_image(tmp_path / "out" / "ranking-1.png")
    assert (figure == (0, 140, 60)).all(axis=2).any()
    assert (figure == (200, 30, 40)).all(axis=2).any()


def test_the_query_table_comes_back(test_set: TestSet, tmp_path: Path) -> None:
    found = evaluate(test_set.features, dataset=test_set.dataset, config=MatchingConfig())
    found.queries.write(tmp_path / "queries.csv")
    read = QueryTable.read(tmp_path / "queries.csv")
    np.testing.assert_array_equal(read.ap, found.queries.ap)
    np.testing.assert_array_equal(read.ap_ignored, found.queries.ap_ignored)
    assert read.names == found.queries.names
    assert read.parts == found.queries.parts
    recorded = [test_set.dataset.extra[name]["visible"] for name in read.names]
    np.testing.assert_allclose(read.visible_fraction, [float(value) for value in recorded])
    (tmp_path / "queries.csv").write_text("name,ap\na,1\n")
    with pytest.raises(FormatError, match="not a table of queries"):
        QueryTable.read(tmp_path / "queries.csv")


def test_a_gallery_too_large_for_memory_is_streamed(test_set: TestSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(test_set.features, config=MatchingConfig())
    monkeypatch.setattr(module, "MEMORY_BYTES", 1000)
    streamed = evaluate(test_set.features, dataset=test_set.dataset, config=MatchingConfig())
    np.testing.assert_allclose(streamed.queries.ap, whole.queries.ap)
    assert len(streamed.result.breakdown) == len(whole.result.breakdown)
    with pytest.raises(ConfigError, match=r"matching\.rerank needs all gallery features"):
        evaluate(test_set.features, config=MatchingConfig(rerank=True))


def test_query_expansion_is_applied_and_named(test_set: TestSet) -> None:
    plain = evaluate(test_set.features, config=MatchingConfig(breakdown=False)).result
    expanded = evaluate(test_set.features, config=MatchingConfig(breakdown=False, query_expansion=3)).result
    assert expanded.metrics.mAP > plain.metrics.mAP
    assert method(expanded.protocol) == "rule shrunk, query expansion 3"


def test_images_without_identity_are_left_out_and_counted(tmp_path: Path, rows: list[Any]) -> None:
    changed = [
        (name, -1 if i in (0, 30, 31) else pid, camid, split) for i, (name, pid, camid, split) in enumerate(rows)
    ]
    found = evaluate(write_features(tmp_path / "f.h5", changed), config=MatchingConfig())
    assert found.result.counts["dropped_images"] == 3
    assert found.result.counts["query_images"] == NUM_QUERY - 1
    assert found.result.notes[-1].startswith("3 images without an identity")
    assert len(found.queries) == NUM_QUERY - 1


def test_files_without_queries_or_matches_are_refused(tmp_path: Path, rows: list[Any]) -> None:
    gallery = [row for row in rows if row[3] == "gallery"]
    with pytest.raises(DataError, match="no query images"):
        evaluate(write_features(tmp_path / "a.h5", gallery), config=MatchingConfig())
    one_camera = [(name, pid, 0, split) for name, pid, _, split in rows]
    with pytest.raises(DataError, match="no query has a match"):
        evaluate(write_features(tmp_path / "b.h5", one_camera), config=MatchingConfig())


def test_evaluate__unreadable_images_are_noted_once(tmp_path: Path, rows: list[Any]) -> None:
    found = evaluate(write_features(tmp_path / "f.h5", rows, failed=range(30, 40)))
    assert found.result.counts["unreadable_images"] == 10
    assert found.result.counts["gallery_images"] == NUM_GALLERY - 10
    (note,) = [note for note in found.result.notes if "could not be read" in note]
    assert note.startswith("10 images")
    assert rows[30][0] in note
    assert rows[39][0] not in note


@pytest.mark.parametrize("collapsed", [True, False])
def test_evaluate__matches_at_distance_0_are_noted(collapsed: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    vectors[3:5] = vectors[:2]
    features = Features.from_arrays(
        global_feature=np.ones_like(vectors) if collapsed else vectors,
        pids=[1, 2, 3, 1, 2, 3],
        camids=[1, 1, 1, 2, 2, 2],
        splits=["query"] * 3 + ["gallery"] * 3,
    )
    notes = evaluate(features).result.notes
    assert f"{3 if collapsed else 2} of 3 queries have a match at distance 0" in str(notes)


def test_evaluate__one_camera_names_the_remedy() -> None:
    features = Features.from_arrays(global_feature=np.eye(2), pids=[1, 1], camids=[1, 1], splits=["query", "gallery"])
    with pytest.raises(DataError, match="no query has a match") as caught:
        evaluate(features)
    assert "a camera id of its own" in (caught.value.hint or "")
