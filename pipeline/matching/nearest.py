"""The nearest others of each row, gathered from blocks of a distance matrix in any order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Nearest:
    """Keeps the `count` smallest distances of each row; ties go to the smaller column.

    After the first block a row takes in only what beats its worst kept distance, so that all but a few numbers of a
    block are passed over by one comparison.

    Args:
        rows: Number of rows.
        count: How many to keep.
    """

    def __init__(self, rows: int, count: int) -> None:
        self._index = np.full((rows, count), np.iinfo(np.int64).max)
        self._distance = np.full((rows, count), np.inf, dtype=np.float32)

    def offer(self, block: Floats, *, first_row: int = 0, first_column: int = 0) -> None:
        """Take the distances (B,C) of rows [first_row, +B) to columns [first_column, +C); no pair twice."""
        rows = slice(first_row, first_row + len(block))
        kept = self._index.shape[1]
        limit = self._distance[rows, -1:]
        if block.shape[1] > kept and np.isinf(limit).any():
            # A row without a limit to go by takes its k-th smallest in this block.
            limit = np.minimum(limit, np.partition(block, kept - 1, axis=1)[:, kept - 1 : kept])
        row, column = np.divmod(np.flatnonzero(block <= limit), max(1, block.shape[1]))
        if not len(row):
            return
        affected, position = np.unique(row, return_inverse=True)
        owner = np.concatenate([np.repeat(np.arange(len(affected)), kept), position])
        index = np.concatenate([self._index[rows][affected].ravel(), column + first_column])
        distance = np.concatenate([self._distance[rows][affected].ravel(), block[row, column]])
        order = np.lexsort((index, distance, owner))
        first = np.searchsorted(owner[order], np.arange(len(affected)))
        picked = order[first[:, None] + np.arange(kept)]
        self._index[first_row + affected] = index[picked]
        self._distance[first_row + affected] = distance[picked]

    def result(self) -> tuple[Ints, Floats]:
        """Columns and distances, nearest first, (rows, count); fewer columns where fewer were offered to all."""
        offered = int(np.isfinite(self._distance).sum(axis=1).max(initial=0))
        return self._index[:, :offered], self._distance[:, :offered]
