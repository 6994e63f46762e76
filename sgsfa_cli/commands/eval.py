"""`sgsfa eval`: metrics of the test sets of a run, or of features files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgsfa_cli import console
from sgsfa_cli.options import (
    ConfigOption,
    ExpectCountsOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SetOption,
    Switch,
    command_app,
    examples,
    load,
    overriding,
    warn_of_defaults,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.config import RunConfig
    from pipeline.datasets.records import Dataset
    from pipeline.errors import RejectedInputs
    from pipeline.evaluation.comparison import Comparison
    from pipeline.evaluation.queries import QueryTable
    from pipeline.formats.results import EvaluationResult
    from pipeline.runtime.progress import Progress

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa eval --preset demo",
        "sgsfa eval --features features.h5",
        "sgsfa eval --features features.h5 --data market1501:/data/Market-1501 --out results --rerank",
        "sgsfa eval --features a.h5 --features b.h5 --rule mean --visibility soft --json",
        "sgsfa eval --features features.h5 --against artifacts/eval/run-1a2b3c4d",
    )
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
    rule: Annotated[
        str | None, typer.Option(metavar="RULE", help="shrunk, mean, sum, query or all (docs/concepts/matching.md).")
    ] = None,
    metric: Annotated[str | None, typer.Option(metavar="METRIC", help="cosine or euclidean.")] = None,
    visibility: Annotated[str | None, typer.Option(metavar="KIND", help="hard or soft.")] = None,
    rerank: Annotated[bool | None, typer.Option("--rerank/--no-rerank", help="k-reciprocal re-ranking.")] = None,
    query_expansion: Annotated[
        int | None, typer.Option("--query-expansion", metavar="K", help="Average queries with their K nearest.")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Average features with the mirror image.")
    ] = None,
    trapezoid: Annotated[bool, typer.Option("--trapezoid", help="Average precision by the trapezoid rule.")] = False,
    verification: Annotated[
        bool | None,
        typer.Option(
            "--verification/--no-verification", help="Also compute true positive rates at low false positive rates."
        ),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(metavar="N", help="Resamplings of the queries for 95 % intervals.")
    ] = None,
    breakdown: Annotated[
        bool | None,
        typer.Option(
            "--breakdown/--no-breakdown", help="Also report metrics by visible fraction, part and camera pair."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="RUN", help="Compare with an earlier result: its folder or result.json."),
    ] = None,
    expect_counts: ExpectCountsOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Evaluate: CMC, mAP and mINP of all test sets.

    Without --features the configured run is brought up to date to its eval stage. With --features the files are
    evaluated, and nothing is written unless --out names a folder.
    """
    options: dict[str, Any] = {
        "matching.rule": rule,
        "matching.metric": metric,
        "matching.visibility": visibility,
        "matching.rerank": rerank,
        "matching.query_expansion": query_expansion,
        "matching.average_precision": "trapezoid" if trapezoid else None,
        "matching.verification": verification,
        "matching.bootstrap": bootstrap,
        "matching.breakdown": breakdown,
        "extract.flip": flip,
        "data.expect_counts": None if expect_counts is None else expect_counts is Switch.ON,
    }
    from pipeline.formats.results import results_json

    settings = load(config, preset, [*(overrides or ()), *overriding(options)])
    progress = console.progress(quiet=quiet)
    # Before the evaluation, so that a wrong path costs nothing.
    before = _load_queries(against)
    rejected: RejectedInputs | None = None
    if features:
        request = _Request(features, data or [], out, flip)
        results, queries = _evaluate_files(settings, request, progress)
    else:
        _refuse_without_features(data, out)
        warn_of_defaults(settings, config, preset)
        results, queries, rejected = _evaluate_run(settings, progress)
    comparisons = _compare(queries, before, against)
    found = results_json(list(results.values()))
    if against is not None:
        found["against"] = [comparison.to_json() for comparison in comparisons]
    console.emit(found, json=json, draw=lambda: _draw(results, comparisons))
    if rejected is not None:
        raise rejected


@dataclass(frozen=True)
class _Request:
    """Features files to evaluate: the values of --features, --data, --out and --flip."""

    features: list[Path]
    data: list[str]
    out: Path | None
    flip: bool | None


