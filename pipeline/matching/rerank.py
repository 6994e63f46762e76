"""Re-ranking by exact, sparse k-reciprocal encoding for any symmetric distance; query expansion.

Zhong et al., Re-ranking person re-identification with k-reciprocal encoding, CVPR 2017. The published code holds
several dense (Q+G) x (Q+G) matrices and loops over them in Python; here every image keeps its k1 + 1 nearest
neighbours, reciprocity is an element-wise product of two sparse matrices, the expansion a sparse product, and the
Jaccard distance uses an inverted index. The result is the same.

Two details of the published code are kept, because published figures depend on them: distances are divided by the
largest one of their image first, and Euclidean distances are squared (cosine distances are half a squared distance).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from pipeline.config import SUMMING_RULES
from pipeline.errors import ConfigError
from pipeline.formats.features import Features
from pipeline.matching.distance import (
    SHRUNK,
    MatchingRule,
    distances,
    paired_distances,
    prepare,
    visibility_weights,
)
from pipeline.matching.nearest import Nearest

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_BLOCK_NUMBERS = 2**23
"""Distances held at a time (32 MB)."""

_TILE = 1536
"""Side of a block of the matrix of all pairs: products run at full speed, and a block stays in the cache."""


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """The nearest neighbours of all images.

    Attributes:
        index: (N,K) int64, nearest first, ties by order; usually the image itself comes first.
        distance: (N,K) float32.
        largest: (N,) float32 largest distance of each image to any.
    """

    index: Ints
    distance: Floats
    largest: Floats


def k_reciprocal(
    query: Features,
    gallery: Features,
    *,
    rule: MatchingRule = SHRUNK,
    device: torch.device | str = "cpu",
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> Floats:
    """Re-rank the gallery (G) for each query (Q), never holding more than the (Q,G) result and a block.

    Of each image `k1` neighbours decide its encoding, and the encodings of `k2` (1: none) are averaged; `lambda_value`
    is the weight of the original, normalised distance in the result: (Q,G) float32 in [0, 1].

    Raises:
        ConfigError: The rule is not symmetric, or k1, k2 or lambda are out of range.
    """
    if not rule.symmetric:
        raise ConfigError(
            f"re-ranking needs a symmetric distance, and the rule {rule.name!r} is not",
            expected="shrunk | mean | sum | all",
        )
    side = prepare(query, rule, is_query=True, device=device).concat(
        prepare(gallery, rule, is_query=True, device=device)
    )
    # Only a Euclidean distance is squared: a cosine distance is half the square of one.
    square = rule.metric == "euclidean"

    def between(rows: slice, columns: slice) -> Floats:
        block = distances(side[rows], side[columns])
        found: Floats = (block.square_() if square else block).cpu().numpy()
        return found

    def of_pairs(left: Ints, right: Ints) -> Floats:
        out = np.empty(len(left), dtype=np.float32)
        step = max(1, _BLOCK_NUMBERS // max(1, side.units.shape[1]))
        for start in range(0, len(left), step):
            rows = slice(start, start + step)
            found = paired_distances(side.take(left[rows]), side.take(right[rows]))
            out[rows] = (found.square_() if square else found).cpu().numpy()
        return out

    return re_rank(len(query), len(side), between, of_pairs, k1=k1, k2=k2, lambda_value=lambda_value)


def re_rank(
    num_query: int,
    total: int,
    between: Callable[[slice, slice], Floats],
    of_pairs: Callable[[Ints, Ints], Floats],
    *,
    k1: int,
    k2: int,
    lambda_value: float,
) -> Floats:
    """Re-rank by squared distances of Q + G images, queries first: `between` ranges of rows, and `of_pairs`.

    See `k_reciprocal` for the other arguments, the result and errors.
    """
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise ConfigError(
            f"k1 = {k1}, k2 = {k2}, lambda = {lambda_value}", expected="k1 and k2 at least 1, lambda in [0, 1]"
        )
    original, near = _neighbours(num_query, total, between, min(max(k1 + 1, k2), total))
    encoding = _encode(near, of_pairs, k1)
    if k2 > 1:
        members = near.index[:, :k2]
        averaging = sparse.csr_array(
            (
                np.full(members.size, 1 / members.shape[1], dtype=np.float32),
                members.ravel(),
                np.arange(0, members.size + 1, members.shape[1]),
            ),
            shape=(total, total),
        )
        encoding = averaging @ encoding
    original /= near.largest[:num_query, None]
    return _mix_in_jaccard(original, encoding, num_query, lambda_value)


def _neighbours(
    num_query: int, total: int, between: Callable[[slice, slice], Floats], count: int
) -> tuple[Floats, _Neighbours]:
    """Compute the distances of queries to the gallery and all nearest neighbours, from one triangle of blocks."""
    starts = range(0, total, _TILE)
    nearest = Nearest(total, count)
    largest = np.zeros(total, dtype=np.float32)
    original = np.empty((num_query, total - num_query), dtype=np.float32)
    for a in starts:
        for b in starts[a // _TILE :]:
            rows, columns = slice(a, min(a + _TILE, total)), slice(b, min(b + _TILE, total))
            block = between(rows, columns)
            nearest.offer(block, first_row=a, first_column=b)
            np.maximum(largest[rows], block.max(axis=1), out=largest[rows])
            if b > a:
                # The matrix is symmetric: the same products serve the images of the columns.
                nearest.offer_columns(block, first_row=b, first_column=a)
                np.maximum(largest[columns], block.max(axis=0), out=largest[columns])
            _place(original, block, rows, columns, num_query)
    # All distances of an image may be 0 (equal images); they stay 0 instead of becoming 0 / 0.
    return original, _Neighbours(*nearest.result(), np.where(largest > 0, largest, np.float32(1)))


def _place(original: Floats, block: Floats, rows: slice, columns: slice, num_query: int) -> None:
    """Copy the distances of queries to gallery images from a block."""
    last_row = min(rows.stop, num_query)
    first_column = max(columns.start, num_query)
    if rows.start < last_row and first_column < columns.stop:
        original[rows.start : last_row, first_column - num_query : columns.stop - num_query] = block[
            : last_row - rows.start, first_column - columns.start :
        ]


def _encode(near: _Neighbours, of_pairs: Callable[[Ints, Ints], Floats], k1: int) -> sparse.csr_array:
    """Return the weights of each image over its expanded k-reciprocal neighbours, (N,N), rows adding up to 1."""
    total = len(near.index)
    reciprocal = _reciprocal(near.index[:, : k1 + 1], total)
    # NumPy rounds halves to even, as the published code does.
    narrow = _reciprocal(near.index[:, : int(np.around(k1 / 2)) + 1], total)
    # How many narrow neighbours of a candidate are ours; above two thirds they join.
    common = (reciprocal @ narrow.T).multiply(reciprocal).tocsr()
    sizes = np.diff(narrow.indptr)
    common.data = (common.data > 2 / 3 * sizes[common.indices]).astype(np.float32)
    common.eliminate_zeros()
    expanded = (reciprocal + common @ narrow).tocsr()
    expanded.sort_indices()

    row = np.repeat(np.arange(total), np.diff(expanded.indptr))
    column = expanded.indices.astype(np.int64)
    weight = np.exp(-_known_or_computed(near, row, column, of_pairs) / near.largest[row])
    # A row is empty where an image is not among its own nearest (more equal images than neighbours).
    sums = np.bincount(row, weights=weight, minlength=total)
    return sparse.csr_array(
        ((weight / sums[row]).astype(np.float32), expanded.indices, expanded.indptr),
        shape=(total, total),
    )


def _reciprocal(index: Ints, total: int) -> sparse.csr_array:
    """Return (N,N), 1 where two images are among each other's nearest."""
    forward = sparse.csr_array(
        (
            np.ones(index.size, dtype=np.float32),
            index.ravel(),
            np.arange(0, index.size + 1, index.shape[1]),
        ),
        shape=(total, total),
    )
    return forward.multiply(forward.T).tocsr()


