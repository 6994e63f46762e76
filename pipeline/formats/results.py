"""Results of evaluations as data: the schema of `result.json`, numbers only (docs/formats/results.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import FormatError
from pipeline.formats.provenance import JsonScalar
from pipeline.formats.table import Table, Tabular
from pipeline.runtime.files import read_json, write_json

RESULT_FILE = "result.json"
FORMAT, FORMAT_VERSION = "sgsfa-result", 1

RANKS = (1, 5, 10, 20)
METRICS = (*(f"rank{rank}" for rank in RANKS), "mAP", "mINP")
"""Names of the reported metrics, as in `Scores`."""

_HEADINGS = (*(f"Rank-{rank}" for rank in RANKS), "mAP", "mINP")


@dataclass(frozen=True, slots=True)
class Scores:
    """Ranking metrics as fractions.

    Attributes:
        rank1: Share of the valid queries with a match at rank 1; likewise `rank5`, `rank10` and `rank20`.
        mAP: Mean average precision.
        mINP: Mean inverse negative penalty.
        num_queries: Queries.
        num_valid_queries: Queries with a match, over which the metrics are means.
        cmc: CMC curve from rank 1.
    """

    rank1: float
    rank5: float
    rank10: float
    rank20: float
    mAP: float  # noqa: N815 - its name in the field
    mINP: float  # noqa: N815
    num_queries: int
    num_valid_queries: int
    cmc: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its bootstrap interval at the stated confidence."""

    mean: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Verification:
    """Verification rates.

    Attributes:
        false_positive_rates: The rates asked for, ascending.
        true_positive_rates: (same length) share of genuine pairs accepted at the largest threshold whose false
            positive rate does not exceed the one asked for.
        auc: Area under the ROC curve, ties counted half; None where it was not asked for.
        genuine: Number of genuine pairs.
        impostors: Number of other pairs.
    """

    false_positive_rates: tuple[float, ...]
    true_positive_rates: tuple[float, ...]
    auc: float | None
    genuine: int
    impostors: int


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics of some queries.

    Attributes:
        by: Criterion: `visible fraction`, a part, `semantic parts` or `cameras`.
        value: Which group.
        queries: Queries with a match.
        rank1: Share of them with a correct first entry.
        mAP: Their mean average precision.
        mINP: Their mean inverse negative penalty.
    """

    by: str
    value: str
    queries: int
    rank1: float
    mAP: float  # noqa: N815
    mINP: float  # noqa: N815


@dataclass(frozen=True, slots=True)
class Gain:
    """Gain of comparing shared parts only over the same rule with visibility ignored, query by query.

    Attributes:
        mean: Mean difference of AP.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        better: Queries whose AP rose.
        worse: Queries whose AP fell.
        equal: Queries whose AP stayed.
    """

    mean: float
    low: float
    high: float
    better: int
    worse: int
    equal: int


@dataclass(frozen=True, slots=True)
class EvaluationResult(Tabular):
    """The result of one test set.

    Attributes:
        test_set: Its name.
        metrics: The reported metrics: after re-ranking, where that is on.
        protocol: Every choice that the figures depend on.
        counts: Queries, gallery images, identities, cameras, dropped images.
        provenance: Provenance of the features.
        notes: Choices a reader of the figures must know (junk dropped, pseudo cameras, missing images).
        before_rerank: The metrics without re-ranking, where it is on.
        intervals: 95 % bootstrap intervals over queries by metric, where asked for.
        verification: True positive rates, where asked for.
        gain: Gain of shared parts over visibility ignored, where parts are compared.
        histogram: Metrics of colour histograms, where asked for.
        histogram_same_camera: Share of queries whose nearest image by histogram is of their own camera.
        breakdown: Metrics of groups of queries.
        figures: Ranking figures, names inside the result's folder.
    """

    test_set: str
    metrics: Scores
    protocol: Mapping[str, JsonScalar]
    counts: Mapping[str, int]
    provenance: Mapping[str, JsonScalar]
    notes: tuple[str, ...] = ()
    before_rerank: Scores | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    verification: Verification | None = None
    gain: Gain | None = None
    histogram: Scores | None = None
    histogram_same_camera: float | None = None
    breakdown: tuple[Group, ...] = ()
    figures: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return the metrics, with one row for the result and one for each figure to compare it with."""
        return results_table([self])

    def save(self, path: Path) -> None:
        """Write the result alone as a `result.json`."""
        save_results(path, [self])


