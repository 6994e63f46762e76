"""Sparse re-ranking against published results and against the dense algorithm written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.formats.features import Features
from pipeline.matching import rerank
from pipeline.matching.distance import MatchingRule, RuleName, distance_matrix
from pipeline.matching.metrics import rank_metrics
from pipeline.matching.rerank import expand_queries, k_reciprocal, re_rank
from tests.helpers.features import clustered

VECTORS = Path(__file__).parents[2] / "data" / "vectors"


@pytest.fixture(scope="module")
def vector() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(VECTORS / "rerank1_small.npz") as arrays:
        return dict(arrays), json.loads((VECTORS / "rerank1_small.json").read_text())


def dense(distance: np.ndarray, num_query: int, k1: int, k2: int, lam: float) -> np.ndarray:
    """The algorithm of the paper with sets and full vectors, on squared distances (N,N)."""
    scaled = (distance / distance.max(axis=0)).T
    total = len(scaled)
    order = [sorted(range(total), key=lambda j, i=i: (distance[i, j], j)) for i in range(total)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    vectors = np.zeros((total, total))
    for i in range(total):
        own = reciprocal(i, k1)
        expanded = set(own)
        for candidate in own:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(theirs & own) > 2 / 3 * len(theirs):
                expanded |= theirs
        for j in expanded:
            vectors[i, j] = np.exp(-scaled[i, j])
        if expanded:
            vectors[i] /= vectors[i].sum()
    if k2 > 1:
        vectors = np.array([vectors[order[i][:k2]].mean(axis=0) for i in range(total)])
    out = np.empty((num_query, total - num_query))
    for i in range(num_query):
        for j in range(num_query, total):
            overlap = np.minimum(vectors[i], vectors[j]).sum()
            out[i, j - num_query] = (1 - lam) * (1 - overlap / (2 - overlap)) + lam * scaled[i, j]
    return out


def test_reproduces_the_vector(vector: tuple[dict[str, np.ndarray], dict[str, Any]]) -> None:
    arrays, info = vector
    options = {"k1": info["k1"], "k2": info["k2"], "lambda_value": info["lambda_value"]}
    across = arrays["q_g_dist"]
    matrix = np.block([[arrays["q_q_dist"], across], [across.T, arrays["g_g_dist"]]]).astype(np.float32) ** 2
    found = re_rank(len(across), len(matrix), lambda a, b: matrix[a, b], lambda a, b: matrix[a, b], **options)
    np.testing.assert_allclose(found, info["expected_final_dist"], atol=1e-5)
    ids = (arrays["q_pids"], arrays["g_pids"], arrays["q_camids"], arrays["g_camids"])
    expected = info["after_torchreid"]
    after = rank_metrics(found, *ids)
    assert after.mAP == pytest.approx(expected["mAP"], abs=1e-9)
    assert after.mINP == pytest.approx(expected["mINP"], abs=1e-9)
    assert after.rank(1) == pytest.approx(expected["rank1"], abs=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("name", "global_feature"), [("shrunk", True), ("mean", True), ("mean", False), ("all", True)])
@pytest.mark.parametrize(("k1", "k2"), [(6, 3), (5, 1), (3, 8), (500, 6)])
def test_shared_part_distance_equals_the_dense_algorithm(
    name: Any, global_feature: bool, metric: Any, k1: int, k2: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small tiles, so that neighbours come together from many blocks.
    monkeypatch.setattr(rerank, "_BLOCK_NUMBERS", 64)
    query, gallery = clustered(14, 1), clustered(50, 2)
    rule = MatchingRule(name, global_term=global_feature, metric=metric)
    names = ("parts", "global_feature", "visibility")
    both = Features.from_arrays(*(np.concatenate([getattr(query, name), getattr(gallery, name)]) for name in names))
    distance = distance_matrix(both, both, rule=rule).astype(np.float64)
    expected = dense(distance**2 if metric == "euclidean" else distance, 14, k1, k2, 0.3)
    found = k_reciprocal(query, gallery, rule=rule, k1=k1, k2=k2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_more_equal_images_than_neighbours() -> None:
    many = clustered(1, 3).select(np.zeros(30, dtype=np.int64))
    found = k_reciprocal(many.select(slice(0, 5)), many.select(slice(5, 30)), k1=4, k2=2)
    assert np.isfinite(found).all()


def test_re_ranking_helps_where_neighbourhoods_are_good() -> None:
    query, gallery = clustered(24, 5), clustered(240, 6)
    ids = (np.arange(24) % 12, np.arange(240) % 12, np.zeros(24), np.ones(240))
    before = rank_metrics(distance_matrix(query, gallery), *ids).mAP
    after = rank_metrics(k_reciprocal(query, gallery), *ids).mAP
    assert before < after


def test_query_expansion_helps_and_leaves_hidden_parts_alone() -> None:
    query, gallery = clustered(24, 5), clustered(240, 6)
    ids = (np.arange(24) % 12, np.arange(240) % 12, np.zeros(24), np.ones(240))
    expanded = expand_queries(query, gallery, k=5)
    before = rank_metrics(distance_matrix(query, gallery), *ids).mAP
    assert before < rank_metrics(distance_matrix(expanded, gallery), *ids).mAP
    hidden = ~query.visible
    unit = query.parts / np.linalg.norm(query.parts, axis=2, keepdims=True)
    np.testing.assert_allclose(expanded.parts[hidden], unit[hidden], atol=1e-6)
    np.testing.assert_array_equal(expanded.visible, query.visible)


def test_what_is_refused() -> None:
    query, gallery = clustered(4, 1), clustered(9, 2)
    with pytest.raises(ConfigError, match="symmetric"):
        k_reciprocal(query, gallery, rule=MatchingRule("query"))
    with pytest.raises(ConfigError, match="k1 = 0"):
        k_reciprocal(query, gallery, k1=0)


@pytest.mark.parametrize("rule", ["sum", "query"])
def test_query_expansion_refuses_rules_whose_distances_are_sums(rule: RuleName) -> None:
    with pytest.raises(ConfigError, match="query expansion") as caught:
        expand_queries(clustered(4, 1), clustered(9, 2), rule=MatchingRule(rule))
    assert "shrunk" in str(caught.value.expected)