def _known_or_computed(near: _Neighbours, row: Ints, column: Ints, of_pairs: Callable[[Ints, Ints], Floats]) -> Floats:
    """Return distances of pairs, from the neighbour lists where they contain them, else computed."""
    total = len(near.index)
    keys = (np.arange(total)[:, None] * total + near.index).ravel()
    order = np.argsort(keys)
    wanted = row * total + column
    position = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    found = keys[order[position]] == wanted
    out = np.empty(len(wanted), dtype=np.float32)
    out[found] = near.distance.ravel()[order[position[found]]]
    missing = np.flatnonzero(~found)
    out[missing] = of_pairs(row[missing], column[missing])
    return out


def _mix_in_jaccard(original: Floats, encoding: sparse.csr_array, num_query: int, lambda_value: float) -> Floats:
    """Write lambda original + (1 - lambda) Jaccard distance into `original`."""
    total = encoding.shape[0]
    columns = encoding.tocsc()
    for query in range(num_query):
        own = slice(encoding.indptr[query], encoding.indptr[query + 1])
        support, weight = encoding.indices[own], encoding.data[own]
        begin, end = columns.indptr[support], columns.indptr[support + 1]
        sizes = end - begin
        # All entries of the support's columns, list after list: the inverted index.
        position = np.arange(sizes.sum()) + np.repeat(begin - np.concatenate([[0], np.cumsum(sizes[:-1])]), sizes)
        smaller = np.minimum(np.repeat(weight, sizes), columns.data[position])
        overlap = np.bincount(columns.indices[position], weights=smaller, minlength=total)[num_query:]
        # |a intersect b| / |a union b| with both adding up to 1.
        jaccard = 1 - overlap / (2 - overlap)
        original[query] = lambda_value * original[query] + (1 - lambda_value) * jaccard
    return original


