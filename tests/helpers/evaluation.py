"""A small test set: made-up features of identities whose hidden parts are noise, and plain images of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.records import Dataset
from pipeline.formats.feature_file import feature_layout
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import FAILED, OK, open_or_create

NUM_IDS, NUM_QUERY, NUM_GALLERY = 12, 24, 96


@dataclass(frozen=True)
class TestSet:
    """A features file and the images it describes."""

    __test__ = False

    features: Path
    dataset: Dataset
    spec: str


def write_features(
    path: Path, rows: list[tuple[str, int, int, str]], *, failed: Sequence[int] = (), **changes: Any
) -> Path:
    rng = np.random.default_rng(0)
    centres = np.random.default_rng(99).normal(size=(NUM_IDS + 1, 7, 16))
    parts = np.array([centres[max(row[1], 0)] for row in rows]) + 1.8 * rng.normal(size=(len(rows), 7, 16))
    visibility = rng.random((len(rows), 7)) * 0.3
    hidden = visibility < 0.1
    parts[hidden] = 2 * rng.normal(size=(int(hidden.sum()), 16))
    record = {"data": "csv:toy", "flip": False, "checkpoint_sha256": "c" * 64} | changes
    layout = feature_layout(
        names=[row[0] for row in rows],
        pids=[row[1] for row in rows],
        camids=[row[2] for row in rows],
        splits=[row[3] for row in rows],
        part_dim=16,
        global_dim=16,
        thresholds=np.full(7, 0.1),
        notes=["pseudo cameras"],
    )
    arrays = {"parts": parts, "global_feature": parts.mean(axis=1), "visibility": visibility}
    status = np.full(len(rows), OK, np.uint8)
    status[list(failed)] = FAILED
    with open_or_create(path, layout, Provenance(record)) as writer:
        writer.write(0, arrays, status, dict.fromkeys(failed, "truncated"))
        writer.finish()
    return path
