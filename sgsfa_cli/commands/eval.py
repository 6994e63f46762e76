"""`sgsfa eval`: metrics of the configured run's test sets, or of features files."""

from __future__ import annotations

from collections.abc import Mapping
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
    from pipeline.evaluation.compare_runs import Comparison
    from pipeline.evaluation.queries import QueryTable
    from pipeline.runtime.progress import Progress

app = command_app()

_CAMERA_PAIRS = 12
"""More pairs of cameras than these are left to the JSON."""


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
            help="The images of each --features, for ranking sheets and visible fractions.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="With --features: write results and pictures here."),
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
        bool | None, typer.Option("--flip/--no-flip", help="Features averaged with the mirror image.")
    ] = None,
    trapezoid: Annotated[bool, typer.Option("--trapezoid", help="Average precision by the trapezoid rule.")] = False,
    verification: Annotated[
        bool | None, typer.Option("--verification/--no-verification", help="Also true positive rates.")
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(metavar="N", help="Resamplings of the queries for 95 % intervals.")
    ] = None,
    breakdown: Annotated[
        bool | None,
        typer.Option("--breakdown/--no-breakdown", help="Also by visible fraction, visible parts and cameras."),
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
    """Evaluate: CMC, mAP and mINP, in one table for all test sets.

    Without --features the configured run is brought up to date to its eval stage. With --features the files are
    evaluated as they are, and nothing is written unless --out names a folder.
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
    settings = load(config, preset, [*(overrides or ()), *overriding(options)])
    progress = console.progress(quiet=quiet)
    # Before the work, which a wrong name should not cost.
    before = _tables_of(against)
    rejected: RejectedInputs | None = None
    if features:
        results, tables = _evaluate_files(settings, features, data or [], out, flip, progress)
    else:
        _refuse_without_features(data, out)
        warn_of_defaults(settings, config, preset)
        results, tables, rejected = _evaluate_run(settings, progress)
    comparisons = _comparisons(tables, before, against)
    found = {"tests": results, "against": comparisons} if against is not None else {"tests": results}
    console.emit(found, json=json, draw=lambda: _draw(results, comparisons))
    if rejected is not None:
        raise rejected


def _evaluate_files(
    settings: RunConfig,
    features: list[Path],
    specs: list[str],
    out: Path | None,
    flip: bool | None,
    progress: Progress,
) -> tuple[dict[str, dict[str, Any]], dict[str, QueryTable]]:
    from dataclasses import replace

    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import ConfigError
    from pipeline.evaluation.evaluate import measure, write

    if specs and len(specs) != len(features):
        raise ConfigError(f"{len(features)} --features and {len(specs)} --data", expected="one --data for each")
    # All before the first evaluation, which a mistake in the last file should not cost, nor leave half a result.
    _check_files(features, flip)
    datasets: list[Dataset | None] = [None] * len(features)
    if specs:
        datasets = [open_dataset(spec, expect_counts=settings.data.expect_counts) for spec in specs]
    results: dict[str, dict[str, Any]] = {}
    tables: dict[str, QueryTable] = {}
    for path, images in zip(features, datasets, strict=True):
        found = measure(path, dataset=images, config=settings.matching, progress=progress)
        name = _unused(found.result.test_set, results)
        found = replace(found, result=replace(found.result, test_set=name))
        if out is not None:
            written = write(out if len(features) == 1 else out / name, found, images)
            found = replace(found, result=written)
        results[name] = found.result.as_json()
        tables[name] = found.queries
    return results, tables


def _check_files(features: list[Path], flip: bool | None) -> None:
    """Open every file, and refuse one that was not extracted as the option says."""
    from pipeline.errors import ConfigError
    from pipeline.formats.features import FeatureFile

    for path in features:
        was_flipped = bool(FeatureFile.open(path).attributes.get("flip", False))
        if flip is not None and flip != was_flipped:
            raise ConfigError(
                f"{'--flip' if flip else '--no-flip'}, but the features were extracted otherwise",
                where=path,
                hint="flip averaging happens when features are extracted: `sgsfa extract --flip`",
            )


def _evaluate_run(
    settings: RunConfig, progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[str, QueryTable], RejectedInputs | None]:
    from pipeline.errors import RejectedInputs
    from pipeline.evaluation.compare_runs import find_tables
    from pipeline.runtime.files import read_json
    from pipeline.stages.run import run_stages

    report = run_stages(settings, until="eval", progress=progress)
    folder = report.stages[-1].path
    results = read_json(folder / "result.json")["tests"]
    rejected = RejectedInputs("eval", report.rejected, total=report.total) if report.rejected else None
    return results, dict(find_tables(folder)), rejected


def _refuse_without_features(data: list[str] | None, out: Path | None) -> None:
    from pipeline.errors import ConfigError

    for name, value in (("--data", data), ("--out", out)):
        if value:
            raise ConfigError(
                f"{name} goes with --features",
                hint="the configured run takes its test sets from [data] and writes to its artifacts folder",
            )


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    candidates = (name if i == 1 else f"{name}-{i}" for i in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def _tables_of(against: Path | None) -> Mapping[str, QueryTable]:
    from pipeline.evaluation.compare_runs import find_tables

    return {} if against is None else find_tables(against)


def _comparisons(
    tables: Mapping[str, QueryTable], before: Mapping[str, QueryTable], against: Path | None
) -> list[Comparison]:
    if against is None:
        return []
    from pipeline.errors import DataError
    from pipeline.evaluation.compare_runs import compare

    # A single result on both sides is meant, whatever the folders are called.
    pairs = {name: before.get(name) for name in tables}
    if len(before) == len(tables) == 1:
        pairs = dict(zip(tables, before.values(), strict=True))
    made = [compare(name, tables[name], other) for name, other in pairs.items() if other is not None]
    if not made:
        raise DataError(
            f"the earlier run has none of the test sets {', '.join(tables)}", where=against, expected=", ".join(before)
        )
    return made


def _draw(results: Mapping[str, dict[str, Any]], comparisons: list[Comparison]) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape

    from pipeline.evaluation import compare_runs
    from pipeline.evaluation.result import COLUMNS, INTERVAL_COLUMNS, breakdown_rows, interval_rows, table_rows

    parts: list[RenderableType] = [
        console.table(
            *COLUMNS, rows=[row for result in results.values() for row in table_rows(result)], title="In per cent"
        )
    ]
    if intervals := [row for result in results.values() for row in interval_rows(result)]:
        parts.append(console.table(*INTERVAL_COLUMNS, rows=intervals, title="Queries drawn anew"))
    for name, result in results.items():
        groups = breakdown_rows(result)
        if sum(row[0] == "cameras" for row in groups) > _CAMERA_PAIRS:
            groups = [row for row in groups if row[0] != "cameras"]
        if groups:
            title = f"{name}: by what the query shows (visible fraction: {result['protocol']['visible_fraction']})"
            heads = ("By", "Group", "Queries>", "Rank-1>", "mAP>", "mINP>")
            parts.append(console.table(*heads, rows=groups, title=escape(title)))
        if gain := result.get("gain"):
            parts.append(
                f"{escape(name)}: shared parts against visibility ignored: mAP {100 * gain['mean']:+.1f} "
                rf"\[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}], better for {gain['better']} queries, "
                f"worse for {gain['worse']}, equal for {gain['equal']}"
            )
        if rates := result.get("verification"):
            pairs = zip(rates["false_positive_rates"], rates["true_positive_rates"], strict=True)
            listed = ", ".join(f"{100 * true:.1f} % at {false:g}" for false, true in pairs)
            parts.append(
                f"{escape(name)}: true positive rate at a false positive rate: {listed} "
                f"({rates['genuine']:,} pairs of one person, {rates['impostors']:,} of two)"
            )
        parts += [f"note: {escape(note)}" for note in result["notes"]]
    if comparisons:
        rows = [row for comparison in comparisons for row in comparison.table_rows()]
        parts.append(console.table(*compare_runs.COLUMNS, rows=rows, title="Against the earlier run, query by query"))
        if missing := results.keys() - {comparison.test_set for comparison in comparisons}:
            parts.append(f"not in the earlier run: {escape(', '.join(sorted(missing)))}")
    return Group(*parts)
