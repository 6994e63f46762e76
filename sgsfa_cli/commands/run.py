"""`sgsfa run`: all stages, from images to metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    from rich.console import RenderableType

    from pipeline.stages.execute import RunReport
    from pipeline.stages.status import StageStatus

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa run --preset demo",
        "sgsfa run -c sgsfa.toml --set train.epochs=60",
        "sgsfa run --from eval --set matching.rule=mean",
        "sgsfa run --preset strong --set data.source=market1501:/data/Market-1501 --until masks",
    )
)
def run(
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    from_stage: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Begin at this stage; those before it must be there."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build the stages anew, even those that are there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait where another run builds the same thing, instead of stopping.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run all stages, from images to metrics; only what is missing or out of date is done.

    The stages are synth (rendered people, where data.source is `rendered`), masks, train, extract and eval. Each
    leaves an artifact: a folder that says what it was made from. A stopped run, even a killed one, goes on where it
    was when the same command is given again.
    """
    settings = load(config, preset, overrides)
    progress = console.progress(quiet=quiet)
    warn_of_defaults(settings, config, preset, progress)
    if dry_run:
        from pipeline.stages.execute import foresee
        from pipeline.stages.status import status_of

        planned, work = foresee(settings, from_stage=from_stage, until=until, force=force, progress=progress)
        states = status_of(planned, settings)
        console.emit(
            {
                "stages": [
                    {"stage": each.stage, "would_run": each.stage in work, "state": each.state} for each in states
                ]
            },
            json=json,
            draw=lambda: _draw_plan(states, work),
        )
        return

    from pipeline.errors import RejectedInputs
    from pipeline.stages.execute import StoppedRun, execute

    rejected: RejectedInputs | None = None
    try:
        report = execute(settings, from_stage=from_stage, until=until, force=force, wait=wait, progress=progress)
        if report.rejected:
            rejected = RejectedInputs("run", report.rejected, total=report.total)
    except StoppedRun as stopped:
        report, rejected = stopped.report, stopped
    console.emit(_as_data(report), json=json, draw=lambda: _draw(report, stopped=isinstance(rejected, StoppedRun)))
    if rejected is not None:
        raise rejected


def _draw_plan(states: list[StageStatus], work: frozenset[str]) -> RenderableType:
    rows = [
        (state.stage, "would run" if state.stage in work else "-", state.state, "; ".join(state.reasons), state.path)
        for state in states
    ]
    return console.table("Stage", "Plan", "State", "Why", "Where", rows=rows)


def _as_data(report: RunReport) -> dict[str, Any]:
    return {"idle": report.idle, **console.plain(report)}


def _draw(report: RunReport, *, stopped: bool) -> RenderableType:
    from rich.console import Group

    done = {"ran": "done", "resumed": "resumed and done", "reused": "already there"}
    rows = [
        (
            outcome.stage,
            done[outcome.action],
            console.duration(outcome.seconds) if outcome.action != "reused" else "-",
            f"{len(outcome.rejected)} of {outcome.total}" if outcome.rejected else "-",
            outcome.path,
        )
        for outcome in report.stages
    ]
    parts: list[RenderableType] = [console.table("Stage", "", "Time>", "Rejected>", "Where", rows=rows)]
    if report.results is not None:
        parts.append(console.table(*report.results["columns"], rows=report.results["rows"]))
    took = console.duration(report.seconds)
    if stopped:
        parts.append(f"Stopped after {report.stages[-1].stage} ({took}).")
    else:
        parts.append(f"Nothing to do: all is up to date ({took})." if report.idle else f"Finished in {took}.")
    return Group(*parts)
