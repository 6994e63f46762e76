"""Explanations of distances, and searches that carry them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.config import MatchingConfig
from pipeline.errors import DataError, FormatError
from pipeline.evaluation import search as search_module
from pipeline.evaluation.explain import explain_pair
from pipeline.evaluation.search import search_gallery
from pipeline.formats.feature_file import FeatureFile
from pipeline.formats.features import Features
from pipeline.matching.distance import MatchingRule, RuleName, distance_matrix
from tests.helpers.evaluation import TestSet, write_features


@pytest.mark.parametrize("name", get_args(RuleName))
def test_explain_pair__terms_add_up(test_set: TestSet, name: RuleName) -> None:
    rule = MatchingRule(name)
    features = Features.load(test_set.features)
    one, other = features.select(slice(0, 1)), features.select(slice(30, 31))
    pair = explain_pair(one, other, rule)
    assert pair.distance == pytest.approx(distance_matrix(one, other, rule=rule)[0, 0], abs=1e-5)
    assert sum((part.distance or 0) * part.weight for part in pair.parts) == pytest.approx(pair.distance)
    assert sum(part.share for part in pair.parts) == pytest.approx(1)
    assert [part.visible[0] for part in pair.parts[:7]] == one.visible[0].tolist()
    assert len(pair.table().rows) == len(pair.parts)
    assert pair.to_json()["parts"][0]["name"] == "head"


def test_explain_pair__without_a_shared_part(test_set: TestSet) -> None:
    features = Features.load(test_set.features).select(slice(0, 2))
    features.visibility[:] = 0
    pair = explain_pair(features.select(slice(0, 1)), features.select(slice(1, 2)), MatchingRule("mean"))
    assert [part.name for part in pair.parts if part.weight] == ["global", "no shared part"]
    with pytest.raises(DataError, match="2 and 1"):
        explain_pair(features, features.select(slice(0, 1)))


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("rule", ["shrunk", "mean"])
def test_search_gallery__shared_parts_explain_each_distance(test_set: TestSet, rule: Any, in_memory: bool) -> None:
    loaded = Features.load(test_set.features)
    query = loaded.split("query").select(slice(0, 3))
    gallery = loaded if in_memory else FeatureFile.open(test_set.features)
    found = search_gallery(query, gallery, k=5, config=MatchingConfig(rule=rule))
    assert found.gallery_images == len(loaded.split("gallery"))
    assert len(found.table().rows) == 15
    for row, ranking in enumerate(found.queries):
        assert ranking.query == query.names[row]
        assert [one.rank for one in ranking.nearest] == [1, 2, 3, 4, 5]
        for one in ranking.nearest:
            (place,) = np.flatnonzero(loaded.names == one.name)
            assert loaded.splits[place] == "gallery"
            assert (one.pid, one.camid) == (loaded.pids[place], loaded.camids[place])
            # All weights are equal: the global feature counts as one more part (m = 1).
            assert one.distance == pytest.approx(np.mean(list(one.shared.values())), abs=1e-5)
            assert ("global" in one.shared) == (rule == "shrunk")


def test_search_gallery__approximate_in_large_files_only(test_set: TestSet, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="the extra `faiss` is not installed")
    file = FeatureFile.open(test_set.features)
    query = file.load().split("query").select(slice(0, 3))
    exact, small = (search_gallery(query, file, k=1, approximate=each) for each in (False, True))
    assert small == exact
    monkeypatch.setattr(search_module, "_APPROXIMATE_FROM", 90)
    approximate = search_gallery(query, file, k=1, approximate=True)
    assert approximate.approximate
    for one, other in zip(approximate.queries, exact.queries, strict=True):
        assert one.nearest[0].distance >= other.nearest[0].distance - 1e-6


def test_search_gallery__refuses_another_checkpoint(test_set: TestSet, tmp_path: Path, rows: list[Any]) -> None:
    other = Features.load(write_features(tmp_path / "f.h5", rows, checkpoint_sha256="d" * 64))
    with pytest.raises(FormatError, match="cccccccc") as caught:
        search_gallery(other.select(slice(0, 1)), FeatureFile.open(test_set.features))
    assert caught.value.where == str(test_set.features)