def _evaluate_files(
    settings: RunConfig, request: _Request, progress: Progress
) -> tuple[dict[str, EvaluationResult], dict[str, QueryTable]]:
    from dataclasses import replace

    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import ConfigError
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.formats.results import RESULT_FILE, save_results

    features, specs, out = request.features, request.data, request.out
    if specs and len(specs) != len(features):
        raise ConfigError(f"{len(features)} --features and {len(specs)} --data", expected="one --data for each")
    # All inputs before the first evaluation, so that a mistake in the last one leaves no half result.
    _check_files(features, request.flip)
    datasets: list[Dataset | None] = [None] * len(features)
    if specs:
        datasets = [open_dataset(spec, expect_counts=settings.data.expect_counts) for spec in specs]
    results: dict[str, EvaluationResult] = {}
    queries: dict[str, QueryTable] = {}
    for path, dataset in zip(features, datasets, strict=True):
        found = evaluate(path, dataset=dataset, config=settings.matching, progress=progress)
        name = _unused(found.result.test_set, results)
        found = replace(found, result=replace(found.result, test_set=name))
        results[name], queries[name] = found.result, found.queries
        if out is not None:
            results[name] = found.save(out if len(features) == 1 else out / name, dataset)
    if out is not None and len(features) > 1:
        save_results(out / RESULT_FILE, list(results.values()))
    return results, queries


def _check_files(features: list[Path], flip: bool | None) -> None:
    """Open every file, and refuse one that was not extracted as --flip says."""
    from pipeline.errors import ConfigError
    from pipeline.formats.feature_file import FeatureFile
    from pipeline.formats.features import Features

    for path in features:
        opened = Features.load(path) if path.suffix == ".npz" else FeatureFile.open(path)
        recorded = bool(opened.provenance.values.get("flip", False))
        if flip is not None and flip != recorded:
            raise ConfigError(
                f"{'--flip' if flip else '--no-flip'} contradicts the features, extracted with flip = {recorded}",
                where=path,
                hint="flip averaging happens when features are extracted: `sgsfa extract --flip`",
            )


def _evaluate_run(
    settings: RunConfig, progress: Progress
) -> tuple[dict[str, EvaluationResult], dict[str, QueryTable], RejectedInputs | None]:
    from pipeline.errors import RejectedInputs
    from pipeline.evaluation.comparison import load_queries
    from pipeline.formats.results import RESULT_FILE, load_results
    from pipeline.stages.run import run_stages

    report = run_stages(settings, until="eval", progress=progress)
    folder = report.stages[-1].path
    rejected = RejectedInputs("eval", report.rejected, total=report.total) if report.rejected else None
    return load_results(folder / RESULT_FILE), dict(load_queries(folder)), rejected


def _refuse_without_features(data: list[str] | None, out: Path | None) -> None:
    from pipeline.errors import ConfigError

    for name, value in (("--data", data), ("--out", out)):
        if value:
            raise ConfigError(
                f"{name} needs --features",
                hint="the configured run takes its test sets from [data] and writes to its artifacts folder",
            )


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    candidates = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def _load_queries(against: Path | None) -> Mapping[str, QueryTable]:
    from pipeline.evaluation.comparison import load_queries

    return {} if against is None else load_queries(against)


def _compare(
    queries: Mapping[str, QueryTable], before: Mapping[str, QueryTable], against: Path | None
) -> list[Comparison]:
    from pipeline.evaluation.comparison import compare_runs, match_queries

    if against is None:
        return []
    return [compare_runs(name, *pair) for name, pair in match_queries(queries, before, against).items()]


def _draw(results: Mapping[str, EvaluationResult], comparisons: list[Comparison]) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape

    from sgsfa_cli.tables import draw_results, draw_table

    parts = draw_results(results)
    parts += [draw_table(comparison.table()) for comparison in comparisons]
    compared = {comparison.test_set for comparison in comparisons}
    if comparisons and (missing := sorted(results.keys() - compared)):
        parts.append(f"not in the earlier run: {escape(', '.join(missing))}")
    return Group(*parts)
