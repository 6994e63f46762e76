"""Faster, inexact search in large galleries: candidates from a FAISS index, then exact shared-part distances.

Needs the extra `faiss`. No single vector has the shared-part distance as its distance, because the divisor depends on
the pair. The visibility-weighted concatenation scaled to unit length comes near: the product of two of them is the
numerator over the root of the product of each side's own weight, where the rule has the shared weight. So the index
only proposes, `candidates` of them a query, and the exact distance decides; `measure_recall` tells how often the
right ones were among those proposed.

The lists of the inverted file are learned from the global feature alone, where it takes part in the distance.
Images of one person whose visible parts differ are far apart in the concatenation, and more lists would have to be
looked through; the global feature is there in every image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError, FormatError
from pipeline.formats.features import FeatureFile, FeatureRows, MappedRows
from pipeline.matching.distance import (
    SHRUNK,
    PartSet,
    Prepared,
    Rule,
    VisibilityKind,
    candidate_distances,
    part_set,
    prepare,
)
from pipeline.matching.search import Hits, block_rows

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_SUB = 4
"""Numbers that one code of four bits stands for."""

_EACH = 40
"""Rows that a list is learned from, at least."""


@dataclass(frozen=True, slots=True)
class CandidateIndex:
    """An inverted file over the gallery.

    Attributes:
        index: The FAISS index.
        gallery: The features it was built from.
        rows: Their arrays; exact distances are computed from them.
        rule: The rule that it approximates.
        visibility: How mask means become visibility.
        lengths: Length of each feature that the rule uses; queries must have the same.
        probes: Lists that a search looks through unless told otherwise: two of five where they are learned from the
            global feature, else half of them.
    """

    index: Any
    gallery: FeatureFile
    rows: MappedRows
    rule: Rule
    visibility: VisibilityKind
    lengths: tuple[int, ...]
    probes: int

    def search(self, query: PartSet, k: int, *, candidates: int = 200, probes: int | None = None) -> Hits:
        """The k nearest among the candidates, by exact distance.

        Args:
            query: (Q) features on the CPU.
            k: How many.
            candidates: Proposed a query; more cost time and find more.
            probes: Lists of the inverted file that are looked through; None: the index's own `probes`.

        Returns:
            Hits; where fewer than k were proposed, rows are -1 and distances infinite.

        Raises:
            FormatError: The query has features of other lengths than the gallery.
        """
        left = prepare(query, self.rule, is_query=True)
        if _lengths(left) != self.lengths:
            raise FormatError(
                f"query features have lengths {_lengths(left)}, the index's gallery has {self.lengths}",
                hint="extract both with the same checkpoint",
            )
        self.index.nprobe = probes or self.probes
        # Asked for very few, FAISS's register scan (seen in 1.15) now and then returns none at all.
        _, proposed = self.index.search(_unit(left), max(candidates, 64))
        proposed = np.sort(proposed[:, :candidates], axis=1)
        width = proposed.shape[1]
        rows = np.full((len(query), k), -1, dtype=np.int64)
        found = np.full((len(query), k), np.inf, dtype=np.float32)
        step = max(1, block_rows(self.gallery, 1) // width)
        for start in range(0, len(query), step):
            block = proposed[start : start + step]
            raw = self.rows.at(np.maximum(block, 0).ravel())
            right = _prepared(raw, self.gallery, self.rule, self.visibility)
            exact = candidate_distances(left[start : start + step], right, self.rule).numpy()
            exact[block < 0] = np.inf
            # Rows ascend, so a stable sort gives ties to the smaller one.
            order = np.argsort(exact, axis=1, kind="stable")[:, :k]
            rows[start : start + step, : order.shape[1]] = np.take_along_axis(block, order, axis=1)
            found[start : start + step, : order.shape[1]] = np.take_along_axis(exact, order, axis=1)
        return Hits(rows, found)


def build_index(
    gallery: FeatureFile,
    *,
    rule: Rule = SHRUNK,
    visibility: VisibilityKind = "hard",
    lists: int | None = None,
    training_rows: int = 100_000,
    seed: int = 0,
) -> CandidateIndex:
    """Build an inverted file over all rows of a features file.

    The index holds four numbers of a vector in half a byte (product quantisation, scanned in registers): a 32nd of the
    features' memory. So coarse a code is good enough for proposing a few hundred candidates.

    Args:
        gallery: The features.
        rule: The rule to approximate: `shrunk` or `mean` (cosine).
        visibility: How mask means become visibility.
        lists: Lists of the inverted file; each is learned from 40 rows or more. None: twice the root of the number of
            rows, or as many as the training rows suffice for where those are fewer.
        training_rows: Rows, spread over the file, that lists and codes are learned from.
        seed: Seed of that learning.

    Raises:
        ConfigError: FAISS is not installed, the rule is another, or the training rows are too few for `lists`.
    """
    try:
        import faiss  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ConfigError("approximate search needs FAISS", hint="pip install faiss-cpu") from None
    if rule.name not in ("shrunk", "mean") or rule.metric != "cosine":
        raise ConfigError(
            f"the rule {rule.name!r} with {rule.metric} distance cannot be approximated",
            expected="shrunk or mean, cosine",
        )
    mapped = gallery.mapped()
    some = np.unique(np.linspace(0, gallery.done - 1, min(training_rows, gallery.done)).astype(np.int64))
    count = _count_lists(lists, gallery.done, len(some))
    learned_from = _prepared(mapped.at(some), gallery, rule, visibility)
    sample = _unit(learned_from)
    dimensions = sample.shape[1]
    by_global = _global_takes_part(learned_from)
    told_by = _whole_body(learned_from) if by_global else slice(0, dimensions)
    quantizer = _quantizer(faiss, sample, told_by, count, seed)
    index: Any = faiss.IndexIVFPQFastScan(
        quantizer, dimensions, count, dimensions // _SUB, 4, faiss.METRIC_INNER_PRODUCT
    )
    _hand_over(index, quantizer)
    # Codes of the vectors themselves: products with residuals would have to be corrected list by list.
    index.by_residual = False
    index.pq.cp.seed = seed
    index.pq.cp.niter = 8
    index.train(sample)
    for block in gallery.blocks(block_rows(gallery, 1), reuse=True):
        index.add(_unit(_prepared(block, gallery, rule, visibility)))
    # Images of one person lie in fewer lists where what is hidden has no say in it.
    probes = max(1, count * 2 // 5 if by_global else count // 2)
    return CandidateIndex(index, gallery, mapped, rule, visibility, _lengths(learned_from), probes)


def measure_recall(approximate: Hits, exact: Hits) -> float:
    """Share of the exact hits that the approximate search found, (Q,k) against (Q,k)."""
    found = [np.isin(right, left).mean() for left, right in zip(approximate.rows, exact.rows, strict=True)]
    return float(np.mean(found))


def _prepared(raw: FeatureRows, gallery: FeatureFile, rule: Rule, visibility: VisibilityKind) -> Prepared:
    return prepare(part_set(raw, gallery.thresholds, visibility), rule, is_query=False)


def _lengths(side: Prepared) -> tuple[int, ...]:
    """Of all features that a distance may need, the whole body's among them where it decides pairs sharing nothing."""
    return side.lengths if side.global_feature is None else (*side.lengths, side.global_feature.shape[1])


