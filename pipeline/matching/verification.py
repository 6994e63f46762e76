"""Verification of pairs: true positive rate at a fixed false positive rate, and AUC.

A genuine pair (same identity, other camera) is a positive, its score is minus the distance. Pairs of the same
identity and camera are left out, as in ranking.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import DataError
from pipeline.formats.results import Verification
from pipeline.matching.metrics import PositivesAndJunk, as_float_matrix

Doubles = npt.NDArray[np.float64]


class VerificationStream:
    """Verification rates, at chosen false positive rates, from blocks of distances in query order.

    Only the genuine distances and the smallest share of the others are kept, so memory stays small; `auc` (the area
    under the curve) keeps all, for matrices that fit into memory.
    """

    def __init__(
        self, related: PositivesAndJunk, rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2), *, auc: bool = False
    ) -> None:
        self._related = related
        self._rates = tuple(sorted(rates))
        self._impostors = related.num_queries * related.num_gallery - len(related.entry)
        self._allowed = [int(np.floor(rate * self._impostors + 1e-9)) for rate in self._rates]
        self._keep = self._impostors if auc else min(self._impostors, max(self._allowed, default=0) + 1)
        self._auc = auc
        self._genuine: list[Doubles] = []
        self._smallest: Doubles = np.empty(0)
        self._pending: list[Doubles] = []
        self._fed = 0

    def update(self, distances: npt.ArrayLike | torch.Tensor) -> None:
        """Add the distances (B,G) of the next B queries.

        Raises:
            DataError: A distance is NaN.
        """
        block = as_float_matrix(distances)
        if np.isnan(block.min(initial=np.inf)):
            raise DataError("a distance is not a number", hint="the features contain NaN; extract them again")
        related = self._related
        pairs = slice(related.start[self._fed], related.start[self._fed + len(block)])
        own = np.zeros(block.shape, dtype=np.bool_)
        own[related.query[pairs] - self._fed, related.entry[pairs]] = True
        genuine = pairs.start + np.flatnonzero(related.positive[pairs])
        self._genuine.append(block[related.query[genuine] - self._fed, related.entry[genuine]].astype(np.float64))
        others = block[~own]
        if len(self._smallest):
            # Distances larger than the largest of enough small ones are never needed.
            others = others[others <= self._smallest[-1]]
        self._pending.append(others.astype(np.float64))
        self._fed += len(block)
        if sum(map(len, self._pending)) > self._keep:
            self._merge()

    def compute(self) -> Verification:
        """Return the rates.

        Raises:
            DataError: There are no genuine or no impostor pairs.
        """
        genuine = np.sort(np.concatenate([np.empty(0), *self._genuine]))
        if not len(genuine) or self._impostors == 0:
            raise DataError(
                f"{len(genuine)} genuine and {self._impostors} impostor pairs",
                expected="at least one of each, for verification rates",
            )
        self._merge()
        smallest = self._smallest
        rates = []
        for allowed in self._allowed:
            # Accept below the first impostor too many; impostors tied with it would be accepted with it.
            limit = smallest[allowed] if allowed < len(smallest) else np.inf
            side = "left" if allowed < len(smallest) else "right"
            rates.append(float(np.searchsorted(genuine, limit, side=side) / len(genuine)))  # type: ignore[call-overload]
        auc = None
        if self._auc:
            before = np.searchsorted(smallest, genuine, side="left")
            until = np.searchsorted(smallest, genuine, side="right")
            auc = float(1 - (before + until).mean() / 2 / self._impostors)
        return Verification(self._rates, tuple(rates), auc, len(genuine), self._impostors)

    def _merge(self) -> None:
        merged = np.concatenate([self._smallest, *self._pending])
        self._pending = []
        if len(merged) > self._keep:
            merged = np.partition(merged, self._keep - 1)[: self._keep]
        self._smallest = np.sort(merged)
