"""Exact search and ranking, block by block: memory does not grow with a gallery on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import DataError
from pipeline.formats.feature_file import FeatureFile
from pipeline.formats.features import Features
from pipeline.matching.distance import SHRUNK, MatchingRule, Prepared, Workspace, distances, paired_distances, prepare
from pipeline.matching.metrics import PositivesAndJunk, Ranking, as_float_matrix
from pipeline.matching.nearest import Nearest
from pipeline.runtime.progress import SILENT, Progress

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

BLOCK_BYTES = 64 * 2**20
"""Features read at a time."""

_BLOCK_DISTANCES = 2**21
"""Distances held at a time by a search, which rejects nearly all of them at once."""

_RANKED_DISTANCES = 2**22
"""The same for metrics, which have a fixed cost for each row of a block."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest gallery images of each query.

    Attributes:
        rows: (Q,k) int64 rows of the gallery, nearest first; ties go to the smaller row.
        distances: (Q,k) float32.
    """

    rows: Ints
    distances: Floats


def search(
    query: Features,
    gallery: FeatureFile | Features,
    k: int,
    *,
    rule: MatchingRule = SHRUNK,
    device: torch.device | str = "cpu",
    rows: Ints | None = None,
    progress: Progress = SILENT,
) -> Neighbours:
    """Find the k nearest gallery images of each query, exactly; fewer where the gallery is smaller.

    The gallery is a file of any size, or features in memory; `rows` are its ascending rows to search, None: all.

    Raises:
        FormatError: The file is damaged, or its features have another dimension.
        DataError: The gallery is empty.
    """
    every = gallery.rows if isinstance(gallery, FeatureFile) else np.arange(len(gallery))
    chosen = every if rows is None else rows
    if not len(chosen) or k < 1:
        raise DataError(f"{k} of {len(chosen)} gallery images cannot be found")
    left = prepare(query, rule, is_query=True, device=device)
    nearest = Nearest(len(query), min(k, len(chosen)))
    space = Workspace()
    with progress.task("search", total=len(chosen)) as task:
        size = block_rows(gallery, len(query))
        for start, block in _blocks(gallery, chosen, size):
            right = prepare(block, rule, is_query=False, device=device, space=space)
            nearest.offer(distances(left, right, space=space).cpu().numpy(), first_column=start)
            task.advance(len(right))
    index, found = nearest.result()
    return Neighbours(chosen[index], found)


def rank_on_disk(
    query: Features,
    gallery: FeatureFile,
    *,
    rule: MatchingRule = SHRUNK,
    device: torch.device | str = "cpu",
    rows: Ints | None = None,
    progress: Progress = SILENT,
) -> Ranking:
    """Rank a gallery file for each query, exactly, for all metrics.

    Reads the file once, after the few rows of the queries' own identities. Distances of those come from products of
    other shapes than the rest, so an entry within 1e-6 of a match may rank on either side of it. `rows` are the
    ascending rows of the file that are the gallery, None: all.

    Raises:
        FormatError: The file is damaged, or its features have another dimension.
        DataError: The gallery is empty.
    """
    chosen = gallery.rows if rows is None else rows
    related = PositivesAndJunk.of(query.pids, gallery.pids[chosen], query.camids, gallery.camids[chosen])
    left = prepare(query, rule, is_query=True, device=device)
    # Those of the queries' own identities first, because the others are counted against them.
    values = _pair_distances(left, related.query, gallery, chosen[related.entry]).astype(np.float64)
    before = np.zeros(len(values), dtype=np.int64)
    space = Workspace()
    with progress.task("rank", total=len(chosen)) as task:
        for first, block in gallery.blocks(block_rows(gallery, len(query), _RANKED_DISTANCES), chosen, reuse=True):
            right = prepare(block, rule, is_query=False, device=device, space=space)
            matrix = as_float_matrix(distances(left, right, space=space))
            before += related.others_before(matrix, values, first_query=0, first_entry=first)
            task.advance(len(right))
    return Ranking(related, values, before)


def block_rows(gallery: FeatureFile | Features, num_queries: int, limit: int = _BLOCK_DISTANCES) -> int:
    """Return the rows per block: about 64 MB of features, or `limit` distances, whichever is less."""
    row_bytes = 4 * (7 * gallery.part_dim + gallery.global_dim + 7)
    return max(64, min(BLOCK_BYTES // row_bytes, limit // max(1, num_queries)))


def _blocks(gallery: FeatureFile | Features, rows: Ints, size: int) -> Iterator[tuple[int, Features]]:
    """Yield blocks of the chosen rows, each with the number of rows before it."""
    if isinstance(gallery, FeatureFile):
        yield from gallery.blocks(size, rows, reuse=True)
        return
    for start in range(0, len(rows), size):
        yield start, gallery.select(rows[start : start + size])


def _pair_distances(left: Prepared, of_query: Ints, gallery: FeatureFile, rows: Ints) -> Floats:
    """Return the distances of query of_query[i] to file row rows[i]."""
    out = np.empty(len(rows), dtype=np.float32)
    order = np.argsort(rows, kind="stable")
    size = block_rows(gallery, 1)
    for start in range(0, len(order), size):
        pairs = order[start : start + size]
        unique, inverse = np.unique(rows[pairs], return_inverse=True)
        side = prepare(gallery.at(unique), left.rule, is_query=False, device=left.units.device)
        out[pairs] = paired_distances(left.take(of_query[pairs]), side.take(inverse)).cpu().numpy()
    return out
