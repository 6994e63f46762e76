"""`sgsfa report`: one page that shows what an evaluation found and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.evaluation.report import QUERIES
from sgsfa_cli import console
from sgsfa_cli.options import (
    ConfigOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SetOption,
    command_app,
    examples,
    load,
    warn_of_defaults,
)

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.evaluation.report.model import Report
    from pipeline.runtime.progress import Progress
    from pipeline.stages.report import ReportOptions

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa report --preset demo",
        "sgsfa report artifacts/eval/demo-1a2b3c4d --against artifacts/eval/demo-5e6f7a8b",
        "sgsfa report features.h5 --data market1501:/data/Market-1501 --checkpoint model.safetensors --out report.html",
        "sgsfa report features.h5 --data csv:dataset.csv --no-images",
    )
)
def report(
    *,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|FEATURES",
            help="An artifact of the stage eval, or a features file. Without it: the configured run.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="KIND:PATH", help="The images of a features file.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="FILE", help="The network of a features file, for part masks."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="RUN", help="Compare with an earlier result: its folder or result.json."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("report.html"),
    queries: Annotated[
        int, typer.Option("--queries", min=1, metavar="N", help="Queries to store: the worst and a spread of the rest.")
    ] = QUERIES,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Store thumbnails of the images in the page.")
    ] = True,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a report page: metrics, charts, a browser over queries, and why each ranked image came first.

    The page is a single file that needs no network. It holds thumbnails of the test images unless --no-images is set.
    """
    from pipeline.evaluation.report.page import save
    from pipeline.stages.report import ReportOptions

    settings = load(config, preset, overrides)
    progress = console.progress(quiet=quiet)
    options = ReportOptions(against, queries, images)
    if source is None or source.is_dir():
        _refuse_for_runs(data, checkpoint)
        if source is None:
            warn_of_defaults(settings, config, preset)
        page = _of_run(settings if source is None else _configuration(source), options, progress)
    else:
        page = _of_file(source, data, checkpoint, settings, options, progress)
    save(page, out)
    facts = {
        "report": out.as_posix(),
        "bytes": out.stat().st_size,
        "queries": {t.name: len(t.queries) for t in page.tests},
    }
    console.emit(facts, json=json, draw=lambda: f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def _of_run(settings: RunConfig, options: ReportOptions, progress: Progress) -> Report:
    from pipeline.stages.report import report_of_run
    from pipeline.stages.run import run_stages

    run_stages(settings, until="eval", progress=progress)
    return report_of_run(settings, options=options, progress=progress)


def _of_file(
    path: Path,
    data: str | None,
    checkpoint: Path | None,
    settings: RunConfig,
    options: ReportOptions,
    progress: Progress,
) -> Report:
    from pipeline.datasets.registry import open_dataset
    from pipeline.stages.report import Evaluated, build_report

    dataset = None if data is None else open_dataset(data, expect_counts=settings.data.expect_counts)
    return build_report(
        [Evaluated(path, dataset)],
        config=settings.matching,
        checkpoint=checkpoint,
        options=options,
        title=f"Evaluation of {path.name}",
        progress=progress,
    )


def _configuration(folder: Path) -> RunConfig:
    """Return the configuration of a finished run."""
    from pipeline.config import RunConfig
    from pipeline.store.manifest import read_manifest

    return RunConfig.model_validate(read_manifest(folder).extra["config"])


def _refuse_for_runs(data: str | None, checkpoint: Path | None) -> None:
    from pipeline.errors import ConfigError

    for name, value in (("--data", data), ("--checkpoint", checkpoint)):
        if value is not None:
            raise ConfigError(f"{name} needs a features file", hint="a run names its own data and checkpoint")
