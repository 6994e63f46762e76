"""Search and ranking from disk equal the same in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import DataError, FormatError
from pipeline.formats.features import FeatureFile, FeatureHeader, FeatureWriter
from pipeline.matching import search as module
from pipeline.matching.distance import PartSet, Rule, distance_matrix, part_set
from pipeline.matching.metrics import rank_metrics
from pipeline.matching.search import rank_on_disk, search

NUM_QUERY, NUM_GALLERY = 9, 230


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> FeatureFile:
    rng = np.random.default_rng(4)
    count = NUM_QUERY + NUM_GALLERY
    path = tmp_path_factory.mktemp("search") / "gallery.h5"
    header = FeatureHeader(
        names=[f"{i}.jpg" for i in range(count)],
        pids=rng.integers(0, 12, count),
        camids=rng.integers(0, 4, count),
        splits=["query"] * NUM_QUERY + ["gallery"] * NUM_GALLERY,
        part_dim=8,
        global_dim=5,
        thresholds=np.full(7, 0.4),
    )
    with FeatureWriter.begin(path, header) as writer:
        parts = rng.normal(size=(count, 7, 8))
        # Equal images, so that ties are in play.
        parts[100:140] = parts[100]
        visibility = rng.random((count, 7))
        visibility[100:140] = visibility[100]
        global_feature = rng.normal(size=(count, 5))
        global_feature[100:140] = global_feature[100]
        writer.append(parts, global_feature, visibility)
        writer.finish()
    return FeatureFile.open(path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "block_rows", lambda *_: 37)


def sides(file: FeatureFile, kind: Any = "hard") -> tuple[PartSet, PartSet]:
    loaded = file.load()
    global_feature = part_set(loaded, loaded.thresholds, kind)
    return global_feature[:NUM_QUERY], global_feature[NUM_QUERY:]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize(
    "rule",
    [
        Rule("shrunk"),
        Rule("mean"),
        Rule("mean", global_term=False),
        Rule("query"),
        Rule("sum"),
        # Many products a block: none may write over another.
        Rule("shrunk", metric="euclidean"),
        Rule("mean", metric="euclidean"),
    ],
    ids=lambda rule: f"{rule.name}-{rule.metric}-{rule.global_term}",
)
@pytest.mark.parametrize("k", [1, 10, 400])
def test_top_k_from_disk_equals_memory(gallery: FeatureFile, rule: Rule, kind: Any, k: int) -> None:
    query, others = sides(gallery, kind)
    rows = np.arange(NUM_QUERY, NUM_QUERY + NUM_GALLERY)
    hits = search(query, gallery, k, rule=rule, visibility=kind, rows=rows)
    matrix = distance_matrix(query, others, rule=rule).numpy()
    order = np.argsort(matrix, axis=1, kind="stable")[:, :k]
    assert hits.rows.shape == (NUM_QUERY, min(k, NUM_GALLERY))
    np.testing.assert_allclose(hits.distances, np.take_along_axis(matrix, order, axis=1), atol=1e-6)
    # Products of other shapes round otherwise, so neighbours within rounding may change places.
    expected = np.take_along_axis(matrix, hits.rows - NUM_QUERY, axis=1)
    np.testing.assert_allclose(expected, np.take_along_axis(matrix, order, axis=1), atol=1e-6)


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
    q, g = loaded.select(slice(0, NUM_QUERY)), loaded.select(rows)
    found = rank_on_disk(query, q.pids, q.camids, gallery, rule=Rule(name), rows=rows).metrics()
    matrix = distance_matrix(query, part_set(g, g.thresholds), rule=Rule(name))
    expected = rank_metrics(matrix, q.pids, g.pids, q.camids, g.camids)
    np.testing.assert_array_equal(found.first_hit, expected.first_hit)
    np.testing.assert_allclose(found.per_query_ap, expected.per_query_ap)
    assert found.mINP == pytest.approx(expected.mINP)


def test_what_is_refused(gallery: FeatureFile) -> None:
    query, _ = sides(gallery)
    with pytest.raises(DataError, match="cannot be found"):
        search(query, gallery, 3, rows=np.array([], dtype=np.int64))
    other = PartSet(torch.ones(2, 7, 3), torch.ones(2, 5), torch.ones(2, 7))
    with pytest.raises(FormatError, match="lengths"):
        search(other, gallery, 3)


def test_block_rows_bound_features_and_distances(gallery: FeatureFile) -> None:
    assert 64 <= module.block_rows(gallery, 10**9) < module.block_rows(gallery, 500) <= 2**21 // 500
