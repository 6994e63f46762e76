"""Doing what is missing, stage by stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import RunConfig, suggestion
from pipeline.errors import ArtifactError, ConfigError, DataError, Rejected, RejectedInputs, UserError
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.process_group import broadcast, process_group
from pipeline.runtime.progress import SILENT, Progress
from pipeline.stages.bodies import RESULT
from pipeline.stages.graph import STAGES
from pipeline.stages.plan import plan_sources
from pipeline.stages.sources import Sources
from pipeline.stages.stage import PlannedStage, Stage, StageContext, StageReport
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import read_manifest
from pipeline.store.store import ArtifactStore

Action = Literal["ran", "resumed", "reused"]

_REJECTED = "rejected.json"


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What became of a stage in a run.

    Attributes:
        stage: Its name.
        action: Whether it ran from the start, went on from an interrupted session, or was there.
        seconds: What it took now; 0 if it was there.
        path: Folder of its artifact.
        total: Inputs it was given, where it counts them.
        rejected: Inputs that it could not use.
    """

    stage: str
    action: Action
    seconds: float
    path: Path
    total: int = 0
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Attributes:
        stages: The stages in order, up to the last one asked for.
        seconds: Wall time of the whole run.
        results: What the `eval` stage found, None without one: `tests`, the content of each test set's
            `result.json` by its name, and the same as a table, `columns` and `rows`.
    """

    stages: tuple[StageOutcome, ...]
    seconds: float
    results: Mapping[str, Any] | None

    @property
    def idle(self) -> bool:
        """Nothing had to be done."""
        return all(outcome.action == "reused" for outcome in self.stages)

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """What training and extraction left out; masks that failed were allowed or ended the run."""
        return tuple(item for outcome in self._reading for item in outcome.rejected)

    @property
    def total(self) -> int:
        """Inputs of training and extraction together."""
        return sum(outcome.total for outcome in self._reading)

    @property
    def _reading(self) -> tuple[StageOutcome, ...]:
        return tuple(outcome for outcome in self.stages if outcome.stage in ("train", "extract"))


class StoppedRun(RejectedInputs):
    """A run that ended after its masks, because some could not be built; `report` is what it did."""

    def __init__(self, outcome: StageOutcome, report: RunReport) -> None:
        super().__init__(outcome.stage, outcome.rejected, total=outcome.total)
        self.report = report


def execute(
    config: RunConfig,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    force: bool = False,
    wait: bool = False,
    progress: Progress = SILENT,
    stages: Sequence[Stage] = STAGES,
) -> RunReport:
    """Run the stages whose artifacts are missing.

    Args:
        config: The configuration.
        from_stage: Do not touch the stages before this one; they must be there.
        until: Stop after this stage.
        force: Build the stages in that range anew, even those that are there.
        wait: Wait where another run builds the same artifact, instead of stopping.
        progress: Where to report to.
        stages: The stages; others than the real ones are for tests.

    Raises:
        ConfigError: `from_stage` or `until` is no stage of this run.
        ArtifactError: A stage before `from_stage` is missing, an artifact's manifest cannot be read (and `force` is
            off), or the store cannot be written.
        LockedError: Another run builds one of the artifacts, and `wait` is off.
        StoppedRun: Some masks could not be built, and `masks.allow_failed` is off. The others are published.
        DataError: Images or files changed while a stage read them.
        UserError: Whatever the stages find wrong.
    """
    with process_group() as ranks:
        if not ranks.is_main:
            return _follow(config, stages, progress)
        report = _execute(config, stages, from_stage, until, force=force, wait=wait, progress=progress)
        broadcast(report)
        return report


def _follow(config: RunConfig, stages: Sequence[Stage], progress: Progress) -> RunReport:
    """Work on the distributed stages of the run of rank 0."""
    message: Any
    while not isinstance(message := broadcast(None), RunReport):
        name, folder, artifacts = message
        stage = next(stage for stage in stages if stage.name == name)
        stage.build(StageContext(config, folder, Sources(config, progress, artifacts), progress))
    return message


def _execute(
    config: RunConfig,
    stages: Sequence[Stage],
    from_stage: str | None,
    until: str | None,
    *,
    force: bool,
    wait: bool,
    progress: Progress,
) -> RunReport:
    begun = time.monotonic()
    sources = Sources(config, progress)
    planned, chosen = _plan(config, sources, stages, from_stage, until, force=force)
    outcomes = []
    for number, entry in enumerate(planned[: chosen.stop]):
        if entry.fresh and (number < chosen.start or not force):
            outcome = _reuse(entry.stage.name, entry.artifact)
        else:
            outcome = _build(config, entry, sources, replace=force, wait=wait, progress=progress)
        outcomes.append(outcome)
        if outcome.rejected and not _may_go_on(outcome, config, progress):
            raise StoppedRun(outcome, RunReport(tuple(outcomes), time.monotonic() - begun, None))
    results = _results(outcomes)
    return RunReport(tuple(outcomes), time.monotonic() - begun, results)


def foresee(
    config: RunConfig,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> tuple[list[PlannedStage], frozenset[str]]:
    """The plan of a run, and the names of the stages that it would build.

    Raises:
        UserError: As `execute` before its first stage.
    """
    planned, chosen = _plan(config, Sources(config, progress), STAGES, from_stage, until, force=force)
    return planned, frozenset(entry.stage.name for entry in planned[chosen] if force or not entry.fresh)


def _plan(
    config: RunConfig,
    sources: Sources,
    stages: Sequence[Stage],
    from_stage: str | None,
    until: str | None,
    *,
    force: bool,
) -> tuple[list[PlannedStage], slice]:
    """All stages, and which of them a run is about, once nothing is known to keep it from beginning."""
    planned = plan_sources(config, sources, stages)
    chosen = stage_range([entry.stage.name for entry in planned], from_stage, until)
    for entry in planned[: chosen.start]:
        if not entry.fresh:
            state = "stale" if entry.outdated else entry.artifact.state
            raise _not_there(from_stage, entry.stage.name, state, entry.outdated, entry.artifact.path)
    for entry in planned[chosen]:
        if force or not entry.fresh:
            entry.stage.check(config, sources)
    return planned, chosen


def _not_there(from_stage: str | None, stage: str, state: str, reasons: Sequence[str], path: Path) -> ArtifactError:
    """The error of a run that is to begin at a stage although an earlier one is missing or out of date."""
    return ArtifactError(
        f"the run is to begin at {from_stage}, but {stage} is {state}"
        + (f" ({'; '.join(reasons)})" if reasons else ""),
        where=path,
        hint="run without --from; it does only what is missing",
    )


def stage_range(names: Sequence[str], from_stage: str | None, until: str | None) -> slice:
    """Which of the stages `names` a run is about.

    Raises:
        ConfigError: `from_stage` or `until` is not among them, or they are in the wrong order.
    """
    first = 0 if from_stage is None else _position(names, from_stage, "--from")
    last = len(names) - 1 if until is None else _position(names, until, "--until")
    if last < first:
        raise ConfigError(f"--until {until} comes before --from {from_stage}", expected=" -> ".join(names))
    return slice(first, last + 1)


def _position(names: Sequence[str], name: str, option: str) -> int:
    if name not in names:
        known = [stage.name for stage in STAGES]
        found = f"this configuration has no stage {name!r}" if name in known else f"there is no stage {name!r}"
        raise ConfigError(found, where=option, expected=" | ".join(names), hint=suggestion(name, names))
    return names.index(name)


def _build(
    config: RunConfig, entry: PlannedStage, sources: Sources, *, replace: bool, wait: bool, progress: Progress
) -> StageOutcome:
    stage = entry.stage
    store = ArtifactStore(config.artifacts)
    if entry.artifact.state == "broken" and not replace:
        read_manifest(entry.artifact.path)  # tells what is wrong with it
    begun = time.monotonic()
    report = StageReport()
    with store.build(
        stage.name,
        config.name,
        entry.provenance,
        built_from=_contents(entry, sources),
        wait=wait,
        replace=replace,
    ) as workspace:
        if workspace.published:
            progress.note(f"{stage.name}: another run has just finished it")
        else:
            if workspace.resumed:
                progress.note(f"{stage.name}: going on from where an earlier run was stopped")
            if stage.distributed:
                broadcast((stage.name, workspace.path, dict(sources.artifacts)))
            report = stage.build(StageContext(config, workspace.path, sources, progress))
            try:
                changed = _changed_inputs(entry, config, sources)
            except UserError:
                if report.rejected:
                    # The inputs may have been away for a while already: what was made of the rest is not to be kept.
                    workspace.discard()
                raise
            if changed:
                workspace.discard()
                raise DataError(
                    f"{', '.join(changed)} changed while {stage.name} was at work, so nobody knows what it is made of",
                    where=workspace.path,
                    hint="run again; it begins anew, with what is there then",
                )
            workspace.extra["figures"] = {**report.figures, **_peak_memory()}
            workspace.extra["config"] = config.model_dump(mode="json")
            if report.rejected:
                rows = [{"path": item.path, "reason": item.reason} for item in report.rejected]
                write_json(workspace.path / _REJECTED, {"total": report.total, "rejected": rows})
    artifact = store.open(stage.name, config.name, entry.fingerprint)
    sources.artifacts[stage.name] = (entry.fingerprint, artifact)
    if workspace.published:
        return _reuse(stage.name, artifact)
    return StageOutcome(
        stage=stage.name,
        action="resumed" if workspace.resumed else "ran",
        seconds=time.monotonic() - begun,
        path=artifact.path,
        total=report.total,
        rejected=report.rejected,
    )


def _contents(entry: PlannedStage, sources: Sources) -> dict[str, str]:
    """The contents of the artifacts that a stage reads."""
    manifests = {name: sources.artifacts[name][1].manifest for name in entry.upstream}
    return {name: manifest.content for name, manifest in manifests.items() if manifest is not None}


def _changed_inputs(entry: PlannedStage, config: RunConfig, sources: Sources) -> list[str]:
    """Names of the inputs that are no longer what the plan found."""
    # Opened anew; the stat cache makes it a second's work at most.
    again = entry.stage.inputs(config, Sources(config, SILENT, dict(sources.artifacts)))
    return sorted(name for name in {*again, *entry.inputs} if again.get(name) != entry.inputs.get(name))


def _reuse(stage: str, artifact: Artifact) -> StageOutcome:
    path = artifact.path / _REJECTED
    if not path.is_file():
        return StageOutcome(stage, "reused", 0.0, artifact.path)
    table = read_json(path)
    rejected = tuple(Rejected(**row) for row in table["rejected"])
    return StageOutcome(stage, "reused", 0.0, artifact.path, table["total"], rejected)


def _may_go_on(outcome: StageOutcome, config: RunConfig, progress: Progress) -> bool:
    """Warn of what was rejected. Masks that failed end a run unless they are allowed, also when they are reused."""
    counts = f"{outcome.stage}: {len(outcome.rejected)} of {outcome.total} inputs were rejected"
    if outcome.stage == "masks" and not config.masks.allow_failed:
        progress.warn(f"{counts}; to go on without them: --set masks.allow_failed=true")
        return False
    progress.warn(f"{counts}; they are listed in {outcome.path / _REJECTED}")
    return True


def _results(outcomes: Sequence[StageOutcome]) -> Mapping[str, Any] | None:
    path = next((outcome.path / RESULT for outcome in outcomes if outcome.stage == "eval"), None)
    if path is None:
        return None
    found: Mapping[str, Any] = read_json(path)
    return found


def _peak_memory() -> dict[str, float]:
    """The most memory in MB that this process has held, whatever it did before; empty where the system does not tell.

    Nothing is said of workers: Linux counts a child's parent as its own until it starts another program.
    """
    if sys.platform == "win32":
        return {}
    import resource

    # Linux counts in kilobytes, macOS in bytes.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return {"peak_memory_so_far_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
