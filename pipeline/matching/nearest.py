"""The nearest neighbours of each row, from blocks of a distance matrix in any order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

_EMPTY = np.uint64(2**64 - 1)
_SIGN = np.uint32(2**31)
_SAMPLE = 8
"""The first limit of a row comes from 1/8 of the columns of the first block: faster than from all, and it admits at
most eight times the numbers that are kept."""


class Nearest:
    """Keeps the `count` smallest distances of each row; ties go to the smaller column.

    After the first block a row admits only what beats its worst kept distance, so that one comparison rejects nearly
    all of a block. A distance and its column are one 64-bit number of the same order, because sorting plain numbers is
    many times faster than sorting by two keys.

    Args:
        rows: Number of rows.
        count: How many to keep.
    """

    def __init__(self, rows: int, count: int) -> None:
        self._count = count
        self._kept: Keys = np.full((rows, count), _EMPTY)
        self._limit = np.full(rows, np.inf, dtype=np.float32)
        self._seen = np.zeros(rows, dtype=np.int64)

    def offer(self, block: Floats, *, first_row: int = 0, first_column: int = 0) -> None:
        """Add the distances (B,C) of rows [first_row, +B) to columns [first_column, +C); no pair twice, no NaN.

        Columns are below 2**32.
        """
        rows = slice(first_row, first_row + len(block))
        limit = self._limits(rows, block, first_column)
        row, column = np.divmod(np.flatnonzero(block <= limit[:, None]), max(1, block.shape[1]))
        self._take_in(rows, row, _keys(block[row, column], column + first_column))

    def offer_columns(self, block: Floats, *, first_row: int = 0, first_column: int = 0) -> None:
        """Add the distances (C,B) of columns [first_column, +C) to rows [first_row, +B).

        Equal to `offer(block.T)` without transposing the block.
        """
        rows = slice(first_row, first_row + block.shape[1])
        limit = self._limits(rows, block.T, first_column)
        column, row = np.divmod(np.flatnonzero(block <= limit), max(1, block.shape[1]))
        order = np.argsort(row, kind="stable")
        self._take_in(rows, row[order], _keys(block[column, row], column + first_column)[order])

    def result(self) -> tuple[Ints, Floats]:
        """Return columns and distances, nearest first, (rows, count); fewer where all rows were offered fewer."""
        offered = int((self._kept != _EMPTY).sum(axis=1).max(initial=0))
        kept = self._kept[:, :offered]
        index = (kept & np.uint64(2**32 - 1)).astype(np.int64)
        distance = _distances(kept)
        index[kept == _EMPTY], distance[kept == _EMPTY] = np.iinfo(np.int64).max, np.inf
        return index, distance

    def _limits(self, rows: slice, block: Floats, first_column: int) -> Floats:
        """Return the largest distance that each row admits (B,)."""
        limit = self._limit[rows]
        sample = block[:, : max(block.shape[1] // _SAMPLE, min(self._count, block.shape[1]))]
        if sample.shape[1] >= self._count and np.isinf(limit).any():
            # A row without a limit takes the k-th smallest of a sample of this block.
            turned = np.ascontiguousarray(sample)
            limit = np.minimum(limit, np.partition(turned, self._count - 1, axis=1)[:, self._count - 1])
        seen = self._seen[rows]
        if seen.size and first_column >= seen.max() and np.isfinite(self._limit[rows]).all():
            # All kept columns are smaller, so equal distances rank behind them.
            limit = np.nextafter(limit, np.float32(-np.inf))
        self._seen[rows] = np.maximum(seen, first_column + block.shape[1])
        return limit

    def _take_in(self, rows: slice, row: Ints, keys: Keys) -> None:
        """Merge keys into their rows; `row` ascends and is relative to the first of `rows`."""
        if not len(row):
            return
        many = np.bincount(row, minlength=rows.stop - rows.start)
        affected = np.flatnonzero(many)
        many = many[affected]
        merged = np.full((len(affected), self._count + int(many.max())), _EMPTY)
        merged[:, : self._count] = self._kept[rows][affected]
        position = np.arange(len(row)) - np.repeat(np.cumsum(many) - many, many)
        merged[np.repeat(np.arange(len(affected)), many), self._count + position] = keys
        merged.sort(axis=1)
        self._kept[rows.start + affected] = merged[:, : self._count]
        worst = merged[:, self._count - 1]
        self._limit[rows.start + affected] = np.where(worst == _EMPTY, np.float32(np.inf), _distances(worst))


def _keys(distance: Floats, column: Ints) -> Keys:
    """Combine distance and column into one number that orders by distance, then by column."""
    # Minus zero becomes zero: they are equal.
    bits = (distance + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >= _SIGN, ~bits, bits | _SIGN)
    return ordered.astype(np.uint64) << np.uint64(32) | column.astype(np.uint64)


def _distances(keys: Keys) -> Floats:
    """Extract the distances from keys."""
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered >= _SIGN, ordered ^ _SIGN, ~ordered)
    distances: Floats = bits.view(np.float32)
    return distances