def _count_lists(lists: int | None, rows: int, learned_from: int) -> int:
    """How many lists the inverted file gets. See `build_index`."""
    most = max(1, learned_from // _EACH)
    if lists is None:
        return min(round(2 * math.sqrt(rows)), most)
    if not 1 <= lists <= most:
        raise ConfigError(
            f"{lists} lists cannot be learned from {learned_from:,} rows",
            where="lists",
            expected=f"1 to {most:,}: {_EACH} rows for each",
            hint="take fewer lists, or more training_rows if the gallery has them",
        )
    return lists


def _global_takes_part(side: Prepared) -> bool:
    """Whether the global feature is part of every distance."""
    return len(side.lengths) > side.num_parts


def _whole_body(side: Prepared) -> slice:
    """Where the global feature stands in the concatenation."""
    stop = sum(side.lengths)
    return slice(stop - side.lengths[-1], stop)


def _quantizer(faiss: Any, sample: Floats, told_by: slice, count: int, seed: int) -> Any:
    """What gives a vector its list: the nearest of `count` centres, by direction, of some of its numbers."""
    wanted = np.ascontiguousarray(sample[:, told_by])
    width, dimensions = wanted.shape[1], sample.shape[1]
    clusters = faiss.Kmeans(width, count, niter=6, spherical=True, seed=seed, max_points_per_centroid=len(sample))
    clusters.train(wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12))
    centres = faiss.IndexFlatIP(width)
    centres.add(clusters.centroids)
    if width == dimensions:
        return centres
    pick = faiss.LinearTransform(dimensions, width, False)
    faiss.copy_array_to_vector(np.eye(dimensions, dtype=np.float32)[told_by].ravel(), pick.A)
    pick.is_trained = True
    quantizer = faiss.IndexPreTransform(pick, centres)
    _hand_over(quantizer, pick, centres)
    return quantizer


def _hand_over(owner: Any, *parts: Any) -> None:
    """Let one FAISS object free others with itself; Python would free them too early."""
    owner.own_fields = True
    for part in parts:
        part.this.disown()


def _unit(side: Prepared) -> Floats:
    """The concatenation scaled to length 1, with zeros up to a multiple of 4, in which the index codes it."""
    units = torch.nn.functional.normalize(side.units, dim=1)
    padded: Floats = torch.nn.functional.pad(units, (0, -units.shape[1] % _SUB)).numpy()
    return np.ascontiguousarray(padded)
