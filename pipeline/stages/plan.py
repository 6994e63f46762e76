"""What a configuration would make, and what of it is there already."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import RunConfig
from pipeline.runtime.progress import SILENT, Progress
from pipeline.stages.graph import STAGES, needed
from pipeline.stages.sources import Sources
from pipeline.stages.stage import PlannedStage, Stage, stage_provenance
from pipeline.store.artifact import Artifact
from pipeline.store.store import ArtifactStore


def plan(config: RunConfig, *, progress: Progress = SILENT, stages: Sequence[Stage] = STAGES) -> list[PlannedStage]:
    """The stages that a configuration needs, in order, each with its fingerprint and its artifact.

    Images are read for their content the first time, and by a stat cache after that. Nothing is built.

    Raises:
        UserError: An input is missing or cannot be read.
    """
    return plan_sources(config, Sources(config, progress), stages)


def plan_sources(config: RunConfig, sources: Sources, stages: Sequence[Stage]) -> list[PlannedStage]:
    """As `plan`, leaving the artifacts in `sources` for the stages' bodies."""
    store = ArtifactStore(config.artifacts)
    wanted = needed(config)
    planned: list[PlannedStage] = []
    for stage in stages:
        if stage.name not in wanted:
            continue
        decisive = dict(stage.decisive(config))
        inputs = dict(stage.inputs(config, sources))
        identity = stage_provenance(stage, decisive, inputs).fingerprint()
        artifact = store.open(stage.name, config.name, identity)
        read = [earlier for earlier in planned if earlier.fingerprint in inputs.values()]
        upstream = tuple(earlier.stage.name for earlier in read)
        planned.append(PlannedStage(stage, identity, decisive, inputs, artifact, upstream, _outdated(artifact, read)))
        sources.artifacts[stage.name] = (identity, artifact)
    return planned


def _outdated(artifact: Artifact, read: Sequence[PlannedStage]) -> tuple[str, ...]:
    """Which of the artifacts that a whole one was made from are others today, though their fingerprints are equal."""
    if artifact.manifest is None:
        return ()
    found = []
    for earlier in read:
        name, manifest = earlier.stage.name, earlier.artifact.manifest
        stamp = artifact.manifest.built_from.get(name)
        if stamp is None:
            continue
        if not earlier.fresh or manifest is None:
            found.append(f"{name} is to be built anew")
        elif manifest.content != stamp:
            found.append(f"{name} was built anew")
    return tuple(found)
