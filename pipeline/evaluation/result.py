"""What an evaluation found: as a dataclass, as rows of a table, as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.matching.breakdown import Gain, Group
from pipeline.matching.intervals import Interval
from pipeline.matching.metrics import RankMetrics
from pipeline.matching.verification import Verification

FORMAT = "sgsfa-result"
FORMAT_VERSION = 1

RANKS = (1, 5, 10, 20)

COLUMNS = ("Test set", "Method", *(f"Rank-{rank}>" for rank in RANKS), "mAP>", "mINP>", "Queries>")
"""Heads of `EvalResult.table_rows`, whose figures are per cent; a name that ends in `>` is set flush right."""

_METRICS = (*(f"rank{rank}" for rank in RANKS), "mAP", "mINP")

INTERVAL_COLUMNS = ("Test set", "Metric", "Figure>", "95 % interval>")
"""Heads of `interval_rows`."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The result of one test set.

    Attributes:
        test_set: Its name.
        metrics: What is reported: after re-ranking, where that is on.
        protocol: Every choice that the figures depend on.
        counts: Queries, gallery images, identities, cameras, dropped images.
        origin: Where the features come from, as their file says.
        notes: Choices a reader of the figures must know (junk dropped, pseudo cameras, ...).
        before_rerank: The metrics without re-ranking, where it is on.
        intervals: 95 % bootstrap intervals over queries by metric, where asked for.
        verification: True positive rates, where asked for.
        gain: What shared parts gained against visibility ignored, where parts are compared.
        histogram: The colour histograms' metrics, where asked for.
        histogram_same_camera: Share of queries whose nearest image by histogram is of their own camera.
        breakdown: Metrics of groups of queries.
        pictures: Ranking sheets, names inside the result's folder.
    """

    test_set: str
    metrics: RankMetrics
    protocol: Mapping[str, Any]
    counts: Mapping[str, int]
    origin: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    before_rerank: RankMetrics | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    verification: Verification | None = None
    gain: Gain | None = None
    histogram: RankMetrics | None = None
    histogram_same_camera: float | None = None
    breakdown: tuple[Group, ...] = ()
    pictures: tuple[str, ...] = ()

    def table_rows(self) -> list[tuple[str, ...]]:
        """Rows under `COLUMNS`: the result, and what it stands beside."""
        return table_rows(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The result as JSON can hold it; numbers that are not finite become null."""
        made = {"format": FORMAT, "format_version": FORMAT_VERSION, **_plain_fields(self)}
        made["metrics"] = metrics_as_json(self.metrics)
        made["before_rerank"] = None if self.before_rerank is None else metrics_as_json(self.before_rerank)
        made["histogram"] = None if self.histogram is None else metrics_as_json(self.histogram)
        return made


def method(protocol: Mapping[str, Any]) -> str:
    """One line that names everything that is not the plain protocol."""
    named = [f"{protocol['rule']} rule"]
    named += [f"{protocol['visibility']} visibility"] if protocol["visibility"] != "hard" else []
    named += [f"{protocol['metric']} distance"] if protocol["metric"] != "cosine" else []
    named += ["flip"] if protocol["flip"] else []
    named += [f"query expansion {protocol['query_expansion']}"] if protocol["query_expansion"] else []
    named += ["re-ranking"] if protocol["rerank"] else []
    named += ["trapezoid AP"] if protocol["average_precision"] == "trapezoid" else []
    return ", ".join(named)


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under `COLUMNS` of a result as in `result.json`."""
    name = result["test_set"]
    rows = [(name, method(result["protocol"]), *_scores(result["metrics"]))]
    for key, label in (("before_rerank", "without re-ranking"), ("histogram", "colour histogram")):
        if result[key] is not None:
            rows.append((name, label, *_scores(result[key])))
    return rows


def interval_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under `INTERVAL_COLUMNS` of a result as in `result.json`; none where no intervals were asked for."""
    return [
        (
            result["test_set"],
            name,
            per_cent(result["metrics"][name]),
            f"[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]",
        )
        for name in _METRICS
        if (interval := result["intervals"].get(name))
    ]


def breakdown_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of a result as in `result.json`: by, group, queries, rank-1, mAP, mINP."""
    return [
        (
            group["by"],
            group["value"],
            str(group["queries"]),
            *(per_cent(group[key]) for key in ("rank1", "mAP", "mINP")),
        )
        for group in result["breakdown"]
    ]


def metrics_as_json(metrics: RankMetrics) -> dict[str, Any]:
    """The figures without those of single queries, which stand in `queries.csv`."""
    return {
        **{f"rank{rank}": metrics.rank(rank) for rank in RANKS},
        "mAP": metrics.mAP,
        "mINP": metrics.mINP,
        "num_queries": metrics.num_queries,
        "num_valid_queries": metrics.num_valid_queries,
        "cmc": metrics.cmc.tolist(),
    }


def per_cent(share: float | None) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %" if share is not None and math.isfinite(share) else "-"


def plain(value: object) -> Any:
    """A value as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value)
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.as_posix() if isinstance(value, Path) else value


def _plain_fields(value: Any) -> dict[str, Any]:
    skipped = {"metrics", "before_rerank", "histogram"} if isinstance(value, EvalResult) else set()
    return {
        one.name: None if one.name in skipped else plain(getattr(value, one.name)) for one in dataclasses.fields(value)
    }


def _scores(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    cells = [per_cent(metrics[name]).removesuffix(" %") for name in _METRICS]
    valid, skipped = metrics["num_valid_queries"], metrics["num_queries"] - metrics["num_valid_queries"]
    return (*cells, f"{valid} ({skipped} without a match)" if skipped else str(valid))
