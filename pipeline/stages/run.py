"""Execution of a plan, stage by stage."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import RunConfig
from pipeline.errors import DataError, Rejected, RejectedInputs, UserError
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.process_group import broadcast, process_group
from pipeline.runtime.progress import SILENT, Progress
from pipeline.stages.plan import STAGES, Plan, PlannedStage, failures, make_plan
from pipeline.stages.sources import Sources
from pipeline.stages.stage import Stage, StageReport
from pipeline.store.manifest import UnusableManifestError, read_manifest
from pipeline.store.store import ArtifactStore
from pipeline.store.workspace import Workspace

log = logging.getLogger("sgsfa.run")

Action = Literal["ran", "resumed", "reused"]

REJECTED_FILE = "rejected.json"


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """Outcome of a stage in a run.

    Attributes:
        action: Whether it ran from the start, resumed an interrupted run, or was up to date.
        seconds: Duration of this run; 0 if it was up to date.
        path: Folder of its artifact.
        total: Number of its inputs, where it counts them.
        rejected: Inputs that it could not use.
        allowed: Whether rejected inputs of this stage are accepted.
    """

    stage: str
    action: Action
    seconds: float
    path: Path
    total: int = 0
    rejected: tuple[Rejected, ...] = ()
    allowed: bool = False


@dataclass(frozen=True, slots=True)
class RunReport:
    """Outcome of a run.

    Attributes:
        stages: In order, up to the last one asked for.
        results: Content of the last stage's result file, None if it has none.
        stopped_by: Configuration key that would accept the rejected inputs after which the run stopped.
    """

    stages: tuple[StageOutcome, ...]
    seconds: float = 0.0
    results: Mapping[str, Any] | None = None
    stopped_by: str | None = None

    @property
    def idle(self) -> bool:
        """Whether everything was up to date."""
        return all(outcome.action == "reused" for outcome in self.stages)

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Rejected inputs that were not allowed."""
        return tuple(item for outcome in self.stages if not outcome.allowed for item in outcome.rejected)

    @property
    def total(self) -> int:
        """Number of inputs of the stages that count them and do not allow rejected ones."""
        return sum(outcome.total for outcome in self.stages if not outcome.allowed)


class StoppedRun(RejectedInputs):
    """A run that stopped after a stage that rejected inputs; `report` is its outcome so far."""

    def __init__(self, report: RunReport) -> None:
        last = report.stages[-1]
        super().__init__(last.stage, last.rejected, total=last.total)
        self.report = report
        self.hint = f"to continue without them, set {report.stopped_by}=true"


def run_stages(
    config: RunConfig,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    force: bool | str = False,
    wait: bool = False,
    progress: Progress = SILENT,
    stages: Sequence[type[Stage]] = STAGES,
) -> RunReport:
    """Run the stages that are not up to date. See `make_plan` for the range of stages.

    Args:
        config: The configuration.
        from_stage: First stage that may run.
        until: Last stage of the run.
        force: Run all stages of that range, or the one of this name, even if they are up to date.
        wait: Wait while another run builds the same artifact, instead of raising an error.
        progress: Shows the work.
        stages: All stages, in order.

    Raises:
        LockedError: Another run builds one of the artifacts, and `wait` is off.
        StoppedRun: A stage rejected inputs that are not allowed. Its artifact is published.
        DataError: Inputs changed while a stage read them.
        UserError: A check failed, a stage cannot do its work, or as for `make_plan`.
    """
    started = time.monotonic()
    with process_group() as ranks:
        if ranks.is_main:
            plan = make_plan(config, from_stage=from_stage, until=until, force=force, progress=progress, stages=stages)
            if (error := failures(plan.check())) is not None:
                raise error
            report = _execute(plan, force=force, wait=wait)
            report = broadcast(dataclasses.replace(report, seconds=time.monotonic() - started))
        else:
            report = _follow(config, stages, progress)
    if report.stopped_by is not None:
        raise StoppedRun(report)
    return report


def _execute(plan: Plan, *, force: bool | str, wait: bool) -> RunReport:
    outcomes: list[StageOutcome] = []
    for entry in plan.selected:
        if entry.will_run:
            outcome = _build(plan, entry, replace=force in (True, entry.name), wait=wait)
        else:
            outcome = _reused(entry, entry.artifact.path)
        outcomes.append(outcome)
        if outcome.rejected:
            counts = f"{len(outcome.rejected)} of {outcome.total} inputs rejected"
            log.warning("%s: %s, see %s", outcome.stage, counts, outcome.path / REJECTED_FILE)
            if entry.stage.allow_key and not outcome.allowed:
                return RunReport(tuple(outcomes), stopped_by=entry.stage.allow_key)
    file = plan.selected[-1].stage.result_file
    results = None if file is None else read_json(outcomes[-1].path / file)
    return RunReport(tuple(outcomes), results=results)


