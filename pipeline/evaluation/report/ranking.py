"""One pass over all distances of a test set: nearest images, best matches, and how genuine and impostor pairs lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.formats.features import Features
from pipeline.matching.distance import NOTHING_SHARED, MatchingRule, distance_blocks

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

BINS = 4096
"""Bins of the distance histograms; thresholds are exact to one of them."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of distances in `BINS` equal bins from 0 to `upper`; larger distances count in the last bin."""

    upper: float
    genuine: Ints
    impostor: Ints

    def threshold(self, false_positive_rate: float) -> float:
        """Return the largest threshold whose false positive rate does not exceed the one asked for."""
        accepted = np.cumsum(self.impostor) / max(1, self.impostor.sum())
        return self.upper * int(np.searchsorted(accepted, false_positive_rate, side="right")) / BINS

    def true_positive_rate(self, threshold: float) -> float:
        """Return the share of genuine pairs below a threshold."""
        below = self.genuine[: round(threshold / self.upper * BINS)]
        return float(below.sum() / max(1, self.genuine.sum()))


@dataclass(frozen=True, slots=True)
class Rankings:
    """The rankings of Q queries, images of the query's own identity and camera left out.

    Attributes:
        nearest: (Q,K) gallery rows, nearest first.
        distances: (Q,K) their distances.
        best_match: (Q,) the nearest gallery row of the same identity in another camera; -1 without one.
        histogram: Distances of genuine and impostor pairs.
    """

    nearest: Ints
    distances: Floats
    best_match: Ints
    histogram: Histogram


def rankings(
    query: Features, gallery: Features, rule: MatchingRule, *, device: torch.device | str = "cpu", k: int = 10
) -> Rankings:
    """Rank the gallery for every query, both with identities, and keep the `k` nearest images."""
    k = min(k, len(gallery))
    upper = 2.0 * len(query.thresholds) if rule.name in ("sum", "query") else NOTHING_SHARED + 1.0
    gallery_pids, gallery_camids = torch.from_numpy(gallery.pids), torch.from_numpy(gallery.camids)
    nearest, distances, matches = [], [], []
    genuine, impostor = torch.zeros(BINS, dtype=torch.int64), torch.zeros(BINS, dtype=torch.int64)
    start = 0
    for block in distance_blocks(query, gallery, rule=rule, device=device):
        values, rows = block.cpu(), slice(start, start + len(block))
        start = rows.stop
        same = torch.from_numpy(query.pids[rows])[:, None] == gallery_pids
        junk = same & (torch.from_numpy(query.camids[rows])[:, None] == gallery_camids)
        bins = (values * (BINS / upper)).long().clamp_(0, BINS - 1)
        genuine += torch.bincount(bins[same & ~junk], minlength=BINS)
        impostor += torch.bincount(bins[~same], minlength=BINS)
        values = values.masked_fill(junk, torch.inf)
        found = torch.topk(values, k, dim=1, largest=False, sorted=True)
        nearest.append(found.indices)
        distances.append(found.values)
        match = values.masked_fill(~same, torch.inf).min(dim=1)
        matches.append(torch.where(match.values.isfinite(), match.indices, -1))
    return Rankings(
        nearest=torch.cat(nearest).numpy(),
        distances=torch.cat(distances).numpy(),
        best_match=torch.cat(matches).numpy(),
        histogram=Histogram(upper, genuine.numpy(), impostor.numpy()),
    )