def expand_queries(
    query: Features,
    gallery: Features,
    *,
    rule: MatchingRule = SHRUNK,
    device: torch.device | str = "cpu",
    k: int = 5,
) -> Features:
    """Expand queries part by part: each part of a query moves towards that part of its nearest gallery images.

    Each of the k neighbours contributes to a part by its visibility there, with its similarity as weight; a hidden
    part of the query is not changed, since the neighbours may be other identities.

    Raises:
        ConfigError: The rule is one of `SUMMING_RULES`.
    """
    if rule.name in SUMMING_RULES:
        raise ConfigError(
            f"query expansion weights neighbours by 1 - distance, which rule {rule.name!r} does not allow",
            where="matching.query_expansion",
            expected="matching.rule shrunk, mean or all",
        )
    right = prepare(gallery, rule, is_query=False, device=device)
    left = prepare(query, rule, is_query=True, device=device)
    k = min(k, len(gallery))
    step = max(1, _BLOCK_NUMBERS // max(1, len(gallery)))
    nearest = [
        torch.topk(distances(left[start : start + step], right), k, largest=False)
        for start in range(0, len(query), step)
    ]
    index = torch.cat([found.indices for found in nearest])
    weight = (1 - torch.cat([found.values for found in nearest])).clamp_min(0)

    parts, unit_parts = (_unit(side.parts, device) for side in (query, gallery))
    global_feature, unit_global = (_unit(side.global_feature, device) for side in (query, gallery))
    visible, gallery_visible = (
        torch.from_numpy(visibility_weights(side.visibility, side.thresholds, rule.visibility)).to(device)
        for side in (query, gallery)
    )
    for column in range(k):
        neighbour = index[:, column]
        shown = visible * gallery_visible[neighbour] * weight[:, column, None]
        parts = parts + shown[:, :, None] * unit_parts[neighbour]
        global_feature = global_feature + weight[:, column, None] * unit_global[neighbour]
    return replace(query, parts=parts.cpu().numpy(), global_feature=global_feature.cpu().numpy())


def _unit(array: Floats, device: torch.device | str) -> Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(array).to(device), dim=-1)
