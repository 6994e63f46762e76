"""The plan of a run: the stages it needs, the state of each and why, and which of them would run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pipeline.config import RunConfig, suggestion
from pipeline.errors import ArtifactError, ConfigError, UserError, combine
from pipeline.formats.provenance import Provenance
from pipeline.runtime.progress import SILENT, Progress
from pipeline.stages.checks import check_disk
from pipeline.stages.evaluate import Evaluate
from pipeline.stages.extract import Extract
from pipeline.stages.masks import Masks
from pipeline.stages.sources import Sources
from pipeline.stages.stage import Check, CheckResult, Stage
from pipeline.stages.synth import Synth
from pipeline.stages.train import Train
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Manifest
from pipeline.store.store import ArtifactStore

STAGES: tuple[type[Stage], ...] = (Synth, Masks, Train, Extract, Evaluate)
"""All stages, in order."""

STAGE_NAMES = tuple(stage.name for stage in STAGES)

StageState = Literal["up to date", "stale", "incomplete", "missing"]


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a run and the state of its artifact.

    Attributes:
        provenance: Everything that decides its output.
        artifact: Its artifact, whether finished or not.
        state: `up to date`: finished, as the configuration wants it; `stale`: finished, but from other settings or
            inputs; `incomplete`: interrupted or being built; `missing`.
        reasons: Why it is not up to date, one phrase each.
        previous: The latest artifact of other settings or inputs, from which `reasons` of a stale stage are found.
        will_run: Whether the run executes it.
    """

    stage: Stage
    provenance: Provenance
    artifact: Artifact
    state: StageState
    reasons: tuple[str, ...]
    will_run: bool
    previous: Artifact | None = None

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.stage.name

    @property
    def path(self) -> Path:
        """Folder of the artifact; of the previous one, if there is only that."""
        return (self.previous or self.artifact).folder

    @property
    def manifest(self) -> Manifest | None:
        """Manifest of the artifact in `path`."""
        return (self.previous or self.artifact).manifest


@dataclass(frozen=True)
class Plan:
    """All stages that a configuration needs, in order; a run ends after the stage `last`."""

    config: RunConfig
    sources: Sources
    stages: tuple[PlannedStage, ...]
    last: str

    @cached_property
    def selected(self) -> tuple[PlannedStage, ...]:
        """The stages up to the last one of the run."""
        return self.stages[: [entry.name for entry in self.stages].index(self.last) + 1]

    @property
    def pending(self) -> tuple[PlannedStage, ...]:
        """The stages that the run executes."""
        return tuple(entry for entry in self.stages if entry.will_run)

    def check(self) -> list[CheckResult]:
        """Verify what can be verified before the first stage runs, for all stages that the run executes."""
        with _without_log():
            results = [_verify(entry.name, check) for entry in self.pending for check in entry.stage.checks()]
            if self.pending and not any(result.error for result in results):
                size = sum(entry.stage.disk_bytes() for entry in self.pending)
                results.append(_verify("all", Check("disk space", lambda: check_disk(self.config.artifacts, size))))
        return results


def make_plan(
    config: RunConfig,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    force: bool | str = False,
    progress: Progress = SILENT,
    stages: Sequence[type[Stage]] = STAGES,
) -> Plan:
    """Plan a run; nothing is built.

    The contents of images are hashed the first time, and looked up in a cache of file times after that.

    Args:
        config: The configuration.
        from_stage: First stage that may run; those before it must be up to date.
        until: Last stage of the run.
        force: Run all stages of that range, or the one of this name, even if they are up to date.
        progress: Shows the hashing of many images.
        stages: All stages in order, of which the last one decides what is needed.

    Raises:
        ConfigError: `from_stage` or `until` is not a stage of this run, or they are in the wrong order.
        ArtifactError: A stage before `from_stage` is not up to date.
        UserError: An input is missing or cannot be read.
    """
    sources = Sources(config, progress)
    wanted = required_stages([kind(config, sources) for kind in stages])
    names = [stage.name for stage in wanted]
    start = 0 if from_stage is None else _position(names, from_stage)
    stop = len(names) if until is None else _position(names, until) + 1
    if stop <= start:
        raise ConfigError(f"stage {until} comes before {from_stage}", expected=" -> ".join(names))
    planned: list[PlannedStage] = []
    store = ArtifactStore(config.artifacts)
    for number, stage in enumerate(wanted):
        entry = _planned(stage, store, planned, selected=start <= number < stop, force=force in (True, stage.name))
        if number < start and entry.state != "up to date":
            reasons = f" ({'; '.join(entry.reasons)})" if entry.reasons else ""
            raise ArtifactError(
                f"cannot start at {from_stage}: {entry.name} is {entry.state}{reasons}",
                where=entry.path,
                hint="run from the first stage; only what is needed runs",
            )
        planned.append(entry)
    return Plan(config, sources, tuple(planned), wanted[stop - 1].name)


