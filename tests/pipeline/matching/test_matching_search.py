"""Search and ranking from disk equal the same in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError, FormatError
from pipeline.formats.feature_file import FeatureFile
from pipeline.formats.features import Features
from pipeline.matching import search as module
from pipeline.matching.distance import MatchingRule, VisibilityKind, distance_matrix
from pipeline.matching.metrics import rank_metrics
from pipeline.matching.search import rank_on_disk, search
from tests.helpers.features import saved

NUM_QUERY, NUM_GALLERY = 9, 230


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> FeatureFile:
    rng = np.random.default_rng(4)
    count = NUM_QUERY + NUM_GALLERY
    path = tmp_path_factory.mktemp("search") / "gallery.h5"
    parts, global_feature = rng.normal(size=(count, 7, 8)), rng.normal(size=(count, 5))
    visibility = rng.random((count, 7))
    for array in (parts, global_feature, visibility):
        # Equal images, so that ties are in play.
        array[100:140] = array[100]
    features = Features.from_arrays(
        parts,
        global_feature,
        visibility,
        thresholds=np.full(7, 0.4),
        names=[f"{i}.jpg" for i in range(count)],
        pids=rng.integers(0, 12, count),
        camids=rng.integers(0, 4, count),
        splits=["query"] * NUM_QUERY + ["gallery"] * NUM_GALLERY,
    )
    return FeatureFile.open(saved(path, features))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "block_rows", lambda *_: 37)


def sides(file: FeatureFile) -> tuple[Features, Features]:
    loaded = file.load()
    return loaded.split("query"), loaded.split("gallery")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize(
    "rule",
    [
        MatchingRule("shrunk"),
        MatchingRule("mean"),
        MatchingRule("mean", global_term=False),
        MatchingRule("query"),
        MatchingRule("sum"),
        # Many products per block: none may overwrite another.
        MatchingRule("shrunk", metric="euclidean"),
        MatchingRule("mean", metric="euclidean"),
    ],
    ids=lambda rule: f"{rule.name}-{rule.metric}-{rule.global_term}",
)
@pytest.mark.parametrize("k", [1, 10, 400])
def test_top_k_from_disk_equals_memory(gallery: FeatureFile, rule: MatchingRule, kind: VisibilityKind, k: int) -> None:
    rule = replace(rule, visibility=kind)
    query, others = sides(gallery)
    rows = np.arange(NUM_QUERY, NUM_QUERY + NUM_GALLERY)
    hits = search(query, gallery, k, rule=rule, rows=rows)
    matrix = distance_matrix(query, others, rule=rule)
    order = np.argsort(matrix, axis=1, kind="stable")[:, :k]
    assert hits.rows.shape == (NUM_QUERY, min(k, NUM_GALLERY))
    np.testing.assert_allclose(hits.distances, np.take_along_axis(matrix, order, axis=1), atol=1e-6)
    # Products of other shapes round otherwise, so neighbours within rounding may change places.
    expected = np.take_along_axis(matrix, hits.rows - NUM_QUERY, axis=1)
    np.testing.assert_allclose(expected, np.take_along_axis(matrix, order, axis=1), atol=1e-6)
    in_memory = search(query, others, k, rule=rule)
    np.testing.assert_allclose(in_memory.distances, hits.distances, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_scattered_rows(gallery: FeatureFile) -> None:
    query, _ = sides(gallery)
    rows = np.array([10, 11, 50, 90, 200, 238])
    hits = search(query, gallery, 3, rows=rows)
    assert np.isin(hits.rows, rows).all()
    everything = search(query, gallery, NUM_QUERY + NUM_GALLERY)
    for i in range(NUM_QUERY):
        kept = everything.rows[i][np.isin(everything.rows[i], rows)]
        assert hits.rows[i].tolist() == kept[:3].tolist()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["shrunk", "mean"])
def test_metrics_from_disk_equal_memory(gallery: FeatureFile, name: Any) -> None:
    query, _ = sides(gallery)
    loaded = gallery.load()
    # Without the equal images: whether those tie or differ by rounding depends on the shape of the product.
    rows = np.setdiff1d(np.arange(NUM_QUERY, NUM_QUERY + NUM_GALLERY), np.arange(101, 140))
    others = loaded.select(rows)
    found = rank_on_disk(query, gallery, rule=MatchingRule(name), rows=rows).metrics()
    matrix = distance_matrix(query, others, rule=MatchingRule(name))
    expected = rank_metrics(matrix, query.pids, others.pids, query.camids, others.camids)
    np.testing.assert_array_equal(found.first_hit, expected.first_hit)
    np.testing.assert_allclose(found.per_query_ap, expected.per_query_ap)
    assert found.mINP == pytest.approx(expected.mINP)


def test_what_is_refused(gallery: FeatureFile) -> None:
    query, _ = sides(gallery)
    with pytest.raises(DataError, match="cannot be found"):
        search(query, gallery, 3, rows=np.array([], dtype=np.int64))
    other = Features.from_arrays(np.ones((2, 7, 3)), np.ones((2, 5)))
    with pytest.raises(FormatError, match=r"\(3, .*\(8, "):
        search(other, gallery, 3)


def test_block_rows_bound_features_and_distances(gallery: FeatureFile) -> None:
    assert 64 <= module.block_rows(gallery, 10**9) < module.block_rows(gallery, 500) <= 2**21 // 500
