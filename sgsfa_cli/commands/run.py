"""`sgsfa run`: all stages, from images to metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgsfa_cli import console
from sgsfa_cli.options import command, command_app, run_until, warn_of_defaults
from sgsfa_cli.tables import draw_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import RunConfig
    from pipeline.errors import RejectedInputs, UserError
    from pipeline.stages.plan import Plan
    from pipeline.stages.run import RunReport
    from pipeline.stages.stage import CheckResult

app = command_app()

_ACTIONS = {"ran": "finished", "resumed": "resumed and finished", "reused": "up to date"}


@command(
    app,
    "sgsfa run --preset demo",
    "sgsfa run --preset strong --set data.source=market1501:/data/Market-1501 --dry-run",
    "sgsfa run -c sgsfa.toml --set train.epochs=60",
    "sgsfa run --from eval --set matching.rule=mean",
)
def run(
    *,
    from_stage: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Start at this stage; those before it must be up to date."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the stages even if they are up to date.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which stages would run and the result of every check; run nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait while another run builds the same artifact, instead of stopping.")
    ] = False,
    settings: RunConfig,
) -> RejectedInputs | UserError | None:
    """Run all stages, from images to metrics; only those that are missing or stale run.

    The stages are synth (rendered images, where data.source is `rendered`), masks, train, extract and eval. Each
    publishes an artifact: a folder with a manifest of what it was built from. An interrupted run, even a killed one,
    resumes when the same command is given again. Everything that can be checked in seconds is checked before the
    first stage starts.
    """
    from pipeline.stages.plan import failures, make_plan

    if dry_run:
        warn_of_defaults(settings)
        plan = make_plan(settings, from_stage=from_stage, until=until, force=force, progress=console.progress())
        checks = plan.check()
        error = failures(checks)
        console.emit(_plan_as_data(plan, checks, error), lambda: _draw_plan(plan, checks))
        return error
    report, rejected = run_until(settings, until, allow_stopped=True, from_stage=from_stage, force=force, wait=wait)
    console.emit({"idle": report.idle, **console.plain(report)}, lambda: _draw(report))
    return rejected


def _plan_as_data(plan: Plan, checks: Sequence[CheckResult], error: UserError | None) -> dict[str, Any]:
    return {
        "stages": [
            {"stage": entry.name, "would_run": entry.will_run, "state": entry.state, "reasons": entry.reasons}
            for entry in plan.stages
        ],
        "checks": [
            {"stage": check.stage, "check": check.what, "ok": check.error is None, "result": _result(check)}
            for check in checks
        ],
    } | ({} if error is None else console.error_as_json(error.message, error.details(), error.exit_code))


def _result(check: CheckResult) -> str:
    return check.detail if check.error is None else check.error.message


def _draw_plan(plan: Plan, checks: Sequence[CheckResult]) -> console.Drawn:
    stages = [
        (entry.name, "would run" if entry.will_run else "-", entry.state, "; ".join(entry.reasons), entry.path)
        for entry in plan.stages
    ]
    rows = [(check.stage, check.what, "ok" if check.error is None else "failed", _result(check)) for check in checks]
    found = [console.table("Stage", "Check", "", "Result", rows=rows)] if rows else []
    return [console.table("Stage", "Plan", "State", "Why", "Path", rows=stages), *found]


def _draw(report: RunReport) -> console.Drawn:
    from pipeline.formats.results import parse_results, results_table

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
    parts = [console.table("Stage", "State", "Time>", "Rejected>", "Path", rows=rows)]
    if report.results is not None:
        parts.append(draw_table(results_table(list(parse_results(report.results).values()))))
    took = console.duration(report.seconds)
    if report.stopped_by is not None:
        return [*parts, f"Stopped after {report.stages[-1].stage} ({took})."]
    return [*parts, f"Everything is up to date ({took})." if report.idle else f"Finished in {took}."]
