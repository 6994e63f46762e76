"""How sure a mean over queries is: percentile bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CHUNK_NUMBERS = 2**22
"""Drawn indices held at a time (32 MB)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval that holds it with the stated confidence."""

    mean: float
    low: float
    high: float
    confidence: float


def bootstrap_mean(values: npt.ArrayLike, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap of a mean: queries are drawn with replacement, as many as there are.

    For a paired comparison of two runs give the differences of the same queries. Identities share their difficulty,
    so with few identities the true interval is somewhat wider.

    Args:
        values: (N,) one number a query, e.g. its AP; NaN (no match) is left out.
        samples: Resamplings.
        confidence: Share of resampled means inside the interval.
        seed: Seed of the drawing.

    Returns:
        The interval; all NaN when no value is left.
    """
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if not kept.size:
        return Interval(np.nan, np.nan, np.nan, confidence)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _CHUNK_NUMBERS // kept.size)
    for start in range(0, samples, step):
        count = min(step, samples - start)
        means[start : start + count] = kept[rng.integers(0, kept.size, (count, kept.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(kept.mean()), float(low), float(high), confidence)
