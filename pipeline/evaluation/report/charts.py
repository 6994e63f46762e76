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
    cmc = result.metrics.cmc
    yield Chart(
        title="CMC",
        kind="line",
        x="rank",
        y="share of queries",
        series=[Series("CMC", cmc, list(range(1, len(cmc) + 1)))],
        note="Share of queries with a match among the first k images.",
        unit=True,
    )
    yield distance_chart(histogram)
    fractions = [group for group in result.breakdown if group.by == "visible fraction"]
    if fractions:
        yield fraction_chart(fractions, str(result.protocol["visible_fraction"]))
    parts = [group for group in result.breakdown if group.by in PARTS]
    if parts:
        yield part_chart(parts)
    cameras = [group for group in result.breakdown if group.by == "cameras"]
    if cameras:
        yield camera_matrix(cameras)


def distance_chart(histogram: Histogram) -> Chart:
    """Return the densities of genuine and impostor distances, with the thresholds at chosen false positive rates."""
    counts = np.stack([histogram.genuine, histogram.impostor]).reshape(2, _SHOWN_BINS, BINS // _SHOWN_BINS).sum(2)
    used = int(np.flatnonzero(counts.sum(0)).max(initial=0)) + 1
    density = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    centres = ((np.arange(_SHOWN_BINS) + 0.5) * histogram.upper / _SHOWN_BINS)[:used].tolist()
    thresholds = [(rate, histogram.threshold(rate)) for rate in FALSE_POSITIVE_RATES]
    note = "; ".join(
        f"{100 * rate:g} % false positives below {threshold:.3f}, where "
        f"{100 * histogram.true_positive_rate(threshold):.1f} % of the genuine pairs lie"
        for rate, threshold in thresholds
    )
    return Chart(
        title="Distances",
        kind="line",
        x="distance",
        y="share of pairs",
        series=[
            Series("genuine pairs", density[0, :used].tolist(), centres),
            Series("impostor pairs", density[1, :used].tolist(), centres),
        ],
        note=f"{note}.",
    )


def camera_matrix(groups: Sequence[Group]) -> Matrix:
    """Return the mAP by camera of the query (rows) and of the match (columns)."""
    pairs = {tuple(group.value.split(" to ")): group.mAP for group in groups}
    rows, columns = (sorted({pair[side] for pair in pairs}, key=int) for side in (0, 1))
    values = [[pairs.get((row, column)) for column in columns] for row in rows]
    return Matrix(
        title="mAP by camera",
        corner="query",
        rows=rows,
        columns=columns,
        values=values,
        note="Rows: camera of the query; columns: camera of the match.",
    )


def visibility_chart(figures: Mapping[str, Mapping[str, float]]) -> Chart:
    """Return how well the network judges visibility, as recorded with the checkpoint.

    Args:
        figures: Values in [0, 1] by part, for each figure's name (`ROC AUC`, `accuracy`).
    """
    return Chart(
        title="Visibility by part",
        kind="bar",
        x="part",
        y=", ".join(figures),
        labels=PARTS,
        series=[Series(name, [values.get(part) for part in PARTS]) for name, values in figures.items()],
        note="Measured on occluded training images when the checkpoint was calibrated.",
        unit=True,
    )


def training_chart(metrics: Path) -> Chart | None:
    """Return the losses by epoch from a training's `metrics.jsonl`; None without at least two epochs."""
    with metrics.open(encoding="utf-8") as lines:
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    epochs = [entry for entry in entries if entry.get("kind") == "epoch"]
    names = [
        name for name in ("loss", "triplet", "masks", "identity", "global_feature") if epochs and name in epochs[0]
    ]
    if len(epochs) < _FEWEST_EPOCHS or not names:
        return None
    x = [float(entry["epoch"]) for entry in epochs]
    return Chart(
        title="Training",
        kind="line",
        x="epoch",
        y="loss",
        series=[Series(name, [entry.get(name) for entry in epochs], x) for name in names],
        note="Mean losses of each epoch.",
        points=True,
    )


def part_chart(groups: Sequence[Group]) -> Chart:
    """Return the mAP of queries in which each part is visible, and of those in which it is hidden."""
    found = {(group.by, group.value): group.mAP for group in groups}
    return Chart(
        title="mAP by visible part",
        kind="bar",
        x="part",
        y="mAP",
        labels=PARTS,
        series=[
            Series(f"{value} in the query", [found.get((part, value)) for part in PARTS])
            for value in ("visible", "hidden")
        ],
        note="Queries in which the part is visible, and those in which it is hidden.",
        unit=True,
    )


def fraction_chart(groups: Sequence[Group], source: str) -> Chart:
    """Return rank-1 and mAP by visible fraction of the query, which `source` gives."""
    return Chart(
        title="Metrics by visible fraction",
        kind="bar",
        x="visible fraction",
        y="share",
        labels=[f"{group.value} ({group.queries})" for group in groups],
        series=[
            Series("rank-1", [group.rank1 for group in groups]),
            Series("mAP", [group.mAP for group in groups]),
        ],
        note=f"Visible fraction by: {source}. Number of queries in brackets.",
        unit=True,
    )
