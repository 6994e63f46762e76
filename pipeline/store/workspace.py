"""The folder in which an artifact is built, and the record that decides whether it may be resumed."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.formats.provenance import Provenance
from pipeline.runtime.files import is_temporary, read_json, write_json
from pipeline.store.manifest import Manifest, describe_files, git_state, versions
from pipeline.store.publish import discard

RECORD = ".workspace.json"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a stage writes.

    Attributes:
        path: The partial folder; if `published`, the artifact's folder.
        resumed: An interrupted session left work in it.
        published: Another run has finished the artifact meanwhile; there is nothing to do.
        extra: The body may add what the manifest is to record besides.
    """

    path: Path
    resumed: bool = False
    published: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def discard(self) -> None:
        """Delete what was written, so that no session resumes it; the body raises an error afterwards."""
        discard(self.path)


@dataclass(frozen=True, slots=True)
class Session:
    """What a partial folder records: what it is built from, when it was begun and how often it was resumed."""

    provenance: Provenance
    built_from: Mapping[str, str]
    started: str
    count: int = 1
    begun: float = field(default_factory=time.monotonic)

    def manifest(self, stage: str, name: str, folder: Path, extra: Mapping[str, Any]) -> Manifest:
        """Return the manifest of the finished work in `folder`."""
        return Manifest(
            stage=stage,
            name=name,
            provenance=self.provenance,
            started=self.started,
            finished=_now(),
            seconds=round(time.monotonic() - self.begun, 3),
            sessions=self.count,
            versions=versions(),
            git=git_state(),
            files=describe_files(folder, without=RECORD),
            built_from=self.built_from,
            extra=extra,
        )


def begin_session(
    folder: Path, provenance: Provenance, built_from: Mapping[str, str], *, resume: bool
) -> tuple[Session, bool]:
    """Create the partial folder, or resume it if it was begun from the same inputs; what differs is discarded.

    Args:
        folder: The partial folder.
        provenance: What decides the content.
        built_from: Contents of the artifacts that the stage reads.
        resume: Allow resuming.

    Returns:
        The session and whether it resumes another.
    """
    record = None
    if resume:
        with contextlib.suppress(OSError, ValueError):
            record = read_json(folder / RECORD)
    wanted = {"provenance": dict(provenance.values), "built_from": dict(built_from)}
    session = Session(provenance, dict(built_from), _now())
    resumed = isinstance(record, dict) and {key: record.get(key) for key in wanted} == wanted
    if resumed and record is not None:
        session = Session(provenance, dict(built_from), str(record["started"]), int(record["sessions"]) + 1)
    else:
        discard(folder)
        folder.mkdir()
    write_json(folder / RECORD, {**wanted, "started": session.started, "sessions": session.count})
    return session, resumed


def sweep(folder: Path) -> None:
    """Remove temporary files of writers that were killed."""
    for path in folder.rglob(".*"):
        if is_temporary(path) and path.is_file():
            path.unlink()


def discard_if_empty(folder: Path) -> None:
    """Remove the partial folder of a session that failed before it wrote anything."""
    with contextlib.suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= {RECORD}:
            shutil.rmtree(folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
