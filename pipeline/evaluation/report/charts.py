"""The charts of a report, from a result, its rankings and what the checkpoint and the training recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.report.model import Chart, Matrix, Series
from pipeline.evaluation.report.ranking import BINS, Histogram
from pipeline.formats.results import EvaluationResult, Group
from pipeline.parts import PARTS

FALSE_POSITIVE_RATES = (0.0001, 0.001, 0.01)

_SHOWN_BINS = 64
_FEWEST_EPOCHS = 2


def result_charts(result: EvaluationResult, histogram: Histogram) -> Iterator[Chart | Matrix]:
    """Yield the charts of a test set, without those that the result has no figures for."""
    cmc = Series("CMC", result.metrics.cmc, list(range(1, len(result.metrics.cmc) + 1)))
    note = "Share of queries with a match among the first k images."
    yield Chart("CMC", "line", "rank", "share of queries", [cmc], note, unit=True)
    yield distance_chart(histogram)
    if fractions := [group for group in result.breakdown if group.by == "visible fraction"]:
        yield Chart(
            "Metrics by visible fraction",
            "bar",
            "visible fraction",
            "share",
            [Series("rank-1", [each.rank1 for each in fractions]), Series("mAP", [each.mAP for each in fractions])],
            f"Visible fraction by: {result.protocol['visible_fraction']}. Number of queries in brackets.",
            labels=[f"{group.value} ({group.queries})" for group in fractions],
            unit=True,
        )
    if found := {(group.by, group.value): group.mAP for group in result.breakdown if group.by in PARTS}:
        series = [
            Series(f"{value} in the query", [found.get((part, value)) for part in PARTS])
            for value in ("visible", "hidden")
        ]
        note = "Queries in which the part is visible, and those in which it is hidden."
        yield Chart("mAP by visible part", "bar", "part", "mAP", series, note, labels=PARTS, unit=True)
    if cameras := [group for group in result.breakdown if group.by == "cameras"]:
        yield _camera_matrix(cameras)


def distance_chart(histogram: Histogram) -> Chart:
    """Return the densities of genuine and impostor distances, with the thresholds at chosen false positive rates."""
    counts = np.stack([histogram.genuine, histogram.impostor]).reshape(2, _SHOWN_BINS, BINS // _SHOWN_BINS).sum(2)
    used = int(np.flatnonzero(counts.sum(0)).max(initial=0)) + 1
    density = (counts / np.maximum(counts.sum(1, keepdims=True), 1))[:, :used].tolist()
    centres = ((np.arange(_SHOWN_BINS) + 0.5) * histogram.upper / _SHOWN_BINS)[:used].tolist()
    thresholds = [(rate, histogram.threshold(rate)) for rate in FALSE_POSITIVE_RATES]
    note = "; ".join(
        f"{100 * rate:g} % false positives below {threshold:.3f}, where "
        f"{100 * histogram.true_positive_rate(threshold):.1f} % of the genuine pairs lie"
        for rate, threshold in thresholds
    )
    series = [Series(name, y, centres) for name, y in zip(("genuine pairs", "impostor pairs"), density, strict=True)]
    return Chart("Distances", "line", "distance", "share of pairs", series, f"{note}.")


def _camera_matrix(groups: Sequence[Group]) -> Matrix:
    pairs = {tuple(group.value.split(" to ")): group.mAP for group in groups}
    rows, columns = (sorted({pair[side] for pair in pairs}, key=int) for side in (0, 1))
    values = [[pairs.get((row, column)) for column in columns] for row in rows]
    note = "Rows: camera of the query; columns: camera of the match."
    return Matrix("mAP by camera", "query", rows, columns, values, note)


def visibility_chart(figures: Mapping[str, Mapping[str, float]]) -> Chart:
    """Return how well the network judges visibility, as recorded with the checkpoint.

    Args:
        figures: Values in [0, 1] by part, for each figure's name (`ROC AUC`, `accuracy`).
    """
    series = [Series(name, [values.get(part) for part in PARTS]) for name, values in figures.items()]
    note = "Measured on unmodified and occluded training images when the checkpoint was calibrated."
    return Chart("Visibility by part", "bar", "part", ", ".join(figures), series, note, labels=PARTS, unit=True)


def training_chart(metrics: Path) -> Chart | None:
    """Return the losses by epoch from a training's `metrics.jsonl`; None without at least two epochs."""
    with metrics.open(encoding="utf-8") as lines:
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    epochs = [entry for entry in entries if entry.get("kind") == "epoch"]
    if len(epochs) < _FEWEST_EPOCHS:
        return None
    names = [name for name in ("loss", "triplet", "masks", "identity", "global_feature") if name in epochs[0]]
    x = [float(entry["epoch"]) for entry in epochs]
    series = [Series(name, [entry.get(name) for entry in epochs], x) for name in names]
    return Chart("Training", "line", "epoch", "loss", series, "Mean losses of each epoch.", points=True)
