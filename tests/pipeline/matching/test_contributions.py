"""The terms of a distance add up to it, under every matching rule."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from pipeline.errors import FormatError
from pipeline.matching.contributions import contributions
from pipeline.matching.distance import MatchingRule, Metric, RuleName, VisibilityKind, paired_distances, prepare
from tests.helpers.features import binary, weighted

COUNT = 400


@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("kind", get_args(VisibilityKind))
@pytest.mark.parametrize("dims", [(6, 9), (6, 0), (0, 9)])
@pytest.mark.parametrize("name", get_args(RuleName))
def test_contributions__add_up_to_the_distance(
    name: RuleName, dims: tuple[int, int], kind: VisibilityKind, metric: Metric
) -> None:
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        weights = (rng.random((COUNT, 7)) < 0.3) * rng.random((COUNT, 7))
        arrays = rng.normal(size=(COUNT, 7, dims[0])), rng.normal(size=(COUNT, dims[1]))
        sides.append(weighted(*arrays, weights) if kind == "soft" else binary(*arrays, weights > 0))
    for shrink, global_term in ((1.0, True), (0.3, True), (0.0, True), (1.0, False)):
        rule = MatchingRule(name, shrink, global_term, metric, kind)
        if dims[0] == 0 and not global_term:
            continue
        left, right = prepare(sides[0], rule, is_query=True), prepare(sides[1], rule, is_query=False)
        wanted = paired_distances(left, right).numpy()
        found = contributions(*sides, rule)
        np.testing.assert_allclose(found.totals, wanted, atol=1e-5)
        np.testing.assert_allclose(found.shares.sum(axis=1), wanted > 0, atol=1e-9)
        assert (found.weights >= 0).all()


def test_contributions__refuses_other_dimensions() -> None:
    one, other = (binary(np.ones((2, 7, dim)), np.ones((2, 3)), np.ones((2, 7))) for dim in (4, 5))
    with pytest.raises(FormatError, match=r"\(2, 7, 4\).*\(2, 7, 5\)"):
        contributions(one, other)
