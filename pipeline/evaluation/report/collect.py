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
from pipeline.evaluation.report.ranking import Rankings, rankings
from pipeline.formats.features import Features
from pipeline.formats.results import EvaluationResult, intervals_table, results_table
from pipeline.matching.contributions import contributions
from pipeline.matching.distance import MatchingRule
from pipeline.parts import SEMANTIC
from pipeline.version import __version__

_WORST_SHARE = 0.5
_DIGITS = 7


@dataclass(frozen=True)
class ReportInput:
    """One evaluated test set and what is known besides.

    Attributes:
        evaluation: The evaluation, with its single queries.
        features: Query and gallery features that it is about.
        rule: Its matching rule.
        dataset: The images; None: no thumbnails.
        masks: Part masks of images by the network; None: no heat maps.
        visibility: Figures of the checkpoint's visibilities, by figure and part.
        training: `metrics.jsonl` of the training.
        comparison: The difference to an earlier run.
        device: Device of the distances.
    """

    evaluation: Evaluation
    features: Features
    rule: MatchingRule
    dataset: Dataset | None = None
    masks: MaskFunction | None = None
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
    notices: Sequence[str] = (),
) -> Report:
    """Collect the report of one or more test sets.

    Args:
        inputs: The evaluated test sets.
        title: Heading of the page.
        queries: Queries to store for each test set: the worst half by AP, the rest spread over all others.
        images: Store thumbnails and masks; off for places where people must not be shown.
        notices: Warnings of the run, shown first.
    """
    results = [one.evaluation.result for one in inputs]
    lacking = dict.fromkeys(notice for one in inputs for notice in _lacking(one, images=images))
    store, tests, limits = ImageStore(), [], []
    for number, one in enumerate(inputs, start=1):
        budget = MAX_BYTES * number // len(inputs)
        tests.append(_test_set(one if images else replace(one, dataset=None), queries, store, budget))
        if len(tests[-1].queries) < min(queries, tests[-1].num_queries):
            limits.append(f"{tests[-1].name}: {len(tests[-1].queries):,} queries are stored, for a page below 15 MB.")
    if store.unreadable:
        limits.append(f"{len(store.unreadable):,} images cannot be read and are not shown.")
    return Report(
        title=title,
        version=__version__,
        notices=[*notices, *lacking, *limits],
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


def _test_set(one: ReportInput, count: int, store: ImageStore, budget: int) -> TestSet:
    known = one.features.select(one.features.pids >= 0)
    query, gallery = known.split("query"), known.split("gallery")
    ranked = rankings(query, gallery, one.rule, device=one.device)
    reasons = failure_reasons(query, gallery, ranked, one.rule)
    entries = []
    for i in choose_queries(one.evaluation.queries.ap, count).tolist():
        entries.append(_query(one, query, gallery, ranked, str(reasons[i]), i))
        _add_images(one, entries[-1], store)
        if store.size > budget:
            break
    if one.dataset is not None and one.masks is not None:
        shown = [one.dataset.root / entry.name for query_ in entries for entry in (query_, *query_.hits)]
        store.add_masks(shown, one.masks)
    result = one.evaluation.result
    return TestSet(
        name=result.test_set,
        num_queries=len(query),
        charts=[*result_charts(result, ranked.histogram), *_network_charts(one)],
        groups=failure_groups(reasons),
        queries=[_with_images(one, entry, store) for entry in entries],
    )


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


def _query(one: ReportInput, query: Features, gallery: Features, ranked: Rankings, reason: str, i: int) -> Query:
    table = one.evaluation.queries
    # An infinite distance marks the query's own identity and camera, at the end of a short gallery.
    found = gallery.select(ranked.nearest[i][np.isfinite(ranked.distances[i])])
    return Query(
        **entry_fields(query, i),
        ap=_number(table.ap[i]),
        first_hit=int(table.first_hit[i]) or None,
        fraction=_number(table.visible_fraction[i]),
        group=reason,
        hits=explained_hits(query.select(np.full(len(found), i)), found, one.rule),
    )


def explained_hits(query: Features, found: Features, rule: MatchingRule) -> list[Hit]:
    """Return ranked images with the terms of their distances.

    Args:
        query: (K) the query, once for each image.
        found: (K) the images, nearest first.
        rule: The matching rule.
    """
    terms = contributions(query, found, rule)
    columns = np.stack([terms.distances, terms.weights, terms.distances * terms.weights], axis=2).round(_DIGITS)
    shared, totals = shared_parts(terms), terms.totals
    return [
        Hit(
            **entry_fields(found, j),
            rank=j + 1,
            distance=round(float(totals[j]), _DIGITS),
            right=bool(found.pids[j] == query.pids[j]),
            contributions=columns[j].tolist(),
            shared=shared[j],
        )
        for j in range(len(found))
    ]


def entry_fields(side: Features, i: int) -> dict[str, Any]:
    """Return the fields of the `Entry` of image i, without its places."""
    return {
        "name": str(side.names[i]),
        "pid": int(side.pids[i]),
        "camid": int(side.camids[i]),
        "visibility": side.visibility[i].astype(np.float64).round(4).tolist(),
        "visible": (side.visibility[i] > side.thresholds).tolist(),
    }


def _add_images(one: ReportInput, query: Query, store: ImageStore) -> None:
    if one.dataset is not None:
        for entry in (query, *query.hits):
            store.image(one.dataset.root / entry.name)


def _with_images(one: ReportInput, query: Query, store: ImageStore) -> Query:
    """Return a query whose entries name the places of their thumbnails and masks."""
    if one.dataset is None:
        return query
    root = one.dataset.root

    def places(entry: Query | Hit) -> dict[str, Any]:
        return {"image": store.image(root / entry.name), "mask": store.mask(root / entry.name)}

    return replace(query, **places(query), hits=[replace(hit, **places(hit)) for hit in query.hits])


def _network_charts(one: ReportInput) -> Iterator[Chart | Matrix]:
    if one.visibility:
        yield visibility_chart(one.visibility)
    if one.training is not None and (chart := training_chart(one.training)) is not None:
        yield chart


def _lacking(one: ReportInput, *, images: bool) -> Iterator[str]:
    if not images:
        yield "Images were left out on request."
    elif one.dataset is None:
        yield "The data set was not given: no images are shown."
    elif one.masks is None:
        yield "The checkpoint was not given: no part masks are shown."
    yield from one.evaluation.result.notes


def _facts(result: EvaluationResult) -> Iterator[tuple[str, str]]:
    """Yield protocol, counts and provenance; none of them holds a path of the machine."""
    for table in (result.counts, result.protocol, result.provenance):
        yield from ((name.replace("_", " "), str(value)) for name, value in table.items())


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
