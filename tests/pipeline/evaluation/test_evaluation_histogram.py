from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.images import write_image
from pipeline.datasets.records import Dataset, Record
from pipeline.evaluation.histogram import histogram, histogram_baseline, same_camera_share


def test_histogram_has_length_one_and_knows_where_colours_are() -> None:
    image = np.zeros((128, 64, 3), np.uint8)
    image[:64] = (200, 30, 30)
    turned = image[::-1].copy()
    one, other = histogram(image), histogram(turned)
    assert np.linalg.norm(one) == pytest.approx(1)
    assert one @ one == pytest.approx(1, abs=1e-6)
    assert one @ other == pytest.approx(0, abs=1e-6)


def test_share_of_first_hits_from_the_own_camera_against_a_loop() -> None:
    random = np.random.default_rng(0)
    distances = random.random((30, 50))
    query_pids, gallery_pids = random.integers(0, 6, 30), random.integers(0, 6, 50)
    query_cams, gallery_cams = random.integers(0, 3, 30), random.integers(0, 3, 50)
    hits = 0
    for q in range(30):
        order = [
            g
            for g in np.argsort(distances[q], kind="stable")
            if not (gallery_pids[g] == query_pids[q] and gallery_cams[g] == query_cams[q])
        ]
        hits += int(gallery_cams[order[0]] == query_cams[q])
    share = same_camera_share(distances, query_pids, gallery_pids, query_cams, gallery_cams)
    assert share == pytest.approx(hits / 30)


def test_baseline_finds_people_in_plain_colours(tmp_path: Path) -> None:
    colours = {1: (220, 40, 40), 2: (40, 220, 40), 3: (40, 40, 220)}
    records = []
    for pid, colour in colours.items():
        for camid in (1, 2):
            name = f"{pid}_{camid}.png"
            write_image(tmp_path / name, np.full((40, 20, 3), colour, np.uint8))
            records.append(Record(name, pid, camid, "query" if camid == 1 else "gallery"))
    result = histogram_baseline(Dataset("csv", "plain", tmp_path, tuple(records)))
    assert result.rank1 == 1.0
    assert result.same_camera == 0.0
