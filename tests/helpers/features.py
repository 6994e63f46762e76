"""Features of made-up images, and files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.formats.features import Features

_ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))


def weighted(parts: Any, global_feature: Any, weights: Any) -> Features:
    """Features whose soft visibility weights are `weights`; their hard ones are 1 where a weight is positive."""
    weights = np.asarray(weights, np.float32)
    return Features.from_arrays(
        parts, global_feature, np.minimum(weights, _ALMOST_ONE), thresholds=np.full(weights.shape[1], _ALMOST_ONE)
    )


def binary(parts: Any, global_feature: Any, visible: Any) -> Features:
    """Features with visibilities of 0 and 1."""
    return Features.from_arrays(parts, global_feature, np.asarray(visible, np.float32))


def clustered(count: int, seed: int, num_ids: int = 12) -> Features:
    """Features of identities (`i % num_ids`) around centres of their own, some parts hidden."""
    rng = np.random.default_rng(seed)
    ids = np.arange(count) % num_ids
    centres = np.random.default_rng(99).normal(size=(num_ids, 7, 10))
    parts = centres[ids] + 0.9 * rng.normal(size=(count, 7, 10))
    global_feature = centres[ids].sum(axis=1) + rng.normal(size=(count, 10))
    return binary(parts, global_feature, rng.random((count, 7)) < 0.7)


def small_features(count: int = 10, part_dim: int = 6, global_dim: int = 4, **changes: Any) -> Features:
    """Features whose values are the row (parts) or minus the row (global)."""
    row = np.arange(count, dtype=np.float32)
    values: dict[str, Any] = {
        "parts": row[:, None, None] + np.zeros((1, 7, part_dim)),
        "global_feature": -row[:, None] + np.zeros((1, global_dim)),
        "visibility": np.full((count, 7), 0.08),
        "thresholds": np.linspace(0.05, 0.11, 7),
        "names": [f"gallery/é{i:03d}.jpg" for i in range(count)],
        "pids": np.arange(count) % 3 - 1,
        "camids": np.arange(count) % 2,
        "splits": ["query"] * (count // 3) + ["gallery"] * (count - count // 3),
    }
    return Features.from_arrays(**(values | changes))


def saved(path: Path, features: Features) -> Path:
    """Write features and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features.save(path)
    return path
