"""Removal of artifacts that no plan uses and of leftovers of crashed runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import LockedError
from pipeline.runtime.files import is_temporary
from pipeline.store.artifact import DISCARDED, Artifact, lock_file, partial_folder, scan
from pipeline.store.lock import exclusive, owner
from pipeline.store.manifest import UnusableManifestError
from pipeline.store.workspace import discard

_WRITTEN_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Removal:
    """Something that can be removed, why, and its size in bytes."""

    path: Path
    reason: str
    size: int


def prunable(root: Path, keep: Sequence[Path], names: Sequence[str] | None) -> tuple[Removal, ...]:
    """Return artifacts that are not kept or are broken, and leftovers of crashed runs.

    Nothing that a live process builds is returned, and nothing that a newer sgsfa wrote. Incomplete artifacts of the
    same name as a folder in `keep` are kept, too. `names` limits artifacts, not leftovers, to runs of these names.
    """
    kept = {path.resolve() for path in keep}
    found: dict[Path, str] = {}
    for artifact in scan(root):
        reason = None if artifact.owner or (names is not None and artifact.name not in names) else _unused(artifact)
        if reason and (artifact.fault is not None or artifact.path.resolve() not in kept):
            found[artifact.folder] = reason
    for path in sorted(root.glob("*/*")):
        if path not in found and (reason := _leftover(path)):
            found[path] = reason
    return tuple(Removal(path, reason, folder_bytes(path)) for path, reason in found.items())


def remove(removals: Sequence[Removal]) -> tuple[Removal, ...]:
    """Remove what `prunable` returned; returns what another process has begun to build meanwhile."""
    busy = []
    for removal in removals:
        try:
            with _locked(removal.path):
                if removal.path.is_dir():
                    discard(removal.path)
                elif removal.path.suffix != ".lock":  # the holder of a lock removes its file
                    removal.path.unlink(missing_ok=True)
        except LockedError:
            busy.append(removal)
    return tuple(busy)


def folder_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files under a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _unused(artifact: Artifact) -> str | None:
    """Why an artifact that is not kept can be removed; None if it must not be."""
    if isinstance(artifact.fault, UnusableManifestError):
        return None
    if artifact.fault is not None:
        return f"broken: {artifact.fault.message}"
    return "not used by the configuration" if artifact.manifest else "incomplete, and not used by the configuration"


def _leftover(path: Path) -> str | None:
    if DISCARDED.search(path.name):
        return "left by an interrupted removal"
    if is_temporary(path) and path.is_file():
        # A young one may still be written, perhaps on another machine.
        return "temporary file of a crashed run" if time.time() - path.stat().st_mtime > _WRITTEN_SECONDS else None
    artifact = path.with_suffix("")
    if path.suffix == ".lock" and path.is_file() and not partial_folder(artifact).is_dir() and owner(path) is None:
        return "lock file of a crashed run"
    if path.suffix == ".partial" and artifact.is_dir() and owner(lock_file(artifact)) is None:
        return "left beside a complete artifact"
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the artifact at `path` against builders; leftovers need no lock."""
    if DISCARDED.search(path.name) or is_temporary(path):
        yield
        return
    artifact = path.with_suffix("") if path.suffix in (".lock", ".partial") else path
    with exclusive(lock_file(artifact), artifact, "artifact"):
        yield
