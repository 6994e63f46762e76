"""`sgsfa run`: all stages, from images to metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgsfa_cli import console, errors
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
from sgsfa_cli.tables import draw_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.stages.plan import Plan
    from pipeline.stages.run import RunReport
    from pipeline.stages.stage import CheckResult

app = command_app()

_ACTIONS = {"ran": "finished", "resumed": "resumed and finished", "reused": "up to date"}


@app.command(
    epilog=examples(
        "sgsfa run --preset demo",
        "sgsfa run --preset strong --set data.source=market1501:/data/Market-1501 --dry-run",
        "sgsfa run -c sgsfa.toml --set train.epochs=60",
        "sgsfa run --from eval --set matching.rule=mean",
    )
)
def run(
    *,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    from_stage: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Start at this stage; those before it must be up to date."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the stages even if they are up to date.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which stages would run and the result of every check; run nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait while another run builds the same artifact, instead of stopping.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run all stages, from images to metrics; only those that are missing or stale run.

    The stages are synth (rendered images, where data.source is `rendered`), masks, train, extract and eval. Each
    publishes an artifact: a folder with a manifest of what it was built from. An interrupted run, even a killed one,
    resumes when the same command is given again. Everything that can be checked in seconds is checked before the
    first stage starts.
    """
    settings = load(config, preset, overrides)
    progress = console.progress(quiet=quiet)
    warn_of_defaults(settings, config, preset)
    selection: dict[str, Any] = {"from_stage": from_stage, "until": until, "force": force, "progress": progress}
    if dry_run:
        from pipeline.stages.plan import make_plan

        _show_plan(make_plan(settings, **selection), json=json)
        return

    from pipeline.errors import RejectedInputs
    from pipeline.stages.run import StoppedRun, run_stages

    rejected: RejectedInputs | None = None
    try:
        report = run_stages(settings, wait=wait, **selection)
        if report.rejected:
            rejected = RejectedInputs("run", report.rejected, total=report.total)
    except StoppedRun as stopped:
        report, rejected = stopped.report, stopped
    stopped_early = isinstance(rejected, StoppedRun)
    console.emit(_as_data(report), json=json, draw=lambda: _draw(report, stopped=stopped_early))
    if rejected is not None:
        raise rejected


def _show_plan(plan: Plan, *, json: bool) -> None:
    from pipeline.stages.plan import failures

    checks = plan.check()
    error = failures(checks)
    data: dict[str, Any] = {
        "stages": [
            {"stage": entry.name, "would_run": entry.will_run, "state": entry.state, "reasons": entry.reasons}
            for entry in plan.stages
        ],
        "checks": [
            {"stage": check.stage, "check": check.what, "ok": check.error is None, "result": _result(check)}
            for check in checks
        ],
    }
    if error is not None:
        data |= errors.as_json(error.message, error.details(), error.exit_code)
    console.emit(data, json=json, draw=lambda: _draw_plan(plan, checks))
    if error is not None:
        raise error


def _result(check: CheckResult) -> str:
    return check.detail if check.error is None else check.error.message


def _draw_plan(plan: Plan, checks: list[CheckResult]) -> RenderableType:
    from rich.console import Group

    stages = [
        (entry.name, "would run" if entry.will_run else "-", entry.state, "; ".join(entry.reasons), entry.path)
        for entry in plan.stages
    ]
    parts: list[RenderableType] = [console.table("Stage", "Plan", "State", "Why", "Path", rows=stages)]
    if checks:
        rows = [
            (check.stage, check.what, "ok" if check.error is None else "failed", _result(check)) for check in checks
        ]
        parts.append(console.table("Stage", "Check", "", "Result", rows=rows))
    return Group(*parts)


def _as_data(report: RunReport) -> dict[str, Any]:
    return {"idle": report.idle, **console.plain(report)}


def _draw(report: RunReport, *, stopped: bool) -> RenderableType:
    from rich.console import Group

    rows = [
        (
            outcome.stage,
            _ACTIONS[outcome.action],
            console.duration(outcome.seconds) if outcome.action != "reused" else "-",
            f"{len(outcome.rejected)} of {outcome.total}" if outcome.rejected else "-",
            outcome.path,
        )
        for outcome in report.stages
    ]
    parts: list[RenderableType] = [console.table("Stage", "State", "Time>", "Rejected>", "Path", rows=rows)]
    if report.results is not None:
        from pipeline.formats.results import parse_results, results_table

        parts.append(draw_table(results_table(list(parse_results(report.results).values()))))
    took = console.duration(report.seconds)
    if stopped:
        parts.append(f"Stopped after {report.stages[-1].stage} ({took}).")
    else:
        parts.append(f"Everything is up to date ({took})." if report.idle else f"Finished in {took}.")
    return Group(*parts)
