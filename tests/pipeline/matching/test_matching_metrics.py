"""Ranking metrics against other projects' outputs and against a literal loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.matching import metrics as module
from pipeline.matching.metrics import PositivesAndJunk, Ranking, RankStream, rank_metrics

VECTORS = Path(__file__).parents[2] / "data" / "vectors"
CASES = ("case1_small", "case2_medium", "case3_no_valid_match")


def load(case: str) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
    with np.load(VECTORS / f"{case}.npz") as arrays:
        data = tuple(arrays[key] for key in ("distmat", "q_pids", "g_pids", "q_camids", "g_camids"))
    return data, json.loads((VECTORS / f"{case}.json").read_text())


def literal(
    distances: np.ndarray, qp: np.ndarray, gp: np.ndarray, qc: np.ndarray, gc: np.ndarray, trapezoid: bool = False
) -> list[tuple[int, float, float]]:
    """(first hit, AP, INP) of each query, one gallery entry after the other; first hit 0 without a match."""
    found = []
    for i in range(len(qp)):
        ranking = sorted(
            (j for j in range(len(gp)) if not (gp[j] == qp[i] and gc[j] == qc[i])), key=lambda j: distances[i, j]
        )
        hits = [rank for rank, j in enumerate(ranking, 1) if gp[j] == qp[i]]
        if not hits:
            found.append((0, np.nan, np.nan))
            continue
        total = 0.0
        for n, rank in enumerate(hits, 1):
            before = 1.0 if rank == 1 else (n - 1) / (rank - 1)
            total += (n / rank + before) / 2 if trapezoid else n / rank
        found.append((hits[0], total / len(hits), len(hits) / hits[-1]))
    return found


def assert_equals_literal(result: module.RankMetrics, expected: list[tuple[int, float, float]]) -> None:
    first, ap, inp = (np.array(column) for column in zip(*expected, strict=True))
    np.testing.assert_array_equal(result.first_hit, first)
    np.testing.assert_allclose(result.per_query_ap, ap, atol=1e-12)
    np.testing.assert_allclose(result.per_query_inp, inp, atol=1e-12)
    for r in range(1, len(result.cmc) + 1):
        assert result.cmc[r - 1] == pytest.approx(np.mean(first[first > 0] <= r), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_reproduces_the_vectors(case: str) -> None:
    data, info = load(case)
    expected = info["expected_stable"]
    result = rank_metrics(*data, max_rank=info["max_rank"])
    assert result.mAP == pytest.approx(expected["mAP"], abs=1e-9)
    assert result.mINP == pytest.approx(expected["mINP"], abs=1e-9)
    assert result.num_valid_queries == expected["num_valid_queries"]
    np.testing.assert_allclose(result.cmc, expected["cmc"], atol=1e-6)
    np.testing.assert_allclose(result.per_query_ap[result.valid], expected["per_query_AP"], atol=1e-9)
    np.testing.assert_allclose(result.per_query_inp[result.valid], expected["per_query_INP"], atol=1e-9)
    for r in (1, 5, 10, 20):
        assert result.rank(r) == pytest.approx(expected[f"rank{r}"], abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_trapezoid_variant(case: str) -> None:
    (distances, qp, gp, qc, gc), info = load(case)
    # The code behind this figure drops identity -1 itself; here that is the reader's work.
    kept = gp != -1
    result = rank_metrics(distances[:, kept], qp, gp[kept], qc, gc[kept], average_precision="trapezoid")
    expected = info["variants"]["mAP_trapezoid_layumi_PGFA_ISP (pid -1 dropped inside)"]
    assert result.mAP == pytest.approx(expected, abs=1e-9)
    assert result.num_valid_queries == info["variants"]["trapezoid_valid_queries"]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    q, g = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    # Few levels make ties the rule; infinities are legal distances.
    levels = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, float("inf")])
    distances = draw(hnp.arrays(draw(st.sampled_from([np.float32, np.float64])), (q, g), elements=levels))
    ids = [draw(hnp.arrays(np.int64, n, elements=st.integers(0, top))) for n, top in ((q, 3), (g, 3), (q, 2), (g, 2))]
    return distances, *ids


@settings(max_examples=150, deadline=None)
@given(rankings(), st.sampled_from(["mean", "trapezoid"]), st.sampled_from([1, 64]))
def test_equals_the_literal_loop_with_ties(case: tuple[np.ndarray, ...], rule: Any, counted: int) -> None:
    expected = literal(*case, trapezoid=rule == "trapezoid")
    with pytest.MonkeyPatch.context() as patch:
        # 1 sends every query with two matches or more through the sorted row.
        patch.setattr(module, "_COUNTED", counted)
        if all(first == 0 for first, _, _ in expected):
            with pytest.raises(DataError, match="no query has a match"):
                rank_metrics(*case, average_precision=rule)
        else:
            assert_equals_literal(rank_metrics(*case, max_rank=45, average_precision=rule), expected)


@settings(max_examples=60, deadline=None)
@given(rankings(), st.integers(1, 7))
def test_streaming_by_queries_and_by_gallery_equals_the_whole(case: tuple[np.ndarray, ...], size: int) -> None:
    distances, *ids = case
    rows = RankStream(*ids)
    for start in range(0, len(distances), size):
        rows.update(distances[start : start + size])
    related = PositivesAndJunk.of(*ids)
    values = distances[related.query, related.entry].astype(np.float64)
    before = np.zeros(len(values), np.int64)
    for start in range(0, distances.shape[1], size):
        before += related.others_before(distances[:, start : start + size], values, first_query=0, first_entry=start)
    columns = Ranking(related, values, before)
    try:
        whole = rank_metrics(distances, *ids)
    except DataError:
        for compute in (rows.compute, columns.metrics):
            with pytest.raises(DataError, match="no query has a match"):
                compute()
        return
    for compute in (rows.compute, columns.metrics):
        streamed = compute()
        np.testing.assert_array_equal(streamed.first_hit, whole.first_hit)
        np.testing.assert_array_equal(streamed.per_query_ap, whole.per_query_ap)
        np.testing.assert_array_equal(streamed.per_query_inp, whole.per_query_inp)
        np.testing.assert_array_equal(streamed.cmc, whole.cmc)


@pytest.mark.parametrize("num_ids", [3, 400])
@pytest.mark.parametrize("levels", [1, 7, 0])
def test_many_matches_and_many_ties(num_ids: int, levels: int) -> None:
    rng = np.random.default_rng(num_ids + levels)
    q, g = 20, 700
    distances = rng.random((q, g), dtype=np.float32)
    if levels:
        distances = np.floor(distances * levels)
    ids = rng.integers(0, num_ids, q), rng.integers(0, num_ids, g), rng.integers(0, 3, q), rng.integers(0, 3, g)
    assert_equals_literal(rank_metrics(distances, *ids), literal(distances, *ids))


def test_all_distances_equal_rank_by_gallery_order() -> None:
    result = rank_metrics(np.zeros((1, 4)), [7], [1, 7, 2, 7], [0], [1, 1, 1, 1])
    assert result.first_hit.tolist() == [2]
    assert result.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.mINP == pytest.approx(2 / 4)


def test_a_short_gallery_pads_the_curve_with_its_last_value() -> None:
    result = rank_metrics(np.array([[0.2, 0.1]]), [1], [1, 2], [0], [1, 1], max_rank=50)
    assert result.cmc.shape == (50,)
    assert result.cmc[0] == 0
    assert (result.cmc[1:] == 1).all()
    assert result.rank(200) == 1


def test_same_camera_is_removed_and_distractors_stay() -> None:
    # The nearest entry is the query's own image, the next a distractor.
    result = rank_metrics(np.array([[0.0, 0.1, 0.2]]), [5], [5, 0, 5], [2], [2, 3, 3])
    assert result.first_hit.tolist() == [2]


def test_a_query_without_a_match_is_skipped_and_counted() -> None:
    result = rank_metrics(np.array([[0.1, 0.2], [0.1, 0.2]]), [1, 9], [1, 2], [0, 0], [1, 1])
    assert (result.num_queries, result.num_valid_queries) == (2, 1)
    assert result.mAP == 1
    assert np.isnan(result.per_query_ap[1])
    assert result.subset(np.array([False, True])) is None
    some = result.subset(np.array([True, True]))
    assert some is not None
    assert some.mAP == 1


@pytest.mark.parametrize("where", [(0, 0), (1, 2), (0, 3)])
def test_nan_is_refused_and_named(where: tuple[int, int]) -> None:
    distances = np.ones((2, 4), dtype=np.float32)
    distances[where] = np.nan
    with pytest.raises(DataError, match=f"query {where[0]} to gallery entry {where[1]} is not a number"):
        rank_metrics(distances, [1, 2], [1, 2, 1, 0], [0, 0], [1, 1, 1, 1])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        rank_metrics(np.ones((2, 3)), [1, 2], [1, 2], [0, 0], [1, 1])
    with pytest.raises(DataError, match="identities and cameras"):
        rank_metrics(np.ones((2, 2)), [1, 2], [1, 2], [0], [1, 1])
    with pytest.raises(DataError, match="identities and cameras"):
        rank_metrics(np.ones((0, 2)), [], [1, 2], [], [1, 1])
    stream = RankStream([1, 2], [1, 2], [0, 0], [1, 1])
    stream.update(np.ones((1, 2)))
    with pytest.raises(DataError, match="1 of 2 queries"):
        stream.compute()


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(3)
    distances = rng.random((64, 300), dtype=np.float32)
    ids = rng.integers(0, 20, 64), rng.integers(0, 20, 300), rng.integers(0, 3, 64), rng.integers(0, 3, 300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = rank_metrics(distances, *ids)
        torch.set_num_threads(2)
        two = rank_metrics(distances, *ids)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(one.per_query_ap, two.per_query_ap)
    assert one.mINP == two.mINP
