"""Verification rates and intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.formats.results import Verification
from pipeline.matching.intervals import bootstrap_mean
from pipeline.matching.metrics import PositivesAndJunk
from pipeline.matching.verification import VerificationStream

RATES = (1e-4, 1e-3, 1e-2)
VECTORS = Path(__file__).parents[2] / "data" / "vectors"


def verification(distances: np.ndarray, *ids: object, rates: tuple[float, ...] = RATES) -> Verification:
    stream = VerificationStream(PositivesAndJunk.of(*ids), rates, auc=True)  # type: ignore[arg-type]
    stream.update(distances)
    return stream.compute()


@pytest.mark.parametrize("case", ["case1_small", "case2_medium", "case3_no_valid_match"])
def test_reproduces_the_vectors(case: str) -> None:
    info = json.loads((VECTORS / f"{case}.json").read_text())["roc_fastreid"]
    with np.load(VECTORS / f"{case}.npz") as arrays:
        data = [arrays[key] for key in ("distmat", "q_pids", "g_pids", "q_camids", "g_camids")]
    found = verification(*data)
    assert found.genuine == info["num_positive_pairs"]
    assert found.impostors == info["num_negative_pairs"]
    assert found.auc == pytest.approx(info["conventional_AUC"], abs=1e-9)
    for rate, value in zip(found.false_positive_rates, found.true_positive_rates, strict=True):
        # Theirs is a point of the thinned curve near the rate, ours the best one that does not exceed it.
        assert value >= info[f"conventional_TPR@FPR={rate:.0e}"] - 1e-9


def literal_rates(genuine: list[float], impostors: list[float], rates: tuple[float, ...]) -> list[float]:
    best = []
    for rate in rates:
        share = 0.0
        for threshold in [-1.0, *genuine, *impostors]:
            if sum(d <= threshold for d in impostors) <= rate * len(impostors) + 1e-9:
                share = max(share, sum(d <= threshold for d in genuine) / len(genuine))
        best.append(share)
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 1000]), st.integers(1, 5))
def test_equals_the_definition(seed: int, levels: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    q, g = 5, 12
    distances = rng.integers(0, levels, (q, g)).astype(np.float32)
    qp, gp, qc, gc = rng.integers(0, 3, q), rng.integers(0, 3, g), rng.integers(0, 2, q), rng.integers(0, 2, g)
    genuine = [float(distances[i, j]) for i in range(q) for j in range(g) if qp[i] == gp[j] and qc[i] != gc[j]]
    impostors = [float(distances[i, j]) for i in range(q) for j in range(g) if qp[i] != gp[j]]
    rates = (0.0, 0.05, 0.3, 1.0)
    if not genuine or not impostors:
        with pytest.raises(DataError):
            verification(distances, qp, gp, qc, gc)
        return
    whole = verification(distances, qp, gp, qc, gc, rates=rates)
    np.testing.assert_allclose(whole.true_positive_rates, literal_rates(genuine, impostors, rates))
    wins = np.mean([(a < b) + (a == b) / 2 for a in genuine for b in impostors])
    assert whole.auc == pytest.approx(wins)
    stream = VerificationStream(PositivesAndJunk.of(qp, gp, qc, gc), rates)
    for start in range(0, q, size):
        stream.update(distances[start : start + size])
    streamed = stream.compute()
    assert streamed.true_positive_rates == whole.true_positive_rates
    assert streamed.auc is None


def test_nan_is_refused() -> None:
    with pytest.raises(DataError, match="not a number"):
        verification(np.array([[np.nan, 0.0]]), [1], [1, 2], [0], [1, 1])


def test_bootstrap_interval_of_known_data() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.2, 400)
    values[7] = np.nan
    found = bootstrap_mean(values, samples=4000, seed=1)
    kept = values[~np.isnan(values)]
    half = 1.96 * kept.std() / np.sqrt(len(kept))
    assert found.mean == pytest.approx(kept.mean())
    assert found.low == pytest.approx(kept.mean() - half, abs=0.003)
    assert found.high == pytest.approx(kept.mean() + half, abs=0.003)
    assert found == bootstrap_mean(values, samples=4000, seed=1)


def test_bootstrap_of_a_constant_and_of_nothing() -> None:
    constant = bootstrap_mean(np.full(5, 0.25))
    assert (constant.low, constant.mean, constant.high) == (0.25, 0.25, 0.25)
    assert bootstrap_mean([np.nan]) is None
