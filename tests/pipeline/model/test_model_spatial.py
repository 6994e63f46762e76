"""Geometry of the spatial branch against literal versions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.config import ModelConfig
from pipeline.model import spatial

ROWS, COLUMNS = 16, 8
SHARES = (0.15, 0.23, 0.62)

masks = hnp.arrays(np.float32, (3, ROWS, COLUMNS), elements=st.sampled_from([0.0, 0.1, 0.10001, 0.2, 0.4, 0.5, 0.9]))


THRESHOLD = 0.1


def literal_active(mask: np.ndarray) -> list[int]:
    """Rows with a pixel that exceeds the threshold and half of the mask's largest value."""
    largest = max(mask[y, x] for y in range(ROWS) for x in range(COLUMNS))
    return [y for y in range(ROWS) if any(mask[y, x] > THRESHOLD and mask[y, x] > largest / 2 for x in range(COLUMNS))]


def faint(head: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Masks of several strengths; hardly any drawn at random would be without a strong pixel."""
    return (head * factor[:, None, None]).astype(np.float32)


def literal_bounds(start: int, rows: int, body: int | None) -> list[tuple[int, int]]:
    if start == spatial.NO_HEAD:
        return [(0, 0)] * 3
    height = rows - start if body is None else min(max(body, 3), rows - start)
    top = max(1, int(np.round(np.float32(height) * np.float32(SHARES[0]))))
    middle = max(1, int(np.round(np.float32(height) * np.float32(SHARES[1]))))
    top = min(top, max(height - 2, 1))
    middle = min(middle, max(height - top - 1, 1))
    edges = [start, min(start + top, start + height), min(start + top + middle, start + height), start + height]
    return list(itertools.pairwise(edges))


strengths = hnp.arrays(np.float32, (3,), elements=st.sampled_from([0.1, 0.25, 0.5, 1.0]))


@given(masks, strengths)
def test_head_row_is_the_first_active_row(head: np.ndarray, strength: np.ndarray) -> None:
    head = faint(head, strength)
    found = spatial.head_row_first(torch.from_numpy(head), THRESHOLD)
    assert found.tolist() == [next(iter(literal_active(mask)), spatial.NO_HEAD) for mask in head]


@given(masks, strengths)
def test_head_height_spans_first_to_last_active_row(head: np.ndarray, strength: np.ndarray) -> None:
    head = faint(head, strength)
    found = spatial.head_height(torch.from_numpy(head), THRESHOLD).tolist()
    for mask, height in zip(head, found, strict=True):
        rows = literal_active(mask)
        assert height == (rows[-1] - rows[0] + 1 if rows else 0)


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.2])
def test_a_head_begins_in_the_same_row_however_sure_the_network_is(strength: float) -> None:
    head = torch.zeros(1, ROWS, COLUMNS)
    head[0, 2:6, 3] = torch.tensor([0.3, 0.8, 0.9, 0.2])
    assert spatial.head_row_first(strength * head, THRESHOLD).tolist() == [3]


def test_head_row_of_the_maximum_is_one_below_and_stays_inside() -> None:
    head = torch.zeros(3, ROWS, COLUMNS)
    head[0, 2, 3] = 0.9
    head[1, ROWS - 1, 0] = 0.8  # at the image's lower edge
    head[2, 4, 4] = 0.4  # too faint to be a head
    assert spatial.head_row_maximum(head, 0.5).tolist() == [3, ROWS - 1, spatial.NO_HEAD]


@given(st.lists(st.integers(-1, ROWS - 1), min_size=1, max_size=8), st.one_of(st.none(), st.integers(0, 40)))
def test_strips_equal_the_literal_division(starts: list[int], body: int | None) -> None:
    bodies = None if body is None else torch.full((len(starts),), body)
    bounds = spatial.strip_bounds(torch.tensor(starts), ROWS, SHARES, bodies)
    assert [[tuple(pair) for pair in row] for row in bounds.tolist()] == [
        literal_bounds(start, ROWS, body) for start in starts
    ]


@given(st.integers(0, ROWS - 1))
def test_strips_tile_the_rows_below_the_head(start: int) -> None:
    bounds = spatial.strip_bounds(torch.tensor([start]), ROWS, SHARES)
    cover = spatial.strip_masks(bounds, ROWS)[0].sum(0)
    assert cover[:start].sum() == 0
    assert (cover[start:] == 1).all()
    if ROWS - start >= 3:
        assert (bounds[0, :, 1] > bounds[0, :, 0]).all(), "each strip has a row while three are left"


def test_the_division_of_a_whole_image_follows_the_paper() -> None:
    bounds = spatial.strip_bounds(torch.tensor([0]), ROWS, SHARES)
    assert bounds[0].tolist() == [[0, 2], [2, 6], [6, 16]]


@pytest.mark.parametrize(
    ("t", "m", "b", "chosen"),
    [
        (1, 1, 1, {"top", "middle", "bottom", "top+middle", "middle+bottom"}),
        (1, 1, 0, {"top", "middle", "top+middle"}),
        (1, 0, 1, {"top"}),
        (1, 0, 0, {"top"}),
        (0, 1, 1, set()),
        (0, 1, 0, set()),
        (0, 0, 1, set()),
        (0, 0, 0, set()),
    ],
)
def test_table_of_equation_3(t: int, m: int, b: int, chosen: set[str]) -> None:
    picked = spatial.choose_features(torch.tensor([[t, m, b]], dtype=torch.bool))[0]
    assert {name for name, on in zip(spatial.COMBINATIONS, picked.tolist(), strict=True) if on} == chosen


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(-1, ROWS - 1))
def test_strip_pooling_and_visibility_equal_loops(seed: int, start: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(2, 5, ROWS, COLUMNS, generator=generator)
    parts = torch.rand(2, 4, ROWS, COLUMNS, generator=generator)
    bounds = spatial.strip_bounds(torch.tensor([start, 0]), ROWS, SHARES)
    strips = spatial.strip_masks(bounds, ROWS)
    pooled = spatial.pool_strips(features, strips)
    body = parts.amax(1)
    weighted = spatial.pool_strips(features, strips, body)
    mean, peak = spatial.strip_visibility(parts, strips)
    for image in range(2):
        (a, b), (c, d), (e, f) = bounds[image].tolist()
        for index, rows in enumerate([range(a, b), range(c, d), range(e, f), range(a, d), range(c, f)]):
            picked = features[image][:, list(rows)]
            expected = picked.mean((1, 2)) if len(rows) else torch.zeros(5)
            torch.testing.assert_close(pooled[image, index], expected)
            weights = body[image][list(rows)]
            expected = (picked * weights).sum((1, 2)) / weights.sum() if len(rows) else torch.zeros(5)
            torch.testing.assert_close(weighted[image, index], expected)
            if index < 3:
                union = parts[image].amax(0)[list(rows)]
                torch.testing.assert_close(mean[image, index], union.mean() if len(rows) else torch.tensor(0.0))
                torch.testing.assert_close(peak[image, index], union.max() if len(rows) else torch.tensor(0.0))


def test_what_is_beside_the_body_has_no_part_in_a_strip_weighted_by_it() -> None:
    features = torch.zeros(1, 1, ROWS, COLUMNS)
    body = torch.zeros(1, ROWS, COLUMNS)
    body[:, :, :2] = 1
    features[:, :, :, 2:] = 9
    strips = spatial.strip_masks(spatial.strip_bounds(torch.tensor([0]), ROWS, SHARES), ROWS)
    assert spatial.pool_strips(features, strips, body).abs().max() == 0
    assert spatial.pool_strips(features, strips).min() > 0
    assert spatial.pool_strips(features, strips, torch.zeros_like(body)).isfinite().all()


def test_the_test_time_head_row_may_follow_the_maximum() -> None:
    config = ModelConfig(head_row_test="max+1")
    masks = torch.zeros(1, 4, 16, 8)
    masks[:, :, 4:8] = 0.9
    masks[0, 0, 6, 3] = 1.0
    strips, _, _ = spatial.find_strips(masks, config, testing=True)
    assert strips[0].sum(0).nonzero()[0].item() == 7
    strips, _, _ = spatial.find_strips(masks, config, testing=False)
    assert strips[0].sum(0).nonzero()[0].item() == 4


def test_a_short_body_ends_where_the_head_says() -> None:
    masks = torch.zeros(1, 4, 16, 8)
    masks[0, 0, 2] = 0.9  # a head one row high: a body of round(1 / 0.15) = 7 rows
    strips, shown, _ = spatial.find_strips(masks, ModelConfig(body_height="head"), testing=True)
    assert strips[0].sum(0).nonzero().flatten().tolist() == list(range(2, 9))
    # Only the first strip holds the head; nothing of a body is seen in the others.
    assert shown.tolist() == [[True, False, False]]
