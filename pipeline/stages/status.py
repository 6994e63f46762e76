"""What is there, what is not, and why what is there no longer fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import RunConfig
from pipeline.runtime.progress import SILENT, Progress
from pipeline.stages.graph import STAGES
from pipeline.stages.plan import plan
from pipeline.stages.stage import PlannedStage, Stage
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Manifest
from pipeline.store.store import ArtifactStore

StageState = Literal["fresh", "stale", "partial", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The state of one stage.

    Attributes:
        stage: Its name.
        state: `fresh`: there, as the configuration wants it; `partial`: begun; `stale`: there, but made from another
            configuration, other inputs, or something that was built anew since; `missing`; `broken`: its manifest
            cannot be read.
        reasons: Why it is not fresh.
        path: Its folder: of the artifact that is there, of the old one if stale, else where it will be.
        size: Bytes; 0 if missing.
        finished: When it was published, ISO 8601; None if it was not.
        seconds: What its making took.
    """

    stage: str
    state: StageState
    reasons: tuple[str, ...]
    path: Path
    size: int
    finished: str | None
    seconds: float | None


def status(config: RunConfig, *, progress: Progress = SILENT, stages: Sequence[Stage] = STAGES) -> list[StageStatus]:
    """The state of each stage that the configuration needs.

    Raises:
        UserError: An input is missing or cannot be read.
    """
    return status_of(plan(config, progress=progress, stages=stages), config)


def status_of(planned: Sequence[PlannedStage], config: RunConfig) -> list[StageStatus]:
    """The state of each stage of a plan."""
    store = ArtifactStore(config.artifacts)
    stored = store.list()
    return [_status(entry, store, stored, config.name) for entry in planned]


def _status(entry: PlannedStage, store: ArtifactStore, stored: Sequence[Artifact], name: str) -> StageStatus:
    artifact = entry.artifact
    stage = entry.stage.name
    if artifact.manifest is not None:
        manifest = artifact.manifest
        state: StageState = "fresh" if entry.fresh else "stale"
        return StageStatus(
            stage, state, entry.outdated, artifact.path, manifest.size, manifest.finished, manifest.seconds
        )
    if artifact.state == "incomplete":
        size = sum(file.stat().st_size for file in artifact.partial.rglob("*") if file.is_file())
        reason = f"being built by {artifact.owner}" if artifact.owner else "stopped; the next run goes on from here"
        return StageStatus(stage, "partial", (reason,), artifact.partial, size, None, None)
    if artifact.state == "broken":
        return StageStatus(stage, "broken", store.verify(artifact), artifact.path, 0, None, None)
    older = [other for other in stored if other.stage == stage and other.name == name and other.manifest is not None]
    if not older or older[-1].manifest is None:
        return StageStatus(stage, "missing", (), artifact.path, 0, None, None)
    newest, manifest = older[-1], older[-1].manifest
    reasons = changes(entry, manifest)
    return StageStatus(stage, "stale", reasons, newest.path, manifest.size, manifest.finished, manifest.seconds)


def changes(entry: PlannedStage, manifest: Manifest) -> tuple[str, ...]:
    """What differs between a planned stage and an artifact, one sentence each."""
    return tuple(map(str, manifest.provenance.diff(entry.provenance)))
