"""The artifact store: one folder for each result of a stage, which appears complete or not at all.

Published artifacts are never changed; another fingerprint is another folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ArtifactError
from pipeline.formats.provenance import Provenance
from pipeline.runtime.files import sha256_file
from pipeline.store import prune
from pipeline.store.artifact import Artifact, artifact_folder, find, inspect, lock_file, partial_folder, scan
from pipeline.store.lock import exclusive
from pipeline.store.manifest import MANIFEST
from pipeline.store.output import storage_errors
from pipeline.store.prune import Removal
from pipeline.store.workspace import RECORD, Workspace, begin_session, discard_if_empty


@dataclass(frozen=True)
class ArtifactStore:
    """The artifacts under `root`. Nothing is written before `build`."""

    root: Path

    def open(self, stage: str, name: str, fingerprint: str) -> Artifact:
        """Find an artifact; one of another run name with the same fingerprint has the same content."""
        return find(self.root, stage, name, fingerprint)

    def list(self) -> list[Artifact]:
        """Return everything in the store by stage and age."""
        return scan(self.root)

    def at(self, folder: Path) -> Artifact:
        """Return the artifact in `folder`, complete or broken.

        Raises:
            ArtifactError: The folder is not an artifact.
        """
        if not (folder / MANIFEST).exists():
            raise ArtifactError(
                "not an artifact: it has no manifest" if folder.is_dir() else "folder not found",
                where=folder,
                expected=f"a folder <stage>/<run>-<fingerprint> with {MANIFEST}",
            )
        return inspect(folder)

    @contextlib.contextmanager
    def build(
        self,
        stage: str,
        name: str,
        provenance: Provenance,
        *,
        built_from: Mapping[str, str] | None = None,
        wait: bool = False,
        replace: bool = False,
    ) -> Iterator[Workspace]:
        """Build an artifact: the body writes into the workspace, and a clean exit publishes it.

        On any exception, Ctrl-C included, the partial folder is kept. The next session resumes it if its provenance
        and `built_from` are equal, and starts from scratch otherwise.

        Args:
            stage: Stage of the artifact.
            name: Name of the run.
            provenance: Everything that decides the content.
            built_from: Contents of the artifacts that the stage reads, by stage.
            wait: Wait for another run that builds it.
            replace: Build it although it is complete; the old one remains in use until the new one is published. An
                interrupted replacement is resumed by the next one.

        Raises:
            LockedError: Another process builds it, and `wait` is off.
            ArtifactError: The store cannot be written, or the disk is full.
        """
        path = artifact_folder(self.root, stage, name, provenance.fingerprint())
        partial = partial_folder(path)
        inputs = dict(built_from or {})
        with storage_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(lock_file(path), path, "artifact", wait=wait):
                done = inspect(path).manifest
                if not replace and done and done.provenance == provenance and done.built_from == inputs:
                    yield Workspace(path, published=True)
                    return
                workspace = begin_session(partial, provenance, inputs, resume=path.is_dir() or not replace)
                try:
                    yield workspace
                    workspace.publish(stage, name, provenance, inputs, path)
                finally:
                    discard_if_empty(partial)

    def verify(self, artifact: Artifact) -> tuple[str, ...]:
        """Return a phrase for each file that is missing, changed or foreign; empty if the artifact is intact."""
        if artifact.manifest is None:
            return (artifact.fault.message if artifact.fault else f"it is {artifact.state}",)
        faults = []
        for name, entry in artifact.manifest.files.items():
            path = artifact.path / name
            if not path.is_file():
                faults.append(f"{name} is missing")
            elif path.stat().st_size != entry.size:
                faults.append(f"{name} has {path.stat().st_size} bytes instead of {entry.size}")
            elif sha256_file(path) != entry.sha256:
                faults.append(f"{name} has another SHA-256 than in the manifest")
        present = {path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*") if path.is_file()}
        unknown = sorted(present - {*artifact.manifest.files, MANIFEST, RECORD})
        return (*faults, *(f"{name} does not belong to it" for name in unknown))

    def prunable(self, keep: Sequence[Path], *, names: Sequence[str] | None = None) -> tuple[Removal, ...]:
        """Return artifacts that are not kept or are broken, and leftovers of crashed runs (`prune.prunable`)."""
        return prune.prunable(self.root, keep, names)

    def remove(self, removals: Sequence[Removal]) -> tuple[Removal, ...]:
        """Remove what `prunable` returned; returns what another process has begun to build meanwhile.

        Raises:
            ArtifactError: Something cannot be removed.
        """
        with storage_errors(self.root):
            return prune.remove(removals)
