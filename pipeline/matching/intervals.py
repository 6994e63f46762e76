"""Percentile bootstrap intervals of means over queries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.formats.results import Interval

_BATCH_NUMBERS = 2**22
"""Indices drawn at a time (32 MB)."""


def bootstrap_mean(
    values: npt.ArrayLike, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """Estimate the interval of a mean by drawing queries with replacement, as many as there are.

    For a paired comparison of two runs, pass the differences of the same queries. Identities share their difficulty,
    so with few identities the true interval is somewhat wider.

    Args:
        values: (N,) one number per query, e.g. its AP; NaN (no match) is left out.
        samples: Resamplings.
        confidence: Share of resampled means inside the interval.
        seed: Seed of the drawing.

    Returns:
        The interval; None when no value is left.
    """
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if not kept.size:
        return None
    mean = float(kept.mean())
    if (kept == kept[0]).all():
        return Interval(mean, mean, mean, confidence)
    # Importing it takes a second, which only evaluations with intervals should pay.
    from scipy import stats

    found = stats.bootstrap(
        (kept,),
        np.mean,
        n_resamples=samples,
        batch=max(1, _BATCH_NUMBERS // kept.size),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), confidence)
