"""Fixtures of the evaluation tests."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from pipeline.datasets.images import write_image
from pipeline.datasets.registry import open_dataset
from tests.helpers.evaluation import NUM_GALLERY, NUM_IDS, NUM_QUERY, TestSet, write_features


@pytest.fixture(scope="session")
def rows() -> list[tuple[str, int, int, str]]:
    rng = np.random.default_rng(5)
    return [
        (f"{split}/{i % NUM_IDS + 1:04d}_{i:03d}.png", i % NUM_IDS + 1, int(rng.integers(0, 3)), split)
        for split, count in (("query", NUM_QUERY), ("gallery", NUM_GALLERY))
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, int, str]]) -> TestSet:
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(6)
    for split in ("query", "gallery"):
        (root / split).mkdir()
    with (root / "toy.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "pid", "camid", "split", "visible"))
        for name, pid, camid, split in rows:
            image = np.full((32, 16, 3), rng.integers(0, 255, 3), dtype=np.uint8)
            image[8:16] = np.random.default_rng(pid).integers(0, 255, 3)
            write_image(root / name, image)
            writer.writerow((name, pid, camid, split, f"{rng.random():.3f}" if split == "query" else ""))
    spec = f"csv:{root / 'toy.csv'}"
    return TestSet(write_features(root / "features.h5", rows), open_dataset(spec), spec)
