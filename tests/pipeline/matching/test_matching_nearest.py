"""The nearest of each row equal a stable sort, whatever the blocks."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.matching.nearest import Nearest


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.sampled_from([1, 2, 1000]),
    st.sampled_from([20, 300]),
    st.booleans(),
)
def test_nearest_equals_a_stable_sort_whatever_the_blocks(
    seed: int, count: int, levels: int, columns: int, in_order: bool
) -> None:
    rng = np.random.default_rng(seed)
    # Both signs, zero with either sign, and equal numbers.
    matrix = ((rng.integers(0, levels, (5, columns)) - levels // 2) * rng.choice([-0.5, 0.5])).astype(np.float32)
    nearest = Nearest(5, count)
    edges = np.concatenate([[0], np.sort(rng.choice(np.arange(1, columns), 3, replace=False)), [columns]])
    tiles = [(rows, (a, b)) for rows in ((0, 3), (3, 5)) for a, b in itertools.pairwise(edges)]
    if not in_order:
        rng.shuffle(tiles)
    for (top, bottom), (left, right) in tiles:
        block = matrix[top:bottom, left:right]
        if rng.random() < 0.5:
            nearest.offer(block, first_row=top, first_column=int(left))
        else:
            nearest.offer_columns(np.ascontiguousarray(block.T), first_row=top, first_column=int(left))
    index, distance = nearest.result()
    order = np.argsort(matrix, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(distance, np.take_along_axis(matrix, order, axis=1))


def test_infinite_distances_rank_last_and_empty_places_are_cut_off() -> None:
    nearest = Nearest(2, 6)
    nearest.offer(np.array([[np.inf, 1, np.inf], [0, np.inf, -1]], dtype=np.float32))
    nearest.offer(np.array([[0.5], [np.inf]], dtype=np.float32), first_column=3)
    index, distance = nearest.result()
    assert index.tolist() == [[3, 1, 0, 2], [2, 0, 1, 3]]
    assert distance.tolist() == [[0.5, 1, np.inf, np.inf], [-1, 0, np.inf, np.inf]]


def test_rows_that_were_offered_fewer_are_filled_up() -> None:
    nearest = Nearest(2, 3)
    nearest.offer(np.array([[2, 1]], dtype=np.float32))
    nearest.offer(np.zeros((1, 0), dtype=np.float32), first_row=1)
    index, distance = nearest.result()
    assert index.tolist() == [[1, 0], [np.iinfo(np.int64).max] * 2]
    assert distance.tolist() == [[1, 2], [np.inf] * 2]


def test_columns_beyond_31_bits_keep_their_numbers() -> None:
    nearest = Nearest(1, 1)
    nearest.offer(np.array([[3, 2]], dtype=np.float32), first_column=2**32 - 2)
    assert nearest.result()[0].tolist() == [[2**32 - 1]]
