"""Faster, inexact search in large galleries: candidates from a FAISS index, then exact shared-part distances.

Needs the extra `faiss`. No single vector has the shared-part distance as its distance, because the divisor depends on
the pair. The visibility-weighted concatenation scaled to unit length comes near: the product of two of them is the
numerator over the root of the product of each side's own weight, where the rule has the shared weight. So the index
only proposes candidates, and the exact distance decides; `measure_recall` returns how many were found.

The lists of the inverted file are learned from the global feature alone, where it joins every distance. Images of one
identity with different visible parts are far apart in the concatenation, and more lists would have to be probed; the
global feature exists in every image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError, FormatError
from pipeline.formats.feature_file import FeatureFile
from pipeline.formats.features import Features, as_slice
from pipeline.matching.distance import SHRUNK, MatchingRule, Prepared, candidate_distances, prepare
from pipeline.matching.search import Neighbours, block_rows

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_SUB = 4
"""Dimensions that one code of four bits encodes."""

_ROWS_PER_LIST = 40
"""Rows that a list is learned from, at least."""


@dataclass(frozen=True, slots=True)
class CandidateIndex:
    """An inverted file over a gallery.

    Attributes:
        index: The FAISS index.
        gallery: Memory-mapped features, of which exact distances are computed.
        rows: (N,) rows of the features file.
        rule: The matching rule that it approximates.
        dims: Dimension of each feature that the rule uses; queries must have the same.
        probes: Lists that a search probes by default.
    """

    index: Any
    gallery: Features
    rows: Ints
    rule: MatchingRule
    dims: tuple[int, ...]
    probes: int

    def search(self, query: Features, k: int, *, candidates: int = 200, probes: int | None = None) -> Neighbours:
        """Find the k nearest among the candidates, by exact distance.

        More candidates per query and more lists to probe (None: the index's own `probes`) cost time and raise the
        recall. Where fewer than k were proposed, rows are -1 and distances infinite.

        Raises:
            FormatError: The query has features of other dimensions than the gallery.
        """
        left = prepare(query, self.rule, is_query=True)
        if _dims(left) != self.dims:
            raise FormatError(
                f"query features have dimensions {_dims(left)}, the gallery of the index has {self.dims}",
                hint="extract both with the same checkpoint",
            )
        self.index.nprobe = probes or self.probes
        # For very few, FAISS's register scan (1.15) sometimes returns none at all.
        _, proposed = self.index.search(_unit(left), max(candidates, 64))
        proposed = np.sort(proposed[:, :candidates], axis=1)
        width = proposed.shape[1]
        rows = np.full((len(query), k), -1, dtype=np.int64)
        found = np.full((len(query), k), np.inf, dtype=np.float32)
        step = max(1, block_rows(self.gallery, 1) // width)
        for start in range(0, len(query), step):
            block = proposed[start : start + step]
            right = prepare(self.gallery.select(np.maximum(block, 0).ravel()), self.rule, is_query=False)
            exact = candidate_distances(left[start : start + step], right).numpy()
            exact[block < 0] = np.inf
            # Rows ascend, so a stable sort resolves ties to the smaller one.
            order = np.argsort(exact, axis=1, kind="stable")[:, :k]
            rows[start : start + step, : order.shape[1]] = np.take_along_axis(block, order, axis=1)
            found[start : start + step, : order.shape[1]] = np.take_along_axis(exact, order, axis=1)
        return Neighbours(np.where(rows >= 0, self.rows[rows], -1), found)


def build_index(
    gallery: FeatureFile,
    *,
    rule: MatchingRule = SHRUNK,
    rows: Ints | None = None,
    lists: int | None = None,
    training_rows: int = 100_000,
    seed: int = 0,
) -> CandidateIndex:
    """Build an inverted file over rows of a features file.

    The index holds four dimensions of a vector in half a byte (product quantisation, scanned in registers): 1/32 of the
    memory of the features. Such a coarse code is good enough to propose a few hundred candidates.

    Args:
        gallery: The features.
        rule: The matching rule to approximate: `shrunk` or `mean` (cosine).
        rows: Ascending rows of the file to search; None: all.
        lists: Lists of the inverted file, each learned from at least 40 rows. None: twice the root of the number of
            rows, or fewer where the training rows do not suffice.
        training_rows: Rows, spread over the file, that lists and codes are learned from.
        seed: Seed of that learning.

    Raises:
        ConfigError: FAISS is not installed, the rule cannot be approximated, or `lists` needs more training rows.
    """
    try:
        import faiss  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ConfigError("approximate search needs FAISS", hint="pip install 'sgsfa[faiss]'") from None
    if rule.name not in ("shrunk", "mean") or rule.metric != "cosine":
        raise ConfigError(
            f"rule {rule.name!r} with {rule.metric} distance cannot be approximated",
            expected="shrunk or mean with cosine distance",
        )
    chosen = gallery.rows if rows is None else rows
    mapped = gallery.mapped().select(as_slice(chosen))
    total = len(mapped)
    some = np.unique(np.linspace(0, total - 1, min(training_rows, total)).astype(np.int64))
    most = max(1, len(some) // _ROWS_PER_LIST)
    count = min(round(2 * math.sqrt(total)), most) if lists is None else lists
    if not 1 <= count <= most:
        raise ConfigError(
            f"{count} lists cannot be learned from {len(some):,} rows",
            where="lists",
            expected=f"1 to {most:,}: {_ROWS_PER_LIST} rows for each",
            hint="use fewer lists or, in a larger gallery, more training_rows",
        )
    training = prepare(mapped.select(some), rule, is_query=False)
    sample = _unit(training)
    dimensions = sample.shape[1]
    width = sum(training.dims)
    # Of the concatenation, which is padded, the global feature is the last one.
    columns = slice(width - training.dims[-1], width) if training.global_joins else slice(0, dimensions)
    quantizer = _quantizer(faiss, sample, columns, count, seed)
    index: Any = faiss.IndexIVFPQFastScan(
        quantizer, dimensions, count, dimensions // _SUB, 4, faiss.METRIC_INNER_PRODUCT
    )
    _own(index, quantizer)
    # Codes of the vectors themselves: products with residuals would need a correction for each list.
    index.by_residual = False
    index.pq.cp.seed = seed
    index.pq.cp.niter = 8
    index.train(sample)
    for _, block in gallery.blocks(block_rows(gallery, 1), chosen, reuse=True):
        index.add(_unit(prepare(block, rule, is_query=False)))
    # Images of one identity lie in fewer lists where hidden parts do not decide the list.
    probes = max(1, count * 2 // 5 if training.global_joins else count // 2)
    return CandidateIndex(index, mapped, chosen, rule, _dims(training), probes)


def measure_recall(approximate: Neighbours, exact: Neighbours) -> float:
    """Return the share of the exact neighbours (Q,k) that the approximate search found."""
    found = [np.isin(right, left).mean() for left, right in zip(approximate.rows, exact.rows, strict=True)]
    return float(np.mean(found))


def _dims(side: Prepared) -> tuple[int, ...]:
    """Return the dimensions of all features that a distance may need, the global one's as a fallback among them."""
    return side.dims if side.global_feature is None else (*side.dims, side.global_feature.shape[1])


def _quantizer(faiss: Any, sample: Floats, columns: slice, count: int, seed: int) -> Any:
    """Return what assigns a vector to a list: the nearest of `count` centres, by direction, of some of its columns."""
    wanted = np.ascontiguousarray(sample[:, columns])
    width, dimensions = wanted.shape[1], sample.shape[1]
    clusters = faiss.Kmeans(width, count, niter=6, spherical=True, seed=seed, max_points_per_centroid=len(sample))
    clusters.train(wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12))
    centres = faiss.IndexFlatIP(width)
    centres.add(clusters.centroids)
    if width == dimensions:
        return centres
    pick = faiss.LinearTransform(dimensions, width, False)
    faiss.copy_array_to_vector(np.eye(dimensions, dtype=np.float32)[columns].ravel(), pick.A)
    pick.is_trained = True
    quantizer = faiss.IndexPreTransform(pick, centres)
    _own(quantizer, pick, centres)
    return quantizer


def _own(owner: Any, *parts: Any) -> None:
    """Let one FAISS object free others with itself; Python would free them too early."""
    owner.own_fields = True
    for part in parts:
        part.this.disown()


def _unit(side: Prepared) -> Floats:
    """Return the concatenation scaled to length 1, padded to a multiple of 4, as the index codes it."""
    units = torch.nn.functional.normalize(side.units, dim=1)
    padded: Floats = torch.nn.functional.pad(units, (0, -units.shape[1] % _SUB)).numpy()
    return np.ascontiguousarray(padded)
