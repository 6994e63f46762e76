"""The folder in which an artifact is built, the record that decides whether it may be resumed, and its publication."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.formats.provenance import Provenance
from pipeline.formats.resume import conflict
from pipeline.runtime.files import fsync_path, is_temporary, read_json, write_json
from pipeline.store.manifest import Manifest, describe_files, git_state, versions

RECORD = ".workspace.json"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a stage writes: the partial folder or, if another run has `published` it meanwhile, the artifact's.

    Attributes:
        started: When the first session began, ISO 8601.
        sessions: 1, or more if interrupted sessions left work in it.
        extra: The body may add what the manifest is to record besides.
    """

    path: Path
    published: bool = False
    started: str = field(default_factory=lambda: _now())
    sessions: int = 1
    extra: dict[str, Any] = field(default_factory=dict)
    _begun: float = field(default_factory=time.monotonic)

    @property
    def resumed(self) -> bool:
        """Whether an interrupted session left work in it."""
        return self.sessions > 1

    def discard(self) -> None:
        """Delete what was written, so that no session resumes it; the body raises an error afterwards."""
        discard(self.path)

    def publish(
        self, stage: str, name: str, provenance: Provenance, built_from: Mapping[str, str], target: Path
    ) -> None:
        """Write the manifest and rename the folder to `target`; an artifact that was there before is deleted."""
        for path in self.path.rglob(".*"):
            if is_temporary(path) and path.is_file():  # of a writer that was killed
                path.unlink()
        Manifest(
            stage=stage,
            name=name,
            provenance=provenance,
            started=self.started,
            finished=_now(),
            seconds=round(time.monotonic() - self._begun, 3),
            sessions=self.sessions,
            versions=versions(),
            git=git_state(),
            files=describe_files(self.path, without=RECORD),
            built_from=built_from,
            extra=self.extra,
        ).write(self.path)
        for entry in (*self.path.rglob("*"), self.path):
            fsync_path(entry)
        old = _rename_aside(target) if target.exists() else None
        self.path.rename(target)
        fsync_path(target.parent)
        if old is not None:
            shutil.rmtree(old)
        # Only now: until it is published, this record alone lets the next session resume the folder.
        (target / RECORD).unlink()


def begin_session(folder: Path, provenance: Provenance, built_from: Mapping[str, str], *, resume: bool) -> Workspace:
    """Create the partial folder, or resume it if it has the same inputs; what differs is discarded."""
    inputs = {"provenance": dict(provenance.values), "built_from": dict(built_from)}
    record: Any = None
    recorded: Provenance | None = None
    if resume:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = read_json(folder / RECORD)
            recorded = Provenance.flatten({key: record[key] for key in inputs})
    if recorded and not conflict("artifact", folder, recorded, Provenance.flatten(inputs)):
        workspace = Workspace(folder, started=str(record["started"]), sessions=int(record["sessions"]) + 1)
    else:
        discard(folder)
        folder.mkdir()
        workspace = Workspace(folder)
    write_json(folder / RECORD, {**inputs, "started": workspace.started, "sessions": workspace.sessions})
    return workspace


def discard(folder: Path) -> None:
    """Delete a folder, if it exists; it loses its name first, so that no reader finds half of it."""
    if folder.is_dir():
        shutil.rmtree(_rename_aside(folder))


def discard_if_empty(folder: Path) -> None:
    """Remove the partial folder of a session that failed before it wrote anything."""
    with contextlib.suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= {RECORD}:
            shutil.rmtree(folder)


def _rename_aside(folder: Path) -> Path:
    return folder.rename(folder.with_name(f"{folder.name}.discarded-{secrets.token_hex(4)}"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
