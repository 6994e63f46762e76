"""Faster, inexact search in large galleries: candidates from a FAISS index, then exact shared-part distances.

Needs the extra `faiss`. No single vector has the shared-part distance as its distance, because the divisor depends on
the pair. The visibility-weighted concatenation scaled to unit length comes near: the product of two of them is the
numerator over the root of the product of each side's own weight, where the rule has the shared weight. So the index
only proposes, `candidates` of them a query, and the exact distance decides; `measure_recall` tells how often the
right ones were among those proposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError
from pipeline.matching.distance import (
    SHRUNK,
    PartSet,
    Prepared,
    Rule,
    VisibilityKind,
    distances,
    part_set,
    prepare,
)
from pipeline.matching.featurefile import FeatureFile
from pipeline.matching.search import Hits, block_rows

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CandidateIndex:
    """An inverted file over the gallery.

    Attributes:
        index: The FAISS index.
        gallery: The features it was built from; exact distances are computed from them.
        rule: The rule that it approximates.
        visibility: How mask means become visibility.
    """

    index: Any
    gallery: FeatureFile
    rule: Rule
    visibility: VisibilityKind

    def search(self, query: PartSet, k: int, *, candidates: int = 200, probes: int | None = None) -> Hits:
        """The k nearest among the candidates, by exact distance.

        Args:
            query: (Q) features on the CPU.
            k: How many.
            candidates: Proposed a query; more cost time and find more.
            probes: Lists of the inverted file that are looked through; None: half of them.

        Returns:
            Hits; where fewer than k were proposed, rows are -1 and distances infinite.
        """
        left = prepare(query, self.rule, is_query=True)
        self.index.nprobe = probes or max(1, self.index.nlist // 2)
        # Asked for very few, FAISS's register scan (seen in 1.15) now and then returns none at all.
        _, proposed = self.index.search(_unit(left), max(candidates, 64))
        proposed = proposed[:, :candidates]
        rows = np.full((len(query), k), -1, dtype=np.int64)
        found = np.full((len(query), k), np.inf, dtype=np.float32)
        step = max(1, block_rows(self.gallery, 1) // candidates)
        for start in range(0, len(query), step):
            block = [line[line >= 0] for line in proposed[start : start + step]]
            raw = self.gallery.at(np.concatenate(block), mapped=True)
            right = prepare(part_set(raw, self.gallery.thresholds, self.visibility), self.rule, is_query=False)
            edges = np.cumsum([0, *map(len, block)])
            for i, line in enumerate(block):
                own = slice(int(edges[i]), int(edges[i + 1]))
                exact = distances(left[start + i : start + i + 1], right[own], self.rule)[0].numpy()
                order = np.lexsort((line, exact))[:k]
                rows[start + i, : len(order)] = line[order]
                found[start + i, : len(order)] = exact[order]
        return Hits(rows, found)


def build_index(
    gallery: FeatureFile,
    *,
    rule: Rule = SHRUNK,
    visibility: VisibilityKind = "hard",
    lists: int | None = None,
    training_rows: int = 50_000,
    seed: int = 0,
) -> CandidateIndex:
    """Build an inverted file over all rows of a features file.

    The index holds four numbers of a vector in half a byte (product quantisation, scanned in registers): a 32nd of the
    features' memory. So coarse a code is good enough for proposing a few hundred candidates.

    Args:
        gallery: The features.
        rule: The rule to approximate: `shrunk` or `mean` (cosine).
        visibility: How mask means become visibility.
        lists: Lists of the inverted file; None: half the root of the number of rows.
        training_rows: Rows, spread over the file, that the lists are learned from.
        seed: Seed of that learning.

    Raises:
        ConfigError: FAISS is not installed, or the rule is another.
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
    rows = np.unique(np.linspace(0, gallery.done - 1, min(training_rows, gallery.done)).astype(np.int64))
    sample = _unit(
        prepare(part_set(gallery.at(rows, mapped=True), gallery.thresholds, visibility), rule, is_query=False)
    )
    dimensions = sample.shape[1]
    count = min(lists or max(1, round(gallery.done**0.5 / 2)), len(sample))
    index: Any = faiss.index_factory(dimensions, f"IVF{count},PQ{dimensions // 4}x4fs", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed
    index.cp.niter = 8
    index.train(sample)
    for block in gallery.blocks(block_rows(gallery, 1)):
        index.add(_unit(prepare(part_set(block, gallery.thresholds, visibility), rule, is_query=False)))
    return CandidateIndex(index, gallery, rule, visibility)


def measure_recall(approximate: Hits, exact: Hits) -> float:
    """Share of the exact hits that the approximate search found, (Q,k) against (Q,k)."""
    found = [np.isin(right, left).mean() for left, right in zip(approximate.rows, exact.rows, strict=True)]
    return float(np.mean(found))


def _unit(side: Prepared) -> Floats:
    """The concatenation scaled to length 1, with zeros up to a multiple of 4, in which the index codes it."""
    units = torch.nn.functional.normalize(side.units, dim=1)
    padded: Floats = torch.nn.functional.pad(units, (0, -units.shape[1] % 4)).numpy()
    return np.ascontiguousarray(padded)
