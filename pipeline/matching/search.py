"""Search and rank in a gallery on disk, exactly, block by block: memory does not grow with the gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.formats.features import FeatureFile
from pipeline.matching.distance import (
    SHRUNK,
    PartSet,
    Prepared,
    Rule,
    VisibilityKind,
    Workspace,
    distances,
    paired_distances,
    part_set,
    prepare,
)
from pipeline.matching.metrics import GalleryStream, Ranking
from pipeline.matching.nearest import Nearest
from pipeline.runtime.progress import SILENT, Progress

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

BLOCK_BYTES = 64 * 2**20
"""Features read at a time."""

_BLOCK_DISTANCES = 2**21
"""Distances held at a time by a search, which passes over most of them at once."""

_RANKED_DISTANCES = 2**22
"""The same for metrics, whose work on each row of a block has a cost of its own."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What a search found.

    Attributes:
        rows: (Q,k) int64 rows of the gallery file, nearest first; ties go to the smaller row.
        distances: (Q,k) float32.
    """

    rows: Ints
    distances: Floats


def search(
    query: PartSet,
    gallery: FeatureFile,
    k: int,
    *,
    rule: Rule = SHRUNK,
    visibility: VisibilityKind = "hard",
    rows: Ints | None = None,
    progress: Progress = SILENT,
) -> Hits:
    """The k nearest gallery images of each query, exactly.

    Args:
        query: (Q) features on the device where the work is done.
        gallery: The file, of any size.
        k: How many; fewer are returned where the gallery is smaller.
        rule: How distances are formed.
        visibility: How the gallery's mask means become visibility.
        rows: Ascending rows of the file to search in; None: all.
        progress: Told of rows gone through.

    Raises:
        FormatError: The file is damaged, or its features have another length.
        DataError: There is nothing to search in.
    """
    left = prepare(query, rule, is_query=True)
    total = gallery.done if rows is None else len(rows)
    if not total or k < 1:
        raise DataError(f"{k} of {total} gallery images cannot be found", where=gallery.path)
    nearest = Nearest(len(query), min(k, total))
    space = Workspace()
    with progress.task("search", total=total) as task:
        size = block_rows(gallery, len(query))
        for start, right in _gallery_blocks(gallery, rows, size, rule, visibility, query, space):
            nearest.offer(distances(left, right, rule, space=space).cpu().numpy(), first_column=start)
            task.advance(len(right))
    index, found = nearest.result()
    return Hits(index if rows is None else rows[index], found)


def rank_on_disk(
    query: PartSet,
    query_pids: npt.ArrayLike,
    query_camids: npt.ArrayLike,
    gallery: FeatureFile,
    *,
    rule: Rule = SHRUNK,
    visibility: VisibilityKind = "hard",
    rows: Ints | None = None,
    progress: Progress = SILENT,
) -> Ranking:
    """The exact ranking of each query in a gallery file, for all metrics.

    Goes through the file once; before that it reads the few rows of the queries' own identities. Their distances are
    rounded once more in other products than the gallery's, so an entry within 1e-6 of a match may fall on either side.

    Args:
        query: (Q) features on the device where the work is done.
        query_pids: (Q,) identities.
        query_camids: (Q,) cameras.
        gallery: The file, of any size.
        rule: How distances are formed.
        visibility: How the gallery's mask means become visibility.
        rows: Ascending rows of the file that are the gallery; None: all.
        progress: Told of rows gone through.

    Raises:
        FormatError: The file is damaged, or its features have another length.
        DataError: There is nothing to search in.
    """
    pids, camids = gallery.ids()
    if rows is not None:
        pids, camids = pids[rows], camids[rows]
    stream = GalleryStream(query_pids, pids, query_camids, camids)
    left = prepare(query, rule, is_query=True)
    whose, entry = stream.pairs
    of_pairs = entry if rows is None else rows[entry]
    space = Workspace()
    stream.begin(_pair_distances(left, whose, gallery, of_pairs, rule, visibility, query))
    with progress.task("rank", total=len(pids)) as task:
        size = block_rows(gallery, len(query), _RANKED_DISTANCES)
        for _, right in _gallery_blocks(gallery, rows, size, rule, visibility, query, space):
            stream.update(distances(left, right, rule, space=space))
            task.advance(len(right))
    return stream.ranking()


def block_rows(gallery: FeatureFile, num_queries: int, limit: int = _BLOCK_DISTANCES) -> int:
    """Rows a block: some 64 MB of features, or `limit` distances, whichever is less."""
    row_bytes = 4 * (7 * gallery.part_dim + gallery.global_dim + 7)
    return max(64, min(BLOCK_BYTES // row_bytes, limit // max(1, num_queries)))


def _gallery_blocks(
    gallery: FeatureFile,
    chosen: Ints | None,
    size: int,
    rule: Rule,
    visibility: VisibilityKind,
    like: PartSet,
    space: Workspace,
) -> Iterator[tuple[int, Prepared]]:
    """Prepared features of the chosen rows, or of all, and how many came before them."""
    first, last = (0, gallery.done) if chosen is None else (int(chosen[0]), int(chosen[-1]) + 1)
    start = 0
    for block in gallery.blocks(size, start=first, stop=last, reuse=True):
        end = block.start + len(block)
        stop = end if chosen is None else int(np.searchsorted(chosen, end))
        if stop > start:
            side = part_set(block, gallery.thresholds, visibility, like.parts.device)
            if chosen is not None and stop - start < len(block):
                side = side.take(chosen[start:stop] - block.start)
            yield start, prepare(side, rule, is_query=False, space=space)
        start = stop


def _pair_distances(
    left: Prepared, whose: Ints, gallery: FeatureFile, rows: Ints, rule: Rule, visibility: VisibilityKind, like: PartSet
) -> Floats:
    """Distances of query whose[i] to file row rows[i]."""
    out = np.empty(len(rows), dtype=np.float32)
    order = np.argsort(rows, kind="stable")
    size = block_rows(gallery, 1)
    for start in range(0, len(order), size):
        pairs = order[start : start + size]
        unique, inverse = np.unique(rows[pairs], return_inverse=True)
        side = prepare(
            part_set(gallery.at(unique), gallery.thresholds, visibility, like.parts.device), rule, is_query=False
        )
        out[pairs] = paired_distances(left.take(whose[pairs]), side.take(inverse), rule).cpu().numpy()
    return out
