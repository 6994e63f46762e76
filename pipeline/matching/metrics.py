"""Exact ranking metrics of re-identification: CMC, mAP and mINP, from distances and ids.

Rules (docs/concepts/protocols.md): gallery entries with the query's identity and camera are removed for that query; a
query left without a match is skipped and counted; ties rank by gallery order; NaN is an error.

The rank of a match is the number of entries before it, plus one. Entries of other identities before it are counted
by comparison, never by sorting the gallery with its indices: the gallery is grouped by identity once, and a query
compares its row with the few values of its own matches. That needs neither a compiler nor a Python loop over gallery
entries, and it works on any consecutive rows or columns of the matrix, so the matrix is never held whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import DataError

AveragePrecision = Literal["mean", "trapezoid"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_STRETCH = 2**17
"""Identities searched at a time."""

_COUNTED = 64
"""Up to this many matches of a query are compared with its row one by one; more are found in the sorted row."""


@dataclass(frozen=True, slots=True)
class RankMetrics:
    """Metrics of a ranking, as fractions.

    Attributes:
        cmc: (max_rank,) share of valid queries with a match within the first r, at r - 1.
        mAP: Mean average precision over valid queries.
        mINP: Mean of matches / rank of the last match (the effort to find all).
        num_valid_queries: Queries with at least one match in another camera.
        num_queries: All queries.
        per_query_ap: (Q,) NaN where the query has no match.
        per_query_inp: (Q,) NaN where the query has no match.
        first_hit: (Q,) rank of the first match, from 1; 0 where the query has none.
    """

    cmc: Doubles
    mAP: float  # noqa: N815 - its name in the field
    mINP: float  # noqa: N815
    num_valid_queries: int
    num_queries: int
    per_query_ap: Doubles
    per_query_inp: Doubles
    first_hit: Ints

    def rank(self, r: int) -> float:
        """Return CMC at rank r; past the end of the curve, its last value."""
        return float(self.cmc[min(r, len(self.cmc)) - 1])

    @property
    def valid(self) -> Bools:
        """(Q,) which queries count."""
        return self.first_hit > 0

    def subset(self, queries: Bools) -> RankMetrics | None:
        """Return the metrics of some of the queries, or None where none of them has a match."""
        if not (queries & self.valid).any():
            return None
        return _summary(self.per_query_ap[queries], self.per_query_inp[queries], self.first_hit[queries], len(self.cmc))


def rank_metrics(
    distances: npt.ArrayLike | torch.Tensor,
    query_pids: npt.ArrayLike,
    gallery_pids: npt.ArrayLike,
    query_camids: npt.ArrayLike,
    gallery_camids: npt.ArrayLike,
    max_rank: int = 50,
    *,
    average_precision: AveragePrecision = "mean",
) -> RankMetrics:
    """Compute exact metrics of a distance matrix.

    Args:
        distances: (Q,G), smaller is more alike; any real type, infinities allowed.
        query_pids: (Q,) identities.
        gallery_pids: (G,) identities.
        query_camids: (Q,) cameras.
        gallery_camids: (G,) cameras.
        max_rank: Length of the CMC curve.
        average_precision: `mean` of the precision at each match, or the `trapezoid` rule.

    Raises:
        DataError: A distance is NaN, the shapes disagree, or no query has a match.
    """
    stream = RankStream(query_pids, gallery_pids, query_camids, gallery_camids, max_rank, average_precision)
    stream.update(distances)
    return stream.compute()


class RankStream:
    """Metrics from blocks of distances in query order. See `rank_metrics` for arguments and errors."""

    def __init__(
        self,
        query_pids: npt.ArrayLike,
        gallery_pids: npt.ArrayLike,
        query_camids: npt.ArrayLike,
        gallery_camids: npt.ArrayLike,
        max_rank: int = 50,
        average_precision: AveragePrecision = "mean",
    ) -> None:
        self._related = PositivesAndJunk.of(query_pids, gallery_pids, query_camids, gallery_camids)
        self._max_rank = max_rank
        self._average_precision: AveragePrecision = average_precision
        self._values: Doubles = np.full(len(self._related.entry), np.nan)
        self._before = np.zeros(len(self._related.entry), dtype=np.int64)
        self._fed = 0

    def update(self, distances: npt.ArrayLike | torch.Tensor) -> None:
        """Add the distances (B,G) of the next B queries to the whole gallery.

        Raises:
            DataError: A distance is NaN, or the block does not fit.
        """
        block = as_float_matrix(distances)
        related = self._related
        count, width = block.shape if block.ndim == 2 else (0, -1)
        if width != related.num_gallery or self._fed + count > related.num_queries:
            raise DataError(
                f"distances of shape {block.shape} after {self._fed} queries",
                expected=f"rows of {related.num_gallery}, {related.num_queries} in all",
            )
        first, last = related.start[self._fed], related.start[self._fed + count]
        rows = related.query[first:last] - self._fed
        self._values[first:last] = block[rows, related.entry[first:last]]
        self._before[first:last] = related.others_before(block, self._values, first_query=self._fed, first_entry=0)
        self._fed += count

    def ranking(self) -> Ranking:
        """Return what the metrics are computed from.

        Raises:
            DataError: Distances are missing.
        """
        if self._fed < self._related.num_queries:
            raise DataError(f"distances of {self._fed} of {self._related.num_queries} queries were given")
        return Ranking(self._related, self._values, self._before)

    def compute(self) -> RankMetrics:
        """Return the metrics of all queries.

        Raises:
            DataError: Distances are missing, or no query has a match.
        """
        return self.ranking().metrics(self._max_rank, self._average_precision)


@dataclass(frozen=True, slots=True)
class PositivesAndJunk:
    """The gallery entries of each query's own identity, flat: positives of other cameras, junk of its own.

    Attributes:
        query: (R,) query index of each pair, ascending.
        entry: (R,) gallery index, ascending within a query.
        positive: (R,) whether the cameras differ; the other pairs are junk, removed from the query's ranking.
        start: (Q+1,) first pair of each query.
        num_gallery: G.
    """

    query: Ints
    entry: Ints
    positive: Bools
    start: Ints
    num_gallery: int

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.start) - 1

    @classmethod
    def of(
        cls,
        query_pids: npt.ArrayLike,
        gallery_pids: npt.ArrayLike,
        query_camids: npt.ArrayLike,
        gallery_camids: npt.ArrayLike,
    ) -> PositivesAndJunk:
        """Find the gallery entries of each query's identity, with little memory besides the ids.

        Raises:
            DataError: Identities and cameras differ in number, or one side is empty.
        """
        qp, gp, qc, gc = (np.asarray(ids) for ids in (query_pids, gallery_pids, query_camids, gallery_camids))
        if qp.ndim != 1 or gp.ndim != 1 or qp.shape != qc.shape or gp.shape != gc.shape or not qp.size or not gp.size:
            raise DataError(
                f"identities and cameras have shapes {qp.shape}, {qc.shape} (query), {gp.shape}, {gc.shape} (gallery)",
                expected="one identity and one camera for each image, and at least one image on both sides",
            )
        # Only identities of queries are grouped: few of millions of entries.
        related = _among(gp, np.unique(qp))
        order = related[np.argsort(gp[related], kind="stable")]
        grouped = gp[order]
        left = np.searchsorted(grouped, qp, side="left")
        sizes = np.searchsorted(grouped, qp, side="right") - left
        start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        query = np.repeat(np.arange(len(qp)), sizes)
        entry = order[np.arange(start[-1]) - np.repeat(start[:-1] - left, sizes)]
        return cls(query, entry, qc[query] != gc[entry], start, len(gp))

    def no_match(self) -> DataError:
        """Return the error for queries of which none has a match, with what the gallery holds of their identities."""
        same_camera = int((np.diff(self.start) > 0).sum())
        return DataError(
            f"no query has a match in the gallery: of {self.num_queries} queries, {same_camera} have gallery images of "
            f"their identity from their own camera only, {self.num_queries - same_camera} have none",
            expected="gallery images of the queries' identities from other cameras",
            hint="where cameras are unknown, give each image a camera id of its own" if same_camera else None,
        )

    def others_before(self, block: Floats | Doubles, values: Doubles, *, first_query: int, first_entry: int) -> Ints:
        """Count, for each pair of the queries in a block, the entries of other identities that rank before it there.

        The block has the distances of queries [first_query, +B) to entries [first_entry, +C); `values` (R,) are the
        distances of all pairs.

        Raises:
            DataError: A distance is NaN.
        """
        first, last = self.start[first_query], self.start[first_query + len(block)]
        counts = np.zeros(last - first, dtype=np.int64)
        if block.size == 0:
            return counts

        def work(rows: range) -> None:
            counter = _Counter(block.shape[1])
            for row in rows:
                line = block[row]
                # `min` propagates NaN and is cheaper than testing each number.
                if np.isnan(line.min()):
                    raise DataError(
                        f"the distance of query {first_query + row} to gallery entry "
                        f"{first_entry + int(np.isnan(line).argmax())} is not a number",
                        hint="the features contain NaN; extract them again",
                    )
                pairs = slice(self.start[first_query + row], self.start[first_query + row + 1])
                if not self.positive[pairs].any():
                    continue
                local = self.entry[pairs] - first_entry
                own = local[(local >= 0) & (local < len(line))]
                line = line.copy()
                line[own] = np.nan
                counts[pairs.start - first : pairs.stop - first] = counter.before(
                    line, values[pairs].astype(line.dtype), local
                )

        _in_threads(work, len(block))
        return counts


@dataclass(frozen=True, slots=True)
class Ranking:
    """Distances and ranks of all pairs of one identity; metrics of any choice of matches follow from them.

    Attributes:
        related: The pairs.
        distances: (R,) distance of each pair.
        before: (R,) entries of other identities that rank before it.
    """

    related: PositivesAndJunk
    distances: Doubles
    before: Ints

    def coincident(self) -> int:
        """Return how many queries have a match at distance 0 (to 1e-5, for the rounding of products)."""
        return len(np.unique(self.related.query[self.related.positive & (self.distances < 1e-5)]))

    def metrics(
        self, max_rank: int = 50, average_precision: AveragePrecision = "mean", *, among: Bools | None = None
    ) -> RankMetrics:
        """Compute the metrics; see `rank_metrics`.

        Of the pairs from other cameras, those that are not `among` (R,) the ones that count are removed from their
        query's ranking.

        Raises:
            DataError: No query has a match.
        """
        match = self.related.positive if among is None else self.related.positive & among
        query, entry, value, ahead = (
            a[match] for a in (self.related.query, self.related.entry, self.distances, self.before)
        )
        order = np.lexsort((entry, value, query))
        query, ahead = query[order], ahead[order]
        found = np.unique(query)
        if not found.size:
            raise self.related.no_match()
        starts = np.searchsorted(query, found)
        matches = np.diff(np.append(starts, len(query)))
        nth = np.arange(len(query)) - np.repeat(starts, matches) + 1
        rank = ahead + nth
        precision = nth / rank
        if average_precision == "trapezoid":
            # The precision just before a match; before the first rank it counts as 1.
            previous = np.where(rank > 1, (nth - 1) / np.maximum(rank - 1, 1), 1.0)
            precision = (precision + previous) / 2
        num_queries = self.related.num_queries
        ap = np.full(num_queries, np.nan)
        inp = np.full(num_queries, np.nan)
        first_hit = np.zeros(num_queries, dtype=np.int64)
        ap[found] = np.add.reduceat(precision, starts) / matches
        inp[found] = matches / rank[starts + matches - 1]
        first_hit[found] = rank[starts]
        return _summary(ap, inp, first_hit, max_rank)


def _summary(ap: Doubles, inp: Doubles, first_hit: Ints, max_rank: int) -> RankMetrics:
    valid = first_hit > 0
    hits = np.bincount(first_hit[valid], minlength=max_rank + 1)[1 : max_rank + 1]
    total = int(valid.sum())
    return RankMetrics(
        cmc=np.cumsum(hits) / total,
        mAP=float(ap[valid].mean()),
        mINP=float(inp[valid].mean()),
        num_valid_queries=total,
        num_queries=len(ap),
        per_query_ap=ap,
        per_query_inp=inp,
        first_hit=first_hit,
    )


class _Counter:
    """Counts what precedes some values in one row after another, in scratch memory allocated once."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._words = -(-width // (8 * 255))
        self._hits = np.zeros((_COUNTED, self._words * 8 * 255), dtype=np.bool_)

    def before(self, line: npt.NDArray[Any], values: npt.NDArray[Any], entries: Ints) -> Ints:
        """Count, for each value, the numbers of `line` that are smaller, or equal and left of its entry; never NaN."""
        if len(values) <= _COUNTED:
            smaller = self._count(np.less, line, values)
            not_larger = self._count(np.less_equal, line, values)
        else:
            # Only numbers up to the largest value are ever counted, and a good model puts few others there.
            near = np.sort(line[line <= values.max()])
            smaller = np.searchsorted(near, values, side="left")
            not_larger = np.searchsorted(near, values, side="right")
        tied = np.flatnonzero(not_larger > smaller)
        if len(tied) > _COUNTED:
            return smaller + _equal_left_of(line, values, entries)
        for pair in tied:
            smaller[pair] += np.count_nonzero(line[: max(entries[pair], 0)] == values[pair])
        return smaller

    def _count(self, compare: np.ufunc, line: npt.NDArray[Any], values: npt.NDArray[Any]) -> Ints:
        hits = self._hits[: len(values)]
        compare(line, values[:, None], out=hits[:, : self._width])
        # Eight flags in a 64-bit word add up in their own bytes, which 255 words cannot overflow: two calls for all
        # values instead of one each, so that threads do not queue for the interpreter.
        words = hits.view(np.uint64).reshape(len(values), self._words, 255).sum(axis=2)
        counts: Ints = words.view(np.uint8).reshape(len(values), -1).sum(axis=1, dtype=np.int64)
        return counts


