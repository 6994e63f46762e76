"""Comparison of an artifact's files with its manifest."""

from __future__ import annotations

from pipeline.runtime.files import sha256_file
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import MANIFEST
from pipeline.store.workspace import RECORD


def verify(artifact: Artifact) -> tuple[str, ...]:
    """Return a phrase for each file that is missing, changed or foreign; empty if the artifact is intact."""
    if artifact.fault is not None:
        return (artifact.fault.message,)
    if artifact.manifest is None:
        return (f"it is {artifact.state}",)
    faults = []
    for name, entry in artifact.manifest.files.items():
        path = artifact.path / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != entry.size:
            faults.append(f"{name} has {path.stat().st_size} bytes instead of {entry.size}")
        elif sha256_file(path) != entry.sha256:
            faults.append(f"{name} has another SHA-256 than in the manifest")
    known = {*artifact.manifest.files, MANIFEST, RECORD}
    present = (path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*") if path.is_file())
    return (*faults, *(f"{name} does not belong to it" for name in sorted(present) if name not in known))
