"""`sgsfa eval`: metrics of the test sets of a run, or of features files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import (
    EXPECT_COUNTS,
    FLIP,
    METRIC,
    RULE,
    VISIBILITY,
    AgainstOption,
    command,
    command_app,
    refuse,
    run_until,
    setting,
)
from sgsfa_cli.tables import draw_results, draw_table

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.datasets.records import Dataset
    from pipeline.errors import RejectedInputs
    from pipeline.evaluation.comparison import Comparison
    from pipeline.evaluation.queries import QueryTable
    from pipeline.formats.results import EvaluationResult

app = command_app()


@command(
    app,
    "sgsfa eval --preset demo",
    "sgsfa eval --features features.h5",
    "sgsfa eval --features features.h5 --data market1501:/data/Market-1501 --out results --rerank",
    "sgsfa eval --features a.h5 --features b.h5 --rule mean --visibility soft --json",
    "sgsfa eval --features features.h5 --against artifacts/eval/run-1a2b3c4d",
    sets=(
        RULE,
        METRIC,
        VISIBILITY,
        setting("matching.rerank", kind=bool, help="k-reciprocal re-ranking."),
        setting("matching.query_expansion", kind=int, metavar="K", help="Average queries with their K nearest."),
        FLIP,
        setting(
            "matching.average_precision",
            "--trapezoid",
            kind=bool,
            help="Average precision by the trapezoid rule.",
            convert=lambda _: "trapezoid",
        ),
        setting(
            "matching.verification", kind=bool, help="Also compute true positive rates at low false positive rates."
        ),
        setting("matching.bootstrap", kind=int, metavar="N", help="Resamplings of the queries for 95 % intervals."),
        setting("matching.breakdown", kind=bool, help="Also report metrics by visible fraction, part and camera pair."),
        EXPECT_COUNTS,
    ),
)
def evaluate(
    *,
    features: Annotated[
        list[Path] | None,
        typer.Option("--features", "-f", metavar="FILE", help="Features to evaluate; repeat for several test sets."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="KIND:PATH",
            help="The images of each --features, for ranking figures and visible fractions.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="With --features: write results and figures here."),
    ] = None,
    against: AgainstOption = None,
    flip: bool | None,
    settings: RunConfig,
) -> RejectedInputs | None:
    """Evaluate: CMC, mAP and mINP of all test sets.

    Without --features the configured run is brought up to date to its eval stage. With --features the files are
    evaluated, and nothing is written unless --out names a folder.
    """
    from pipeline.evaluation.comparison import compare_all, load_queries
    from pipeline.formats.results import RESULT_FILE, load_results, results_json

    # Before the evaluation, so that a wrong path costs nothing.
    before = {} if against is None else load_queries(against)
    rejected = None
    if features:
        _check_flip(features, flip)
        results, queries = _evaluate_files(settings, features, data or [], out)
    else:
        hint = "the configured run takes its test sets from [data] and writes to its artifacts folder"
        refuse({"--data": data, "--out": out}, "--features", hint=hint)
        report, rejected = run_until(settings, "eval")
        folder = report.stages[-1].path
        results, queries = list(load_results(folder / RESULT_FILE).values()), dict(load_queries(folder))
    found, comparisons = results_json(results), []
    if against is not None:
        comparisons = compare_all(queries, before, against)
        found["against"] = [comparison.to_json() for comparison in comparisons]
    console.emit(found, lambda: _draw(results, comparisons))
    return rejected


def _evaluate_files(
    settings: RunConfig, features: Sequence[Path], specs: Sequence[str], out: Path | None
) -> tuple[list[EvaluationResult], dict[str, QueryTable]]:
    from dataclasses import replace

    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import ConfigError
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.formats.results import RESULT_FILE, save_results

    if specs and len(specs) != len(features):
        raise ConfigError(f"{len(features)} --features and {len(specs)} --data", expected="one --data for each")
    # All inputs before the first evaluation, so that a mistake in the last one leaves no half result.
    datasets: list[Dataset | None] = [None] * len(features)
    if specs:
        datasets = [open_dataset(spec, expect_counts=settings.data.expect_counts) for spec in specs]
    results: list[EvaluationResult] = []
    queries: dict[str, QueryTable] = {}
    for path, dataset in zip(features, datasets, strict=True):
        found = evaluate(path, dataset=dataset, config=settings.matching, progress=console.progress())
        name, number = found.result.test_set, 1
        while name in queries:
            number += 1
            name = f"{found.result.test_set}-{number}"
        found = replace(found, result=replace(found.result, test_set=name))
        queries[name] = found.queries
        folder = out if out is None or len(features) == 1 else out / name
        results.append(found.result if folder is None else found.save(folder, dataset))
    if out is not None and len(features) > 1:
        save_results(out / RESULT_FILE, results)
    return results, queries


def _check_flip(features: Sequence[Path], flip: bool | None) -> None:
    """Open every file, and refuse one that was not extracted as --flip says."""
    from pipeline.errors import ConfigError
    from pipeline.formats.feature_file import open_features

    for path in features:
        recorded = bool(open_features(path).provenance.values.get("flip", False))
        if flip is not None and flip != recorded:
            raise ConfigError(
                f"{'--flip' if flip else '--no-flip'} contradicts the features, extracted with flip = {recorded}",
                where=path,
                hint="flip averaging happens when features are extracted: `sgsfa extract --flip`",
            )


def _draw(results: Sequence[EvaluationResult], comparisons: Sequence[Comparison]) -> console.Drawn:
    parts = draw_results(results)
    parts += [draw_table(comparison.table()) for comparison in comparisons]
    missing = sorted({result.test_set for result in results} - {comparison.test_set for comparison in comparisons})
    if comparisons and missing:
        parts.append(f"not in the earlier run: {', '.join(missing)}")
    return parts
