from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.masks.occupancy import (
    area_average,
    body_area,
    centroid_rows,
    confidence,
    part_area,
    plausibility,
    plausible_order,
    quantise,
)

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**31)


def literal_average(image: np.ndarray, size: tuple[int, int], area: tuple[float, float, float, float]) -> np.ndarray:
    """The mean over each cell, by adding up every pixel's overlap with it."""
    height, width = image.shape
    top, left, bottom, right = area[0] * height, area[1] * width, area[2] * height, area[3] * width
    cells = np.zeros(size)
    for i in range(size[0]):
        y0, y1 = top + (bottom - top) * i / size[0], top + (bottom - top) * (i + 1) / size[0]
        for j in range(size[1]):
            x0, x1 = left + (right - left) * j / size[1], left + (right - left) * (j + 1) / size[1]
            total = 0.0
            for y in range(height):
                for x in range(width):
                    overlap = max(0.0, min(y1, y + 1) - max(y0, y)) * max(0.0, min(x1, x + 1) - max(x0, x))
                    total += overlap * image[y, x]
            cells[i, j] = total / ((y1 - y0) * (x1 - x0))
    return cells


@given(height=sizes, width=sizes, rows=st.integers(1, 9), columns=st.integers(1, 9), seed=seeds)
def test_area_average_equals_the_literal_one(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.random((height, width), dtype=np.float32)
    low, high = rng.random(2) * 0.4, 0.6 + rng.random(2) * 0.4
    area = (low[0], low[1], high[0], high[1])
    maps = torch.from_numpy(image)[None, None]
    mine = area_average(maps, (rows, columns), np.array([area]))
    np.testing.assert_allclose(mine[0, 0].numpy(), literal_average(image, (rows, columns), area), atol=1e-5)


@given(height=sizes, width=sizes, rows=sizes, columns=sizes, seed=seeds)
def test_the_mean_is_preserved(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    maps = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    averaged = area_average(maps, (rows, columns))
    torch.testing.assert_close(averaged.mean((2, 3)), maps.mean((2, 3)), atol=1e-5, rtol=0)
    assert float(averaged.min()) >= float(maps.min()) - 1e-5
    assert float(averaged.max()) <= float(maps.max()) + 1e-5


@given(height=sizes, width=sizes, seed=seeds)
def test_averaging_and_mirroring_commute(height: int, width: int, seed: int) -> None:
    maps = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        area_average(maps.flip(3), (16, 8)), area_average(maps, (16, 8)).flip(3), atol=1e-5, rtol=0
    )


def test_images_of_different_shapes_in_one_batch() -> None:
    maps = torch.rand(4, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    areas = np.array([(0, 0.25, 1, 0.75), (0, 0, 1, 1), (0, 0.25, 1, 0.75), (0.2, 0, 0.8, 1)])
    together = area_average(maps, (8, 4), areas)
    for row in range(4):
        torch.testing.assert_close(
            together[row : row + 1], area_average(maps[row : row + 1], (8, 4), areas[row : row + 1])
        )


def test_the_same_size_is_left_alone() -> None:
    maps = torch.rand(2, 3, 16, 8)
    assert area_average(maps, (16, 8)) is maps


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_quantising_errs_by_half_a_step(values: list[float]) -> None:
    stored = quantise(torch.tensor(values, dtype=torch.float64))
    assert stored.dtype == np.uint8
    np.testing.assert_allclose(stored / 255, values, atol=0.5 / 255 + 1e-9)


def test_quantising_rounds_halves_up_and_bears_rounding_errors() -> None:
    assert quantise(torch.tensor([0.0, 0.5 / 255, 1.5 / 255, 1.0, 1.0000001, -1e-7])).tolist() == [0, 1, 2, 255, 255, 0]


def test_confidence_counts_the_person_only() -> None:
    soft = torch.zeros(2, 3, 1, 2)
    soft[0, :, 0, 0] = torch.tensor([0.1, 0.7, 0.2])
    soft[0, :, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    soft[1, 0] = 1
    body = 1 - soft[:, :1]
    assert confidence(soft, body).tolist() == pytest.approx([0.7, 0.0])


def person(rows: dict[int, range], fill: int = 255) -> np.ndarray:
    parts = np.zeros((1, 4, 16, 8), np.uint8)
    for part, span in rows.items():
        parts[0, part, span.start : span.stop, 2:6] = fill
    return parts


UPRIGHT = {0: range(1, 3), 1: range(3, 8), 2: range(8, 14), 3: range(14, 16)}


def body(share: float) -> np.ndarray:
    body = np.zeros(2048, np.uint8)
    body[: round(2048 * share)] = 255
    return body.reshape(1, 64, 32)


def test_centroids_and_areas() -> None:
    parts = person({0: range(2), 3: range(14, 16)})
    heights = centroid_rows(parts)[0]
    assert heights[[0, 3]].tolist() == [1 / 16, 15 / 16]
    assert np.isnan(heights[1:3]).all()
    assert part_area(parts)[0].tolist() == [8 / 128, 0, 0, 8 / 128]
    assert body_area(body(0.5)).tolist() == [0.5]


def test_order() -> None:
    assert plausible_order(person(UPRIGHT)).tolist() == [1.0]
    assert plausible_order(person({0: range(8, 10), 1: range(2, 6), 2: range(6, 12)})).tolist() == [0.5]
    assert plausible_order(person({2: range(4, 6)})).tolist() == [1.0]
    # One cell at half strength is no part, wherever it lies.
    parts = person(UPRIGHT)
    parts[0, 0], parts[0, 0, 15, 0] = 0, 127
    assert plausible_order(parts).tolist() == [1.0]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 0.0), (0.06, 0.5), (0.12, 1.0), (0.4, 1.0), (0.75, 1.0), (0.875, 0.5), (1.0, 0.0)]
)
def test_plausibility_falls_outside_the_usual_area(share: float, expected: float) -> None:
    assert plausibility(person(UPRIGHT), body(share))[0] == pytest.approx(expected, abs=0.01)
    assert 0 <= plausibility(person({0: range(8, 10), 1: range(2, 6)}), body(share))[0] <= 1e-6