def _equal_left_of(line: npt.NDArray[Any], values: npt.NDArray[Any], entries: Ints) -> Ints:
    """Count, for each value, the equal numbers left of its entry, for many values at once."""
    levels = np.unique(values)
    level = np.minimum(np.searchsorted(levels, line), len(levels) - 1)
    positions = np.flatnonzero(levels[level] == line)
    width = len(line) + 1
    # Level and position in one sorted key: equal numbers left of an entry are a range of it.
    keys = np.sort(level[positions] * width + positions)
    own = np.searchsorted(levels, values) * width
    return np.searchsorted(keys, own + np.clip(entries, 0, len(line))) - np.searchsorted(keys, own)


def _among(ids: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> Ints:
    """Return where `ids` are among `wanted` (ascending, not empty), a stretch at a time."""
    found = []
    for start in range(0, len(ids), _STRETCH):
        some = ids[start : start + _STRETCH]
        nearest = wanted[np.minimum(np.searchsorted(wanted, some), len(wanted) - 1)]
        found.append(start + np.flatnonzero(nearest == some))
    return np.concatenate(found)


def as_float_matrix(distances: npt.ArrayLike | torch.Tensor) -> Floats | Doubles:
    """Return distances as a float32 or float64 array, copied only where they are neither or on another device."""
    block = distances.detach().cpu().numpy() if isinstance(distances, torch.Tensor) else np.asarray(distances)
    return block if block.dtype in (np.float32, np.float64) else block.astype(np.float64)


def _in_threads(work: Callable[[range], None], count: int) -> None:
    """Call `work` with ranges that cover `count` rows; NumPy's comparisons release the interpreter lock."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        work(range(count))
        return
    edges = np.linspace(0, count, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, range(a, b)) for a, b in itertools.pairwise(edges)]:
            future.result()