def _build(plan: Plan, entry: PlannedStage, *, replace: bool, wait: bool) -> StageOutcome:
    started = time.monotonic()
    store = ArtifactStore(plan.config.artifacts)
    if isinstance(entry.artifact.fault, UnusableManifestError):
        raise entry.artifact.fault  # a rebuild would replace it
    name, provenance, folders = entry.name, entry.provenance, plan.sources.folders
    built_from = {upstream: read_manifest(folders[upstream]).content for upstream in entry.stage.requires()}
    with store.build(
        name, plan.config.name, provenance, built_from=built_from, wait=wait, replace=replace
    ) as workspace:
        if workspace.published:
            log.info("%s: already finished", name)
        else:
            report = _work(plan, entry, workspace)
    path = store.open(name, plan.config.name, provenance.fingerprint()).path
    folders[name] = path
    if workspace.published:
        return _reused(entry, path)
    return StageOutcome(
        stage=name,
        action="resumed" if workspace.resumed else "ran",
        seconds=time.monotonic() - started,
        path=path,
        total=report.total,
        rejected=report.rejected,
        allowed=entry.stage.allows_rejected,
    )


def _work(plan: Plan, entry: PlannedStage, workspace: Workspace) -> StageReport:
    if workspace.resumed:
        log.info("%s: resuming an interrupted run", entry.name)
    elif entry.previous is not None:
        hint = f"; {entry.stage.continue_key} continues from earlier weights" if entry.stage.continue_key else ""
        why = f"{'; '.join(entry.reasons)}{hint}"
        log.info("%s: starting from scratch instead of continuing %s (%s)", entry.name, entry.path, why)
    if entry.stage.distributed:
        broadcast((entry.name, workspace.path, dict(plan.sources.folders)))
    report = entry.stage.run(workspace.path, plan.sources.progress)
    _require_unchanged(entry, workspace, report)
    workspace.extra["config"] = plan.config.model_dump(mode="json")
    workspace.extra["figures"] = {**report.figures, **_peak_memory()}
    if report.rejected:
        rows = [{"path": item.path, "reason": item.reason} for item in report.rejected]
        write_json(workspace.path / REJECTED_FILE, {"total": report.total, "rejected": rows})
    return report


def _follow(config: RunConfig, stages: Sequence[type[Stage]], progress: Progress) -> RunReport:
    """Run the distributed stages of the run of rank 0."""
    nothing: Any = None
    while not isinstance(message := broadcast(nothing), RunReport):
        name, folder, folders = message
        kind = next(stage for stage in stages if stage.name == name)
        kind(config, Sources(config, progress, folders=folders)).run(folder, progress)
    return message


def _require_unchanged(entry: PlannedStage, workspace: Workspace, report: StageReport) -> None:
    """Check that the inputs are still those of the plan; nothing is kept that was built from others."""
    stage = type(entry.stage)(entry.stage.config, entry.stage.sources.reopened())
    try:
        # The cache of file times makes this fast.
        changed = entry.provenance.diff(stage.provenance())
    except UserError:
        if report.rejected:
            workspace.discard()  # they may have been unreadable because the inputs were already gone
        raise
    if changed:
        workspace.discard()
        raise DataError(
            f"{', '.join(each.key for each in changed)} changed while {entry.name} was running",
            where=workspace.path,
            hint="run again; the stage starts from scratch",
        )


def _reused(entry: PlannedStage, path: Path) -> StageOutcome:
    listed = path / REJECTED_FILE
    table: Any = read_json(listed) if listed.is_file() else {"total": 0, "rejected": []}
    rejected = tuple(Rejected(**row) for row in table["rejected"])
    return StageOutcome(entry.name, "reused", 0.0, path, table["total"], rejected, entry.stage.allows_rejected)


def _peak_memory() -> dict[str, float]:
    """Return the peak memory of this process in MB; empty on Windows.

    Workers are left out: Linux counts the memory of a child's parent as its own until it starts another program.
    """
    if sys.platform == "win32":
        return {}
    import resource

    # Linux counts in kilobytes, macOS in bytes.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return {"peak_memory_so_far_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
