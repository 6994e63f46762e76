"""What lies in the store: a folder, its state and its manifest.

<root>/<stage>/<name>-<fingerprint8>/            an artifact, with manifest.json
<root>/<stage>/<name>-<fingerprint8>.partial/    one being built, or left by an interrupted run
<root>/<stage>/<name>-<fingerprint8>.lock        held while it is built
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ArtifactError
from pipeline.store.lock import owner
from pipeline.store.manifest import MANIFEST, Manifest, read_manifest

State = Literal["complete", "incomplete", "missing", "broken"]

_SHOWN_DIGITS = 8
_ARTIFACT = re.compile(r"-[0-9a-f]{8}$")
DISCARDED = re.compile(r"\.discarded-[0-9a-f]{8}$")
"""Ends the names of folders that are being deleted."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder of the store, whether it exists or not.

    Attributes:
        path: The folder of the complete artifact, even if it does not exist yet.
        state: `complete`; `incomplete`: only its partial folder exists; `missing`; `broken`: without a valid manifest.
        manifest: Of a complete artifact.
        owner: The process that builds it now.
        fault: Why it is broken.
    """

    stage: str
    name: str
    path: Path
    state: State
    manifest: Manifest | None = None
    owner: str | None = None
    fault: ArtifactError | None = None

    @property
    def partial(self) -> Path:
        """The folder in which it is built."""
        return partial_folder(self.path)

    @property
    def folder(self) -> Path:
        """The folder that exists: the partial one of an incomplete artifact."""
        return self.partial if self.state == "incomplete" else self.path


def artifact_folder(root: Path, stage: str, name: str, fingerprint: str) -> Path:
    """Return the folder of an artifact."""
    return root / stage / f"{name}-{fingerprint[:_SHOWN_DIGITS]}"


def partial_folder(path: Path) -> Path:
    """Return the folder in which an artifact is built."""
    return path.with_name(path.name + ".partial")


def lock_file(path: Path) -> Path:
    """Return the lock file of an artifact."""
    return path.with_name(path.name + ".lock")


def find(root: Path, stage: str, name: str, fingerprint: str) -> Artifact:
    """Find an artifact; one of another run name with the same fingerprint has the same content."""
    path = artifact_folder(root, stage, name, fingerprint)
    for folder in (path, *sorted(path.parent.glob(f"*-{fingerprint[:_SHOWN_DIGITS]}"))):
        found = inspect(folder)
        if found.manifest is not None and found.manifest.fingerprint == fingerprint:
            return found
    return _incomplete(path) if partial_folder(path).is_dir() else inspect(path)


def inspect(folder: Path) -> Artifact:
    """Describe a folder that should be a complete artifact."""
    stage, name = folder.parent.name, folder.name.rpartition("-")[0]
    if not folder.is_dir():
        return Artifact(stage, name, folder, "missing")
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        return Artifact(stage, name, folder, "broken", fault=error)
    return Artifact(manifest.stage, manifest.name, folder, "complete", manifest)


def scan(root: Path) -> list[Artifact]:
    """Return everything in the store by stage and age; incomplete artifacts only where no complete one exists."""
    found = []
    for folder in sorted(root.glob("*/*")):
        path = folder.with_name(folder.name.removesuffix(".partial"))
        if not folder.is_dir() or DISCARDED.search(folder.name):
            continue
        if path != folder:
            found += [] if path.is_dir() else [_incomplete(path)]
        elif (folder / MANIFEST).exists() or _ARTIFACT.search(folder.name):
            found.append(inspect(folder))
    return sorted(found, key=lambda a: (a.stage, a.manifest.finished if a.manifest else "~", a.path.name))


def _incomplete(path: Path) -> Artifact:
    name = path.name.rpartition("-")[0]
    return Artifact(path.parent.name, name, path, "incomplete", owner=owner(lock_file(path)))
