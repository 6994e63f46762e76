"""Drawing of evaluation results as they are stored in `result.json`; loads none of the code that computed them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sgsfa_cli import console

if TYPE_CHECKING:
    from rich.table import Table

_METRICS = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "rank20": "Rank-20",
    "mAP": "mAP",
    "mINP": "mINP",
}
_FURTHER = {"before_rerank": "without re-ranking", "histogram": "colour histogram"}


def metrics_table(results: Iterable[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return the metrics of test sets in per cent, each with what it is compared with."""
    heads = [f"{head}>" for head in _METRICS.values()]
    rows = [row for result in results for row in _rows(result)]
    return console.table("Test set", "Method", *heads, "Queries>", rows=rows, title=title)


def percent(share: float | None) -> str:
    """Return a share as text, as in `79.8`, or `-` for none."""
    return "-" if share is None else f"{100 * share:.1f}"


def method(protocol: Mapping[str, Any]) -> str:
    """Return the choices of an evaluation that differ from the defaults, after the matching rule."""
    named = [f"{protocol['rule']} rule"]
    named += [f"{protocol['visibility']} visibility"] if protocol["visibility"] != "hard" else []
    named += [f"{protocol['metric']} distance"] if protocol["metric"] != "cosine" else []
    named += ["flip"] if protocol["flip"] else []
    named += [f"query expansion {protocol['query_expansion']}"] if protocol["query_expansion"] else []
    named += ["re-ranking"] if protocol["rerank"] else []
    named += ["trapezoid AP"] if protocol["average_precision"] == "trapezoid" else []
    return ", ".join(named)


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    scored = [(method(result["protocol"]), result["metrics"])]
    scored += [(label, result[key]) for key, label in _FURTHER.items() if result.get(key) is not None]
    return [(result["test_set"], label, *_scores(metrics)) for label, metrics in scored]


def _scores(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    valid = metrics["num_valid_queries"]
    skipped = metrics["num_queries"] - valid
    queries = f"{valid} ({skipped} without a match)" if skipped else str(valid)
    return (*(percent(metrics[name]) for name in _METRICS), queries)
