"""Evaluation end to end on made-up features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import MatchingConfig
from pipeline.datasets.images import read_image
from pipeline.errors import ConfigError, DataError, FormatError
from pipeline.evaluation import evaluate as module
from pipeline.evaluation.compare_runs import compare, find_tables
from pipeline.evaluation.evaluate import evaluate, measure
from pipeline.evaluation.explain import WHOLE, compare_pair, find
from pipeline.evaluation.queries import QueryTable
from pipeline.evaluation.result import COLUMNS, breakdown_rows, table_rows
from pipeline.formats.features import FeatureFile
from pipeline.matching.distance import Rule, distance_matrix, part_distances, part_set
from pipeline.matching.metrics import rank_metrics
from tests.helpers.evaluation import NUM_GALLERY, NUM_QUERY, TestSet, write_features

EVERYTHING = MatchingConfig(
    rerank=True, verification=True, bootstrap=50, histogram=True, pictures=3, rerank_k1=6, rerank_k2=2
)


def expected_metrics(path: Path, rule: Rule, kind: Any = "hard", **options: Any) -> Any:
    loaded = FeatureFile.open(path).load()
    q, g = loaded.split("query"), loaded.split("gallery")
    matrix = distance_matrix(part_set(q, q.thresholds, kind), part_set(g, g.thresholds, kind), rule=rule)
    return rank_metrics(matrix, q.pids, g.pids, q.camids, g.camids, **options)


@pytest.mark.parametrize("rule", ["shrunk", "mean", "sum", "query", "all"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_metrics_are_those_of_the_rule(test_set: TestSet, rule: Any, kind: Any) -> None:
    config = MatchingConfig(rule=rule, visibility=kind, breakdown=False)
    found = measure(test_set.features, config=config)
    expected = expected_metrics(test_set.features, Rule(rule), kind)
    np.testing.assert_array_equal(found.result.metrics.per_query_ap, expected.per_query_ap)
    assert found.result.metrics.mINP == expected.mINP
    assert found.result.test_set == "toy"
    assert found.result.notes == ("pseudo cameras",)
    assert found.shown == ()


def test_trapezoid_is_named(test_set: TestSet) -> None:
    config = MatchingConfig(average_precision="trapezoid", breakdown=False)
    result = measure(test_set.features, config=config).result
    assert result.metrics.mAP == expected_metrics(test_set.features, Rule(), average_precision="trapezoid").mAP
    assert result.table_rows()[0][1] == "shrunk rule, trapezoid AP"


def test_everything_is_written_and_stored_results_draw_alike(test_set: TestSet, tmp_path: Path) -> None:
    result = evaluate(tmp_path / "out", features=test_set.features, dataset=test_set.dataset, config=EVERYTHING)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["queries.csv", "ranking-1.png", "result.json"]
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert table_rows(stored) == result.table_rows()
    assert [len(row) for row in result.table_rows()] == [len(COLUMNS)] * 3
    assert [row[1] for row in result.table_rows()] == [
        "shrunk rule, re-ranking",
        "without re-ranking",
        "colour histogram",
    ]
    assert stored["metrics"]["mAP"] > stored["before_rerank"]["mAP"]
    assert stored["before_rerank"]["mAP"] == expected_metrics(test_set.features, Rule()).mAP
    assert stored["metrics"]["cmc"][0] == stored["metrics"]["rank1"]
    assert stored["protocol"]["rerank"] is True
    assert stored["protocol"]["visible_fraction"] == "data set"
    assert stored["counts"]["query_images"] == NUM_QUERY
    assert stored["counts"]["gallery_images"] == NUM_GALLERY
    assert stored["intervals"]["mAP"]["low"] < stored["metrics"]["mAP"] < stored["intervals"]["mAP"]["high"]
    assert len(stored["verification"]["true_positive_rates"]) == 3
    assert stored["gain"]["mean"] > 0
    assert {row[0] for row in breakdown_rows(stored)} >= {"visible fraction", "head", "semantic parts", "cameras"}
    sheet = read_image(tmp_path / "out" / "ranking-1.png")
    assert (sheet == (0, 140, 60)).all(axis=2).any()
    assert (sheet == (200, 30, 40)).all(axis=2).any()


def test_the_query_table_comes_back(test_set: TestSet, tmp_path: Path) -> None:
    found = measure(test_set.features, dataset=test_set.dataset, config=MatchingConfig())
    found.queries.write(tmp_path / "queries.csv")
    read = QueryTable.read(tmp_path / "queries.csv")
    np.testing.assert_array_equal(read.ap, found.queries.ap)
    np.testing.assert_array_equal(read.ap_ignored, found.queries.ap_ignored)
    assert read.names == found.queries.names
    assert read.parts == found.queries.parts
    told = [test_set.dataset.extra[name]["visible"] for name in read.names]
    np.testing.assert_allclose(read.visible_fraction, [float(value) for value in told])
    (tmp_path / "queries.csv").write_text("name,ap\na,1\n")
    with pytest.raises(FormatError, match="not a table of queries"):
        QueryTable.read(tmp_path / "queries.csv")


def test_a_gallery_too_large_for_memory_is_streamed(test_set: TestSet, monkeypatch: pytest.MonkeyPatch) -> None:
    global_feature = measure(test_set.features, config=MatchingConfig())
    monkeypatch.setattr(module, "MEMORY_BYTES", 1000)
    streamed = measure(test_set.features, dataset=test_set.dataset, config=MatchingConfig())
    np.testing.assert_allclose(streamed.result.metrics.per_query_ap, global_feature.result.metrics.per_query_ap)
    assert len(streamed.result.breakdown) == len(global_feature.result.breakdown)
    with pytest.raises(ConfigError, match=r"matching.rerank needs all features in memory"):
        measure(test_set.features, config=MatchingConfig(rerank=True))


def test_query_expansion_is_applied_and_named(test_set: TestSet) -> None:
    plain = measure(test_set.features, config=MatchingConfig(breakdown=False)).result
    expanded = measure(test_set.features, config=MatchingConfig(breakdown=False, query_expansion=3)).result
    assert expanded.metrics.mAP > plain.metrics.mAP
    assert expanded.table_rows()[0][1] == "shrunk rule, query expansion 3"


def test_images_without_identity_are_left_out_and_counted(tmp_path: Path, rows: list[Any]) -> None:
    changed = [
        (name, -1 if i in (0, 30, 31) else pid, camid, split) for i, (name, pid, camid, split) in enumerate(rows)
    ]
    found = measure(write_features(tmp_path / "f.h5", changed), config=MatchingConfig())
    assert found.result.counts["dropped_images"] == 3
    assert found.result.counts["query_images"] == NUM_QUERY - 1
    assert found.result.notes[-1] == "3 images without an identity (-1) left out"
    assert len(found.queries) == NUM_QUERY - 1


def test_files_without_queries_or_matches_are_refused(tmp_path: Path, rows: list[Any]) -> None:
    gallery = [row for row in rows if row[3] == "gallery"]
    with pytest.raises(DataError, match="no query images"):
        measure(write_features(tmp_path / "a.h5", gallery), config=MatchingConfig())
    one_camera = [(name, pid, 0, split) for name, pid, _, split in rows]
    with pytest.raises(DataError, match="no query has a match"):
        measure(write_features(tmp_path / "b.h5", one_camera), config=MatchingConfig())


def test_a_run_against_another(test_set: TestSet, tmp_path: Path, rows: list[Any]) -> None:
    evaluate(tmp_path / "run" / "toy", features=test_set.features, dataset=None, config=MatchingConfig(rule="all"))
    before = find_tables(tmp_path / "run")["toy"]
    assert find_tables(tmp_path / "run" / "toy" / "result.json")["toy"].names == before.names
    (tmp_path / "run" / "toy").rename(tmp_path / "run" / "renamed")
    assert list(find_tables(tmp_path / "run" / "renamed")) == list(find_tables(tmp_path / "run")) == ["toy"]
    now = measure(test_set.features, config=MatchingConfig()).queries
    found = {one.metric: one for one in compare("toy", now, before).differences}
    assert found["mAP"].now - found["mAP"].before == pytest.approx(found["mAP"].interval.mean)
    assert found["mAP"].interval.low > 0
    assert found["mAP"].verdict == ""
    same = compare("toy", now, now)
    assert {one.verdict for one in same.differences} == {"equal"}
    assert len(same.table_rows()) == 6
    with pytest.raises(DataError, match="no result to compare"):
        find_tables(tmp_path)
    other = measure(
        write_features(tmp_path / "o.h5", [("x" + row[0], *row[1:]) for row in rows]), config=MatchingConfig()
    )
    with pytest.raises(DataError, match="no query in common"):
        compare("toy", now, other.queries)


@pytest.fixture
def namesakes(test_set: TestSet, tmp_path: Path) -> Path:
    """An eval artifact of two data sets of one name, which differ in their figures."""
    results = {}
    for folder, rule in (("toy", "shrunk"), ("toy-2", "all")):
        evaluate(tmp_path / "run" / folder, features=test_set.features, dataset=None, config=MatchingConfig(rule=rule))
        results[folder] = json.loads((tmp_path / "run" / folder / "result.json").read_text())
    assert [result["test_set"] for result in results.values()] == ["toy", "toy"]
    (tmp_path / "run" / "result.json").write_text(json.dumps({"columns": [], "rows": [], "tests": results}))
    return tmp_path / "run"


def test_test_sets_of_one_name_are_told_apart_in_an_artifact(namesakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: QueryTable.read(namesakes / name / "queries.csv").ap for name in ("toy", "toy-2")}
    assert not np.array_equal(expected["toy"], expected["toy-2"])
    for run in (namesakes, namesakes / "result.json"):
        found = find_tables(run)
        assert list(found) == ["toy", "toy-2"]
        for name, table in found.items():
            np.testing.assert_array_equal(table.ap, expected[name])
    # A single one of them is still the one that its folder says.
    assert list(find_tables(namesakes / "toy-2")) == ["toy-2"]
    monkeypatch.chdir(namesakes / "toy-2")
    assert list(find_tables(Path())) == ["toy-2"]


def test_results_that_cannot_be_told_apart_or_read_are_refused(namesakes: Path) -> None:
    (namesakes / "toy-2" / "queries.csv").rename(namesakes / "q.csv")
    with pytest.raises(FormatError, match="table of queries cannot be read"):
        find_tables(namesakes)
    (namesakes / "q.csv").rename(namesakes / "toy-2" / "queries.csv")
    # Without the artifact's own result these are two folders of somebody's.
    (namesakes / "result.json").unlink()
    with pytest.raises(DataError, match="two results are of a test set 'toy'"):
        find_tables(namesakes)
    result = namesakes / "toy" / "result.json"
    for text, said in (("{", "not JSON"), ("[]", "does not name its test set"), ("{}", "does not name its test set")):
        result.write_text(text)
        with pytest.raises(FormatError, match=said) as error:
            find_tables(namesakes / "toy")
        assert error.value.where == str(result)
    result.unlink()
    with pytest.raises(FormatError, match=r"lacks its result\.json"):
        find_tables(namesakes)


@pytest.mark.parametrize("rule", ["shrunk", "mean"])
def test_search_explains_each_hit(test_set: TestSet, rule: Any) -> None:
    loaded = FeatureFile.open(test_set.features).load()
    query = loaded.split("query").select(slice(0, 3))
    config = MatchingConfig(rule=rule)
    for i, found in enumerate(find(query, test_set.features, k=5, config=config)):
        assert found.image == query.names[i]
        assert [hit.rank for hit in found.hits] == [1, 2, 3, 4, 5]
        for hit in found.hits:
            row = int(np.flatnonzero(loaded.names == hit.name)[0])
            assert loaded.splits[row] == "gallery"
            assert (hit.pid, hit.camid) == (loaded.pids[row], loaded.camids[row])
            sides = (
                part_set(query.select(slice(i, i + 1)), query.thresholds),
                part_set(loaded.select(slice(row, row + 1)), loaded.thresholds),
            )
            assert hit.distance == pytest.approx(float(distance_matrix(*sides, rule=Rule(rule))), abs=1e-5)
            counting = np.append(query.visible[i] & loaded.visible[row], WHOLE in hit.shared)
            expected = part_distances(*sides)[0, 0].numpy()[counting]
            assert list(hit.shared.values()) == pytest.approx(expected.tolist())
            assert (rule == "shrunk") <= (WHOLE in hit.shared)
            # The distance is the mean of what is listed: the whole body counts as one more part (m = 1).
            assert hit.distance == pytest.approx(np.mean(list(hit.shared.values())), abs=1e-5)


def test_search_refuses_another_checkpoint(test_set: TestSet, tmp_path: Path, rows: list[Any]) -> None:
    other = FeatureFile.open(write_features(tmp_path / "f.h5", rows, checkpoint_sha256="d" * 64)).load()
    with pytest.raises(FormatError, match="checkpoint cccccccc"):
        find(other.select(slice(0, 1)), test_set.features, k=1, config=MatchingConfig())


@pytest.mark.parametrize("rule", ["shrunk", "mean", "sum", "query", "all"])
def test_a_pair_part_by_part(test_set: TestSet, rule: Any) -> None:
    images = FeatureFile.open(test_set.features).load().select(np.array([0, 30]))
    pair = compare_pair(images, MatchingConfig(rule=rule))
    assert [part.name for part in pair.parts][-1] == WHOLE
    counting = [part.distance for part in pair.parts if part.counts]
    total = sum(distance for distance in counting if distance is not None)
    expected = total if rule in ("sum", "query") else total / len(counting)
    assert pair.distance == pytest.approx(expected, abs=1e-5)
    assert [part.visible_first for part in pair.parts[:7]] == images.visible[0].tolist()