def save_results(path: Path, results: Sequence[EvaluationResult]) -> None:
    """Write the results of one or more test sets, whole or not at all."""
    write_json(path, results_json(results))


def results_json(results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """Return the content of a `result.json`."""
    tests = {one.test_set: one.to_json() for one in results}
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "tests": tests}


def load_results(path: Path) -> dict[str, EvaluationResult]:
    """Read a `result.json`: results by name of the test set.

    Raises:
        FormatError: The file is missing or not a result of this format version.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise FormatError(f"no {RESULT_FILE} found", where=path, hint="run the evaluation again") from None
    except OSError as error:
        raise FormatError(f"the result cannot be read: {error.strerror or error}", where=path) from error
    except ValueError as error:
        raise FormatError(f"the result is not JSON: {error}", where=path, hint="run the evaluation again") from error
    return parse_results(content, path)


def parse_results(content: Any, where: Path | None = None) -> dict[str, EvaluationResult]:
    """Return the results in the content of a `result.json`, by name of the test set.

    Raises:
        FormatError: It is not a result of this format version.
    """
    header = (content.get("format"), content.get("format_version")) if isinstance(content, Mapping) else None
    if header != (FORMAT, FORMAT_VERSION):
        raise FormatError("not a result file", where=where, expected=f"format {FORMAT}, version {FORMAT_VERSION}")
    try:
        return TypeAdapter(dict[str, EvaluationResult]).validate_python(content["tests"])
    except (ValidationError, KeyError) as error:
        raise FormatError(f"the result is damaged: {error}", where=where, hint="run the evaluation again") from error


def method(protocol: Mapping[str, JsonScalar]) -> str:
    """Name everything in a protocol that differs from the defaults, in one line."""
    named = [f"rule {protocol['rule']}"]
    named += [f"{protocol['visibility']} visibility"] if protocol["visibility"] != "hard" else []
    named += [f"{protocol['metric']} distance"] if protocol["metric"] != "cosine" else []
    named += ["flip"] if protocol["flip"] else []
    named += [f"query expansion {protocol['query_expansion']}"] if protocol["query_expansion"] else []
    named += ["re-ranking"] if protocol["rerank"] else []
    named += ["trapezoid AP"] if protocol["average_precision"] == "trapezoid" else []
    return ", ".join(named)


def results_table(results: Sequence[EvaluationResult]) -> Table:
    """Return the metrics of several test sets."""
    rows = []
    for one in results:
        compared = (
            (method(one.protocol), one.metrics),
            ("without re-ranking", one.before_rerank),
            ("colour histogram", one.histogram),
        )
        for label, scores in compared:
            if scores is not None:
                values = (getattr(scores, name) for name in METRICS)
                rows.append((one.test_set, label, *values, scores.num_valid_queries))
    return Table(("Test set", "Method", *_HEADINGS, "Queries"), tuple(rows), "Metrics in %", _HEADINGS)


def intervals_table(results: Sequence[EvaluationResult]) -> Table:
    """Return the bootstrap intervals of several test sets."""
    rows = tuple(
        (one.test_set, name, interval.mean, interval.low, interval.high)
        for one in results
        for name in METRICS
        if (interval := one.intervals.get(name)) is not None
    )
    columns = ("Test set", "Metric", "Mean", "Low", "High")
    return Table(columns, rows, "95 % intervals over queries (bootstrap), in %", columns[2:])


def breakdown_table(result: EvaluationResult, *, without: Sequence[str] = ()) -> Table:
    """Return the metrics of groups of queries, without the criteria in `without`."""
    rows = tuple(
        (group.by, group.value, group.queries, group.rank1, group.mAP, group.mINP)
        for group in result.breakdown
        if group.by not in without
    )
    title = f"{result.test_set}: metrics in % by group (visible fraction: {result.protocol['visible_fraction']})"
    return Table(("By", "Group", "Queries", "Rank-1", "mAP", "mINP"), rows, title, ("Rank-1", "mAP", "mINP"))
