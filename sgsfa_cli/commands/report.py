"""`sgsfa report`: one page that shows what an evaluation found and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import AgainstOption, command, command_app, refuse, warn_of_defaults

if TYPE_CHECKING:
    from pipeline.config import RunConfig

app = command_app()


@command(
    app,
    "sgsfa report --preset demo",
    "sgsfa report artifacts/eval/demo-1a2b3c4d --against artifacts/eval/demo-5e6f7a8b",
    "sgsfa report features.h5 --data market1501:/data/Market-1501 --checkpoint model.safetensors --out report.html",
    "sgsfa report features.h5 --data csv:dataset.csv --no-images",
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
        typer.Option(metavar="FILE", help="The network of a features file, for part masks."),
    ] = None,
    against: AgainstOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("report.html"),
    queries: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Queries to store: the worst and a spread of the rest; default 200."),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Store thumbnails of the images in the page.")
    ] = True,
    settings: RunConfig,
) -> None:
    """Write a report page: metrics, charts, a browser over queries, and why each ranked image came first.

    The page is a single file that needs no network. It holds thumbnails of the test images unless --no-images is set.
    """
    from pipeline.config import RunConfig
    from pipeline.datasets.registry import open_dataset
    from pipeline.evaluation.report import QUERIES
    from pipeline.evaluation.report.page import save
    from pipeline.stages.report import Evaluated, ReportOptions, build_report, report_of_run
    from pipeline.stages.run import run_stages
    from pipeline.store.manifest import read_manifest

    options = ReportOptions(against, queries or QUERIES, images)
    if source is None or source.is_dir():
        given = {"--data": data, "--checkpoint": checkpoint}
        refuse(given, "a features file", hint="a run names its own data and checkpoint")
        if source is None:
            warn_of_defaults(settings)
        else:
            settings = RunConfig.model_validate(read_manifest(source).extra["config"])
        run_stages(settings, until="eval", progress=console.progress())
        page = report_of_run(settings, options=options, progress=console.progress())
    else:
        dataset = None if data is None else open_dataset(data, expect_counts=settings.data.expect_counts)
        page = build_report(
            [Evaluated(source, dataset)],
            config=settings.matching,
            checkpoint=checkpoint,
            options=options,
            title=f"Evaluation of {source.name}",
            progress=console.progress(),
        )
    save(page, out)
    size = out.stat().st_size
    console.emit(
        {"report": out.as_posix(), "bytes": size, "queries": {test.name: len(test.queries) for test in page.tests}},
        lambda: [f"{out}: {size / 1e6:.1f} MB"],
    )
