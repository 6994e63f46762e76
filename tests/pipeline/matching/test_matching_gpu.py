"""Distances, rankings and re-ranking that a GPU computes are those of the CPU."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from pipeline.formats.features import Features
from pipeline.matching.distance import MatchingRule, Metric, RuleName, distance_blocks, distance_matrix
from pipeline.matching.metrics import RankStream
from tests.helpers.features import binary

pytestmark = pytest.mark.gpu


def sides(count: int, seed: int) -> Features:
    stream = np.random.default_rng(seed)
    sizes = ((count, 7, 32), (count, 48))
    return binary(*(stream.normal(size=size) for size in sizes), stream.random((count, 7)) > 0.4)


@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("name", get_args(RuleName))
def test_distances_are_those_of_the_cpu(name: RuleName, metric: Metric) -> None:
    rule = MatchingRule(name, metric=metric)
    query, gallery = sides(37, 0), sides(501, 1)
    wanted = distance_matrix(query, gallery, rule=rule)
    got = distance_matrix(query, gallery, rule=rule, device="cuda")
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    (block,) = distance_blocks(query, gallery, rule=rule, device="cuda", rows=40)
    assert block.device.type == "cuda"


def test_metrics_are_those_of_the_cpu() -> None:
    query, gallery, stream = sides(40, 2), sides(600, 3), np.random.default_rng(4)
    pids, camids = (stream.integers(0, limit, 640) for limit in (12, 4))
    found = []
    for device in ("cpu", "cuda"):
        ranks = RankStream(pids[:40], pids[40:], camids[:40], camids[40:])
        for block in distance_blocks(query, gallery, device=device):
            ranks.update(block)
        found.append(ranks.compute())
    assert found[1].mAP == pytest.approx(found[0].mAP, abs=1e-6)
    np.testing.assert_allclose(found[1].cmc, found[0].cmc, atol=1e-6)
