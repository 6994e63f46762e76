"""What every part contributes to the distance of a pair: the terms of the matching rule, which add up to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import FormatError
from pipeline.formats.features import Features
from pipeline.matching.distance import BEHIND, NOTHING_SHARED, SHRUNK, MatchingRule, visibility_weights

Doubles = npt.NDArray[np.float64]

GLOBAL = "global"
NO_SHARED_PART = "no shared part"


@dataclass(frozen=True, slots=True)
class Contributions:
    """The terms of N distances: `(weights * distances).sum(axis=1)` is what `paired_distances` returns.

    Attributes:
        distances: (N,P+2) distance of each part, of the global feature, and the constant that a pair without a shared
            part gets; 0 where the feature is missing.
        weights: (N,P+2) weight of each in the distance, 0 where it does not count.
    """

    distances: Doubles
    weights: Doubles

    @property
    def totals(self) -> Doubles:
        """(N,) distances of the pairs."""
        return np.asarray((self.distances * self.weights).sum(axis=1))

    @property
    def shares(self) -> Doubles:
        """(N,P+2) share of each term in the distance; 0 where the distance is 0."""
        totals = self.totals[:, None]
        return np.divide(self.distances * self.weights, totals, out=np.zeros_like(self.weights), where=totals > 0)


def contributions(query: Features, gallery: Features, rule: MatchingRule = SHRUNK) -> Contributions:
    """Split the distance of query i and gallery image i into its terms, for N pairs.

    Raises:
        FormatError: The two differ in number or in dimensions.
    """
    if query.parts.shape != gallery.parts.shape or query.global_feature.shape != gallery.global_feature.shape:
        raise FormatError(
            f"features of shapes {query.parts.shape} and {gallery.parts.shape}, {query.global_feature.shape} and "
            f"{gallery.global_feature.shape} cannot be compared in pairs"
        )
    columns = [
        _paired(query.parts, gallery.parts, rule),
        _paired(query.global_feature, gallery.global_feature, rule)[:, None],
        np.full((len(query), 1), NOTHING_SHARED),
    ]
    weights = _part_weights(query, gallery, rule)
    total = weights.sum(axis=1, keepdims=True)
    has_global = rule.global_term and query.global_dim > 0
    global_weight, none_weight = np.zeros_like(total), np.zeros_like(total)
    joins = has_global and rule.name == "shrunk" and rule.shrink > 0
    if joins:
        total = total + rule.shrink
        global_weight[:] = rule.shrink / total
    if rule.name not in ("sum", "query"):
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    empty = total == 0
    if has_global:
        if rule.name != "sum" or query.part_dim == 0:
            global_weight[empty] = 1
        columns[-1][:] = BEHIND
        if rule.name in ("mean", "shrunk") and query.part_dim > 0:
            none_weight[empty] = 1
    elif rule.name != "sum":
        none_weight[empty] = 1
    return Contributions(np.concatenate(columns, axis=1), np.concatenate([weights, global_weight, none_weight], axis=1))


def _part_weights(query: Features, gallery: Features, rule: MatchingRule) -> Doubles:
    """Return (N,P) weights before any normalisation."""
    left, right = (
        visibility_weights(side.visibility, side.thresholds, rule.visibility).astype(np.float64)
        for side in (query, gallery)
    )
    if query.part_dim == 0:
        return np.zeros_like(left)
    if rule.name == "all":
        return np.ones_like(left)
    return left if rule.name == "query" else left * right


def _paired(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32], rule: MatchingRule) -> Doubles:
    """Return the distances along the last axis; 0 for features of dimension 0."""
    if left.shape[-1] == 0:
        return np.zeros(left.shape[:-1])
    a, b = left.astype(np.float64), right.astype(np.float64)
    # The norm of a zero vector is replaced, so that its cosine with anything is 0.
    norms = np.maximum(np.linalg.norm(a, axis=-1), 1e-12) * np.maximum(np.linalg.norm(b, axis=-1), 1e-12)
    cosine = (a * b).sum(axis=-1) / norms
    return np.asarray(np.maximum(1 - cosine, 0) if rule.metric == "cosine" else np.sqrt(np.maximum(2 - 2 * cosine, 0)))
