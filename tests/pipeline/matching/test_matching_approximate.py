"""Approximate search: what it returns is exact for what it found, and it finds nearly all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, FormatError
from pipeline.formats.feature_file import FeatureFile
from pipeline.formats.features import Features
from pipeline.matching.approximate import build_index, measure_recall
from pipeline.matching.distance import MatchingRule
from pipeline.matching.search import search
from tests.helpers.features import saved

pytest.importorskip("faiss", reason="the extra `faiss` is not installed")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> FeatureFile:
    rng = np.random.default_rng(0)
    count, ids = 3000, 300
    path: Path = tmp_path_factory.mktemp("approximate") / "g.h5"
    centres = rng.normal(size=(ids, 7, 8))
    parts = centres[np.arange(count) % ids] + 0.7 * rng.normal(size=(count, 7, 8))
    visibility = (rng.random((count, 7)) < 0.75) * 0.5
    features = Features.from_arrays(parts, parts.mean(axis=1), visibility, thresholds=np.full(7, 0.1))
    return FeatureFile.open(saved(path, features))


def test_recall_and_exact_distances(gallery: FeatureFile) -> None:
    query = gallery.load().select(slice(0, 40))
    exact = search(query, gallery, 10)
    index = build_index(gallery)
    found = index.search(query, 10, candidates=300, probes=27)
    assert measure_recall(found, exact) > 0.9
    assert measure_recall(exact, exact) == 1
    wide = index.search(query, 10, candidates=3000, probes=1000)
    np.testing.assert_array_equal(wide.rows, exact.rows)
    np.testing.assert_allclose(wide.distances, exact.distances, atol=1e-6)
    assert (found.distances[:, 0] <= 1e-6).all()


def test_fewer_candidates_than_hits(gallery: FeatureFile) -> None:
    query = gallery.load().select(slice(0, 2))
    found = build_index(gallery, lists=20).search(query, 5, candidates=3)
    assert (found.rows[:, 3:] == -1).all()
    assert np.isinf(found.distances[:, 3:]).all()
    assert (found.rows[:, 0] == [0, 1]).all()


@pytest.mark.parametrize("global_dim", [0, 5])
def test_other_rules_and_features(global_dim: int, tmp_path: Path) -> None:
    """Without a global feature in the distance the lists are learned from all columns; 61 is no multiple of 4."""
    rng = np.random.default_rng(1)
    count = 400
    parts = rng.normal(size=(count, 7, 8))
    # Equal images: the first ones are found.
    parts[200:] = parts[:200]
    features = Features.from_arrays(parts, np.ones((count, global_dim)))
    file = FeatureFile.open(saved(tmp_path / "g.h5", features))
    query = file.load(np.arange(20))
    for rule in (MatchingRule("mean"), MatchingRule("shrunk")):
        found = build_index(file, rule=rule, lists=3).search(query, 2, candidates=400, probes=3)
        assert found.rows.tolist() == [[i, i + 200] for i in range(20)]
        np.testing.assert_allclose(found.distances, 0, atol=1e-6)


def test_probes__two_fifths_of_lists_by_the_global_feature_else_half(gallery: FeatureFile) -> None:
    """Fewer probes were measured only where the global feature decides the list."""
    query = gallery.load().select(slice(0, 2))
    for rule, probes in (
        (MatchingRule("shrunk"), 12),
        (MatchingRule("mean"), 15),
        (MatchingRule("shrunk", global_term=False), 15),
    ):
        index = build_index(gallery, rule=rule, lists=30)
        index.search(query, 1)
        assert (index.probes, index.index.nprobe) == (probes, probes)
        index.search(query, 1, probes=7)
        assert index.index.nprobe == 7
    one = build_index(gallery, rule=MatchingRule("mean"), lists=1)
    assert one.probes == 1


def test_lists_that_the_rows_do_not_suffice_for(gallery: FeatureFile) -> None:
    # Twice the root of 3,000 would be 110.
    assert build_index(gallery).index.nlist == 3000 // 40
    assert build_index(gallery, lists=75).index.nlist == 75
    assert build_index(gallery, training_rows=400).index.nlist == 10
    for lists, options in ((76, {}), (11, {"training_rows": 400}), (0, {})):
        with pytest.raises(ConfigError, match=f"{lists} lists cannot be learned"):
            build_index(gallery, lists=lists, **options)


def test_rules_that_cannot_be_approximated(gallery: FeatureFile) -> None:
    with pytest.raises(ConfigError, match="cannot be approximated"):
        build_index(gallery, rule=MatchingRule("query"))


@pytest.mark.parametrize("rule", ["shrunk", "mean"])
@pytest.mark.parametrize("dims", [(16, 8), (8, 12), (8, 0)])
def test_features_of_another_checkpoint_are_refused(gallery: FeatureFile, rule: Any, dims: tuple[int, int]) -> None:
    index = build_index(gallery, rule=MatchingRule(rule), lists=4)
    parts, global_feature = dims
    other = Features.from_arrays(np.ones((2, 7, parts)), np.ones((2, global_feature)))
    with pytest.raises(FormatError, match="same checkpoint"):
        index.search(other, 5)


def test_rows__restrict_the_search(gallery: FeatureFile) -> None:
    rows = np.arange(1, 3000, 2)
    query = gallery.load(np.arange(4))
    found = build_index(gallery, rows=rows, lists=10).search(query, 5, candidates=1500, probes=10)
    assert (found.rows % 2 == 1).all()
    np.testing.assert_array_equal(found.rows, search(query, gallery, 5, rows=rows).rows)
