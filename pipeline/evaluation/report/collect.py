"""Collect a report from evaluations: choose queries, rank, explain, and find what the page lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.datasets.records import Dataset
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.explain import TERMS
from pipeline.evaluation.report import QUERIES
from pipeline.evaluation.report.charts import result_charts, training_chart, visibility_chart
from pipeline.evaluation.report.failures import failure_groups, failure_reasons, shared_parts
from pipeline.evaluation.report.images import MAX_BYTES, ImageStore, MaskFunction
from pipeline.evaluation.report.model import Chart, Hit, Matrix, Query, Report, TestSet
from pipeline.evaluation.report.ranking import rankings
from pipeline.formats.features import Features
from pipeline.formats.results import EvaluationResult, intervals_table, results_table
from pipeline.matching.contributions import contributions
from pipeline.matching.distance import MatchingRule
from pipeline.parts import SEMANTIC
from pipeline.runtime.progress import SILENT, Progress, Task
from pipeline.version import __version__

_WORST_SHARE = 0.5
_DIGITS = 7


@dataclass(frozen=True)
class ReportInput:
    """One evaluated test set and what is known besides.

    Attributes:
        dataset: The images; None: no thumbnails.
        visibility: Figures of the checkpoint's visibilities, by figure and part.
        training: `metrics.jsonl` of the training.
        comparison: The difference to an earlier run.
        device: Device of the distances.
    """

    evaluation: Evaluation
    features: Features
    rule: MatchingRule
    dataset: Dataset | None = None
    visibility: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    training: Path | None = None
    comparison: Comparison | None = None
    device: torch.device | str = "cpu"


def collect(
    inputs: Sequence[ReportInput],
    *,
    title: str,
    queries: int = QUERIES,
    images: bool = True,
    masks: MaskFunction | None = None,
    notices: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Report:
    """Collect the report of one or more test sets.

    Args:
        inputs: The evaluated test sets.
        title: Heading of the page.
        queries: Queries to store for each test set (`choose_queries`).
        images: Store thumbnails and masks.
        masks: Part masks of images by the network; None: no heat maps.
        notices: Warnings of the run, shown first.
        progress: Shows the work.
    """
    results = [one.evaluation.result for one in inputs]
    notices = list(dict.fromkeys([*notices, *(line for one in inputs for line in _lacking(one, images, masks))]))
    store, tests = ImageStore(masks), []
    for number, one in enumerate(inputs, start=1):
        shown = one if images else replace(one, dataset=None)
        chosen = choose_queries(one.evaluation.queries.ap, queries)
        with progress.task("report", total=len(chosen), unit="queries") as task:
            test = _test_set(shown, chosen, store, task, budget=MAX_BYTES * number // len(inputs))
        tests.append(test)
        if len(test.queries) < min(queries, test.num_queries):
            notices.append(f"{test.name}: {len(test.queries):,} queries are stored, for a page below 15 MB.")
    if store.unreadable:
        notices.append(f"{len(store.unreadable):,} images cannot be read and are not shown.")
    return Report(
        title=title,
        version=__version__,
        notices=notices,
        tables=[
            results_table(results),
            *([intervals_table(results)] if any(result.intervals for result in results) else []),
            *(one.comparison.table() for one in inputs if one.comparison is not None),
        ],
        facts=[fact for result in results for fact in _facts(result)],
        tests=tests,
        parts=TERMS,
        mask_parts=SEMANTIC if store.masks else (),
        mask_size=store.mask_size,
        images=store.images,
        masks=store.masks,
    )


def _test_set(
    one: ReportInput, chosen: npt.NDArray[np.int64], store: ImageStore, task: Task, *, budget: int
) -> TestSet:
    known = one.features.select(one.features.pids >= 0)
    query, gallery = known.split("query"), known.split("gallery")
    ranked = rankings(query, gallery, one.rule, device=one.device)
    reasons = failure_reasons(query, gallery, ranked, one.rule)
    entries = []
    for i in chosen.tolist():
        # An infinite distance marks the query's own identity and camera, at the end of a short gallery.
        found = gallery.select(ranked.nearest[i][np.isfinite(ranked.distances[i])])
        entry = _query(one, query, found, str(reasons[i]), i)
        if one.dataset is not None:
            own, *others = store.add([one.dataset.root / each.name for each in (entry, *entry.hits)])
            hits = [replace(hit, image=place) for hit, place in zip(entry.hits, others, strict=True)]
            entry = replace(entry, image=own, hits=hits)
        entries.append(entry)
        task.advance()
        if store.size > budget:
            break
    charts: list[Chart | Matrix] = list(result_charts(one.evaluation.result, ranked.histogram))
    if one.visibility:
        charts.append(visibility_chart(one.visibility))
    if one.training is not None and (chart := training_chart(one.training)) is not None:
        charts.append(chart)
    return TestSet(one.evaluation.result.test_set, len(query), charts, failure_groups(reasons), entries)


def choose_queries(ap: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Choose the queries to store: half of them the worst by AP, the rest spread evenly over all others.

    Args:
        ap: (Q,) average precision, NaN without a match; these come last.
        count: Most queries to choose.
    """
    order = np.argsort(ap, kind="stable")
    worst = order[: int(count * _WORST_SHARE)]
    others = order[len(worst) :]
    spread = np.unique(np.linspace(0, len(others) - 1, min(count - len(worst), len(others))).round().astype(np.int64))
    return np.concatenate([worst, others[spread]])


def _query(one: ReportInput, query: Features, found: Features, reason: str, i: int) -> Query:
    table = one.evaluation.queries
    return Query(
        **entry_fields(query, i),
        ap=_number(table.ap[i]),
        first_hit=int(table.first_hit[i]) or None,
        fraction=_number(table.visible_fraction[i]),
        group=reason,
        hits=explained_hits(query.select(np.full(len(found), i)), found, one.rule),
    )


def explained_hits(query: Features, found: Features, rule: MatchingRule) -> list[Hit]:
    """Return ranked images, the nearest first, with the terms of their distances to a query, repeated for each."""
    terms = contributions(query, found, rule)
    columns = np.stack([terms.distances, terms.weights, terms.distances * terms.weights], axis=2).round(_DIGITS)
    shared, totals = shared_parts(terms), terms.totals
    return [
        Hit(
            **entry_fields(found, j),
            rank=j + 1,
            distance=round(float(totals[j]), _DIGITS),
            correct=bool(found.pids[j] == query.pids[j]),
            contributions=columns[j].tolist(),
            shared=shared[j],
        )
        for j in range(len(found))
    ]


def entry_fields(side: Features, i: int) -> dict[str, Any]:
    """Return the fields of the `Entry` of image i, without its place."""
    return {
        "name": str(side.names[i]),
        "pid": int(side.pids[i]),
        "camid": int(side.camids[i]),
        "visibility": side.visibility[i].astype(np.float64).round(4).tolist(),
        "visible": (side.visibility[i] > side.thresholds).tolist(),
    }


def _lacking(one: ReportInput, images: bool, masks: MaskFunction | None) -> Iterator[str]:
    if not images:
        yield "Images were left out on request."
    elif one.dataset is None:
        yield "The data set was not given: no images are shown."
    elif masks is None:
        yield "The checkpoint was not given: no part masks are shown."
    yield from one.evaluation.result.notes


def _facts(result: EvaluationResult) -> Iterator[tuple[str, str]]:
    """Yield protocol, counts and provenance; none of them holds a path of the machine."""
    for table in (result.counts, result.protocol, result.provenance):
        yield from ((name.replace("_", " "), str(value)) for name, value in table.items())


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
