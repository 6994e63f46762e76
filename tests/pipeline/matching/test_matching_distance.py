"""Shared-part distances against a literal loop in double precision, and against other projects' outputs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import FormatError
from pipeline.formats.features import Features
from pipeline.matching.distance import (
    NOTHING_SHARED,
    MatchingRule,
    VisibilityKind,
    Workspace,
    candidate_distances,
    distance_blocks,
    distance_matrix,
    distances,
    prepare,
    visibility_weights,
)
from pipeline.matching.metrics import rank_metrics
from tests.helpers.features import binary, weighted

VECTORS = Path(__file__).parents[2] / "data" / "vectors"
RULES = ("shrunk", "mean", "sum", "query", "all")


def unit(v: np.ndarray) -> np.ndarray:
    norm = np.sqrt(sum(float(x) ** 2 for x in v))
    return v.astype(np.float64) / norm if norm > 0 else np.zeros(len(v))


def between(a: np.ndarray, b: np.ndarray, metric: str) -> float:
    cosine = float(unit(a) @ unit(b))
    return 1 - cosine if metric == "cosine" else float(np.sqrt(max(0.0, 2 - 2 * cosine)))


def weights(features: Features, rule: MatchingRule) -> np.ndarray:
    return visibility_weights(features.visibility, features.thresholds, rule.visibility).astype(np.float64)


def literal(query: Features, gallery: Features, rule: MatchingRule) -> np.ndarray:
    qp, qw, qv = query.parts, query.global_feature, weights(query, rule)
    gp, gw, gv = gallery.parts, gallery.global_feature, weights(gallery, rule)
    has_global = rule.global_term and qw.shape[1] > 0
    out = np.empty((len(qp), len(gp)))
    for i, j in itertools.product(range(len(qp)), range(len(gp))):
        d = [between(qp[i, k], gp[j, k], rule.metric) for k in range(qp.shape[1])]
        d0 = between(qw[i], gw[j], rule.metric) if has_global else NOTHING_SHARED
        o = [float(qv[i, k] * gv[j, k]) for k in range(qp.shape[1])]
        weighted = sum(a * b for a, b in zip(o, d, strict=True))
        if rule.name == "sum":
            out[i, j] = weighted
        elif rule.name == "all":
            out[i, j] = sum(d) / len(d)
        elif rule.name == "query":
            out[i, j] = sum(a * b for a, b in zip(qv[i], d, strict=True)) if qv[i].sum() > 0 else d0
        elif rule.name == "shrunk" and has_global and rule.shrink > 0:
            out[i, j] = (weighted + rule.shrink * d0) / (sum(o) + rule.shrink)
        else:
            behind = 2.0 if has_global and qp.shape[2] > 0 else 0.0
            out[i, j] = weighted / sum(o) if sum(o) > 0 else d0 + behind
    return out


def made_up(count: int, *, part_dim: int = 12, global_dim: int = 9, soft: bool = False, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(count, 7, part_dim)).astype(np.float32) * rng.choice(
        [1e-3, 1, 1e3], size=(count, 7, 1)
    ).astype(np.float32)
    global_feature = rng.normal(size=(count, global_dim)).astype(np.float32)
    visible = (rng.random((count, 7)) < 0.5).astype(np.float32)
    if soft:
        visible *= rng.random((count, 7), dtype=np.float32)
    visible[0] = 0
    visible[-1] = 1
    parts[1] = 0  # A zero feature has cosine 0 with everything.
    global_feature[1] = 0
    return (weighted if soft else binary)(parts, global_feature, visible)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("global_feature", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_equals_the_double_precision_loop(name: Any, global_feature: bool, soft: bool, metric: Any) -> None:
    query, gallery = made_up(9, soft=soft), made_up(17, soft=soft, seed=1)
    # The same image on both sides: rounding must not show near 0.
    for array in ("parts", "global_feature", "visibility"):
        getattr(gallery, array)[5] = getattr(query, array)[4]
    for shrink in (1.0, 0.3, 0.0):
        kind: VisibilityKind = "soft" if soft else "hard"
        rule = MatchingRule(name, shrink, global_feature, metric, kind)
        found = distance_matrix(query, gallery, rule=rule, rows=4)
        assert found.dtype == np.float32
        assert (found >= 0).all()
        np.testing.assert_allclose(found, literal(query, gallery, rule), atol=1e-5)


def test_the_mean_ranks_pairs_that_share_nothing_behind_all_others() -> None:
    # The global features are much alike, the shared part is not at all: d0 alone would put the other image first.
    global_feature = np.ones((3, 8)) + 0.01 * np.random.default_rng(0).normal(size=(3, 8))
    parts = np.zeros((3, 7, 4))
    parts[0, 0], parts[1, 0] = [1, 0, 0, 0], [-1, 0, 0, 0]
    visible = np.zeros((3, 7))
    visible[0, 0] = visible[1, 0] = visible[2, 1] = 1
    images = binary(parts, global_feature, visible)
    found = distance_matrix(images.select(slice(0, 1)), images.select(slice(1, 3)), rule=MatchingRule("mean"))
    assert found[0, 0] == pytest.approx(2.0)
    assert found[0, 1] > found[0, 0]


@pytest.mark.parametrize("name", ["shrunk", "mean", "query"])
def test_nothing_shared_ranks_last_without_the_whole_term(name: Any) -> None:
    query, gallery = made_up(6), made_up(30, seed=2)
    found = distance_matrix(query, gallery, rule=MatchingRule(name, global_term=False))
    shared = query.visible.astype(int) @ gallery.visible.T.astype(int) > 0
    if name == "query":
        shared = np.broadcast_to(query.visible.any(axis=1)[:, None], shared.shape)
    assert (found[~shared] == NOTHING_SHARED).all()
    assert found[shared].max() < (NOTHING_SHARED if name != "query" else 14.1)


def test_rule_sum__pairs_without_a_shared_part_come_first() -> None:
    """As published (eq. 7), such a pair has distance 0; the mean over shared parts ranks it last."""
    query, gallery = made_up(3).select(slice(0, 1)), made_up(3).select(slice(0, 2))
    query.visibility[0] = [1, 0, 0, 0, 0, 0, 0]
    gallery.parts[1] = query.parts[0] + 0.1 * gallery.parts[0]
    gallery.visibility[0] = [0, 1, 0, 0, 0, 0, 0]
    gallery.visibility[1] = 1
    ids = ([1], [2, 1], [0], [1, 1])
    assert rank_metrics(distance_matrix(query, gallery, rule=MatchingRule("sum")), *ids).rank(1) == 0
    assert (
        rank_metrics(distance_matrix(query, gallery, rule=MatchingRule("mean", global_term=False)), *ids).rank(1) == 1
    )


@pytest.mark.parametrize("name", RULES)
def test_a_model_without_parts__compared_by_the_global_feature(name: Any) -> None:
    query, gallery = made_up(5, part_dim=0), made_up(8, part_dim=0, seed=1)
    expected = [[between(a, b, "cosine") for b in gallery.global_feature] for a in query.global_feature]
    found = distance_matrix(query, gallery, rule=MatchingRule(name))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(FormatError, match="nothing to compare"):
        distance_matrix(query, gallery, rule=MatchingRule(name, global_term=False))


@pytest.mark.parametrize("name", RULES)
def test_a_model_without_global_feature(name: Any) -> None:
    query, gallery = made_up(5, global_dim=0), made_up(8, global_dim=0, seed=1)
    np.testing.assert_allclose(
        distance_matrix(query, gallery, rule=MatchingRule(name)), literal(query, gallery, MatchingRule(name)), atol=1e-5
    )


def test_blocks_are_the_matrix() -> None:
    query, gallery = made_up(11), made_up(6)
    blocks = list(distance_blocks(query, gallery, rows=4))
    assert [len(block) for block in blocks] == [4, 4, 3]
    np.testing.assert_allclose(torch.cat(blocks), distance_matrix(query, gallery), atol=1e-6)
    prepared = prepare(query, is_query=True), prepare(gallery, is_query=False)
    np.testing.assert_array_equal(distance_matrix(*prepared), distance_matrix(query, gallery))
    both = prepare(query, is_query=True).concat(prepare(gallery, is_query=True))
    np.testing.assert_allclose(distances(both[:11], both[11:]), distance_matrix(query, gallery), atol=1e-6)


@pytest.mark.parametrize("name", ["shrunk", "mean", "sum", "query", "all"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_distances_of_candidates_and_in_a_workspace_are_those_of_the_matrix(name: Any, metric: Any) -> None:
    rule = MatchingRule(name, metric=metric)
    query, gallery = made_up(5), made_up(12, seed=1)
    left = prepare(query, rule, is_query=True)
    matrix = distance_matrix(query, gallery, rule=rule)
    chosen = np.random.default_rng(0).integers(0, 12, (5, 4))
    right = prepare(gallery.select(chosen.ravel()), rule, is_query=False)
    found = candidate_distances(left, right)
    np.testing.assert_allclose(found, np.take_along_axis(matrix, chosen, axis=1), atol=1e-6)
    space = Workspace()
    for start, stop in ((0, 7), (7, 12)):
        block = prepare(gallery.select(slice(start, stop)), rule, is_query=False, space=space)
        np.testing.assert_allclose(distances(left, block, space=space), matrix[:, start:stop], atol=1e-6)


def test_lower_matmul_precision_set_elsewhere_does_not_reach_distances() -> None:
    query, gallery = made_up(9), made_up(17)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        np.testing.assert_allclose(distance_matrix(query, gallery), literal(query, gallery, MatchingRule()), atol=1e-5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_visibility_weights() -> None:
    means = np.array([[0.0, 0.05, 0.2, 0.9]], dtype=np.float32)
    tau = np.array([0.1, 0.1, 0.1, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(visibility_weights(means, tau, "hard"), [[0, 0, 1, 1]])
    np.testing.assert_allclose(visibility_weights(means, tau, "soft"), [[0, 0.5, 1, 1]])
    assert (visibility_weights(means * 0, tau, "soft") == 0).all()


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FormatError, match=r"\(12, .*\(5, "):
        distance_matrix(made_up(3), made_up(3, part_dim=5))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(VECTORS / "visdist1.npz") as data:
        return {key: data[key].astype(np.float32) for key in data}


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    info = json.loads((VECTORS / "visdist1.json").read_text())
    return {
        key: np.array(entry["value"], dtype=np.float64)
        for key, entry in info.items()
        if isinstance(entry, dict) and "value" in entry
    }


class TestOtherProjects:
    """visdist1: where a formula of another project is one of our rules, the figures agree."""

    @staticmethod
    def sides(arrays: dict[str, np.ndarray], kind: str, root: bool = False) -> tuple[Features, Features]:
        made = weighted if kind == "score" else binary
        weight = {side: arrays[f"{side}_{kind}"] ** (0.5 if root else 1.0) for side in "qg"}
        query, gallery = (made(arrays[f"{side}_feats"], arrays[f"{side}_global"], weight[side]) for side in "qg")
        return query, gallery

    def test_shrunk_is_pgfa(self, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
        found = distance_matrix(*self.sides(arrays, "vis"), rule=MatchingRule("shrunk"))
        # Their similarity maps each cosine to [0, 1]: s = 1 - d / 2.
        np.testing.assert_allclose(1 - found / 2, expected["pgfa_similarity"], atol=1e-5)

    @pytest.mark.parametrize("metric", ["cosine", "euclidean"])
    def test_mean_is_bpbreid(self, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray], metric: Any) -> None:
        query, gallery = self.sides(arrays, "vis")
        found = distance_matrix(query, gallery, rule=MatchingRule("mean", global_term=False, metric=metric))
        want = expected[f"bpbreid_bool_{metric}"]
        shared = query.visible.astype(int) @ gallery.visible.T.astype(int) > 0
        np.testing.assert_allclose(found[shared], want[shared], atol=1e-5)
        # They give pairs that share nothing the largest part distance + 1, we a constant; last rank in both.
        assert (found[~shared] == NOTHING_SHARED).all()
        assert want[~shared].min() > want[shared].max()

    def test_soft_mean_is_bpbreid_continuous(
        self, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]
    ) -> None:
        found = distance_matrix(
            *self.sides(arrays, "score", root=True), rule=MatchingRule("mean", metric="euclidean", visibility="soft")
        )
        np.testing.assert_allclose(found, expected["bpbreid_continuous_euclidean"], atol=1e-5)

    def test_soft_mean_is_half_of_pvpm(self, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
        found = distance_matrix(*self.sides(arrays, "score"), rule=MatchingRule("mean", visibility="soft"))
        np.testing.assert_allclose(2 * found, expected["pvpm_continuous_sqeuclidean"], atol=1e-5)

    def test_where_pvpm_gives_nan_we_do_not(
        self, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]
    ) -> None:
        found = distance_matrix(*self.sides(arrays, "vis"), rule=MatchingRule("mean"))
        want = expected["pvpm_binary_sqeuclidean"]
        good = ~np.isnan(want)
        assert not good.all()
        np.testing.assert_allclose(2 * found[good], want[good], atol=1e-5)
        assert np.isfinite(found).all()