def required_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return those of all stages that the last one needs, directly or through others, in order."""
    names = {stages[-1].name}
    for stage in reversed(stages):
        if stage.name in names:
            names.update(stage.requires())
    return tuple(stage for stage in stages if stage.name in names)


def failures(results: Sequence[CheckResult]) -> UserError | None:
    """Return one error for all failed checks, or None."""
    errors = [result.error for result in results if result.error is not None]
    return combine(errors, "checks failed") if errors else None


def _planned(
    stage: Stage, store: ArtifactStore, earlier: Sequence[PlannedStage], *, selected: bool, force: bool
) -> PlannedStage:
    provenance = stage.provenance()
    artifact = store.open(stage.name, stage.config.name, provenance.fingerprint())
    upstream = [entry for entry in earlier if entry.name in stage.requires()]
    state, reasons = _state(artifact, upstream)
    previous = _previous(artifact, store) if state == "missing" else None
    if previous is not None and previous.manifest is not None:
        state, reasons = "stale", tuple(map(str, previous.manifest.provenance.diff(provenance)))
    stage.sources.fingerprints[stage.name] = provenance.fingerprint()
    if state == "up to date":
        stage.sources.folders[stage.name] = artifact.path
    will_run = selected and (force or state != "up to date")
    return PlannedStage(stage, provenance, artifact, state, reasons, will_run, previous)


def _state(artifact: Artifact, upstream: Sequence[PlannedStage]) -> tuple[StageState, tuple[str, ...]]:
    if artifact.manifest is not None:
        rebuilt = tuple(_changed(artifact.manifest, upstream))
        return ("stale" if rebuilt else "up to date"), rebuilt
    if artifact.state == "incomplete":
        owner = f"being built by {artifact.owner}" if artifact.owner else "interrupted; the next run resumes it"
        return "incomplete", (owner,)
    if artifact.fault is not None:
        return "stale", (artifact.fault.message,)
    return "missing", ()


def _previous(artifact: Artifact, store: ArtifactStore) -> Artifact | None:
    """Return the latest finished artifact of the same stage and run."""
    found = [other for other in store.list() if (other.stage, other.name) == (artifact.stage, artifact.name)]
    return next((other for other in reversed(found) if other.manifest is not None), None)


def _changed(manifest: Manifest, upstream: Sequence[PlannedStage]) -> Iterator[str]:
    """Yield which upstream artifacts are not those that an artifact was built from, although their record is equal."""
    for entry in upstream:
        current = entry.artifact.manifest
        if entry.state != "up to date" or current is None:
            yield f"{entry.name} is {entry.state}"
        elif current.content != manifest.built_from.get(entry.name):
            yield f"{entry.name} was rebuilt with another result"


def _verify(stage: str, check: Check) -> CheckResult:
    try:
        return CheckResult(stage, check.what, check.run())
    except UserError as error:
        return CheckResult(stage, check.what, error=error)


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Drop the notes and warnings of checks, which the stages repeat."""
    logger = logging.getLogger("sgsfa")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _position(names: Sequence[str], name: str) -> int:
    if name not in names:
        message = f"stage {name!r} is not part of this run" if name in STAGE_NAMES else f"unknown stage {name!r}"
        raise ConfigError(message, expected=" | ".join(names), hint=suggestion(name, names))
    return names.index(name)
