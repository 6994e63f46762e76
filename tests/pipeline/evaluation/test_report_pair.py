"""One pair as a page and as a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.explain import explain_pair
from pipeline.evaluation.report.page import render
from pipeline.evaluation.report.pair import draw_pair, pair_report
from pipeline.matching.distance import MatchingRule
from tests.helpers.features import clustered
from tests.helpers.tiny_models import write_people


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in write_people(tmp_path, 2)]


def test_pair_report__holds_both_images_and_their_masks(paths: list[Path]) -> None:
    masks = np.stack([np.full((4, 8, 4), value, np.uint8) for value in (10, 20)])
    report = pair_report(paths, clustered(2, 1), MatchingRule(), masks)
    (query,) = report.tests[0].queries
    (hit,) = query.hits
    assert (query.name, hit.name) == (paths[0].name, paths[1].name)
    assert len({query.image, hit.image}) == len(report.masks) == 2
    assert sum(product for _, _, product in hit.contributions) == pytest.approx(hit.distance, abs=1e-5)
    assert str(paths[0].parent) not in render(report)


@pytest.mark.parametrize("with_masks", [True, False])
def test_draw_pair__writes_a_png(paths: list[Path], tmp_path: Path, with_masks: bool) -> None:
    both = clustered(2, 1)
    pair = explain_pair(both.select(slice(0, 1)), both.select(slice(1, 2)))
    masks = np.zeros((2, 4, 8, 4), np.uint8) if with_masks else None
    draw_pair(tmp_path / "pair.png", paths, pair, masks)
    with Image.open(tmp_path / "pair.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_pair_report__of_an_image_with_itself(paths: list[Path]) -> None:
    masks = np.zeros((2, 4, 8, 4), np.uint8)
    report = pair_report([paths[0], paths[0]], clustered(2, 1), MatchingRule(), masks)
    assert (len(report.images), len(report.masks)) == (1, 1)
