"""What a stage is, what it is given, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import Rejected
from pipeline.formats.provenance import Provenance
from pipeline.runtime.progress import Progress
from pipeline.stages.sources import Sources
from pipeline.store.artifact import Artifact


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage's body works with.

    Attributes:
        config: The whole configuration.
        out: Folder to write into; it holds what an interrupted session left.
        sources: Data sets and the artifacts of earlier stages.
        progress: Where to report to.
    """

    config: RunConfig
    out: Path
    sources: Sources
    progress: Progress


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a stage's body tells.

    Attributes:
        total: Inputs it was given.
        rejected: Those it could not use.
        figures: Numbers worth keeping in the manifest (rates, counts).
    """

    total: int = 0
    rejected: tuple[Rejected, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step from images to metrics.

    Attributes:
        name: Its name on the command line and its folder in the store.
        format_version: Raised when the same inputs would give other files.
        decisive: What it reads of the configuration, by dotted key, as JSON values.
        inputs: Fingerprints of what it reads besides, by a name for people.
        build: Its body.
        check: Looks whether it can do its work (data sets, devices, the network), before hours of the stages before it.
        distributed: Its body runs in all processes that torchrun started; other stages run in rank 0 alone.
    """

    name: str
    format_version: int
    decisive: Callable[[RunConfig], Mapping[str, Any]]
    inputs: Callable[[RunConfig, Sources], Mapping[str, str]]
    build: Callable[[StageContext], StageReport]
    check: Callable[[RunConfig, Sources], None] = lambda config, sources: None
    distributed: bool = False


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of one run, with everything that decides what it makes.

    Attributes:
        stage: The stage.
        fingerprint: Over `decisive`, `inputs` and the stage's format version.
        decisive: As the stage gave it.
        inputs: As the stage gave it.
        artifact: What it makes, there or not.
        upstream: Names of the earlier stages whose artifacts it reads.
        outdated: Why an artifact that is there does no longer count: one that it was made from was built anew, or
            is going to be.
    """

    stage: Stage
    fingerprint: str
    decisive: Mapping[str, Any]
    inputs: Mapping[str, str]
    artifact: Artifact
    upstream: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()

    @property
    def provenance(self) -> Provenance:
        """Everything that decides what it makes."""
        return stage_provenance(self.stage, self.decisive, self.inputs)

    @property
    def fresh(self) -> bool:
        """Its artifact is there and can be used as it is."""
        return self.artifact.state == "complete" and not self.outdated


def stage_provenance(stage: Stage, decisive: Mapping[str, Any], inputs: Mapping[str, str]) -> Provenance:
    """The record of what decides a stage's output."""
    return Provenance.flatten(
        {"stage": stage.name, "format_version": stage.format_version, **decisive, "inputs": dict(inputs)}
    )
