"""Folders appear and disappear by one rename."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from pipeline.runtime.files import fsync_path


def publish(partial: Path, path: Path) -> None:
    """Rename a finished folder to its final name; an artifact that was there before is deleted."""
    for entry in partial.rglob("*"):
        fsync_path(entry)
    fsync_path(partial)
    old = _rename_aside(path) if path.exists() else None
    partial.rename(path)
    fsync_path(path.parent)
    if old is not None:
        shutil.rmtree(old)


def discard(folder: Path) -> None:
    """Delete a folder, if it exists; it loses its name first, so that no reader finds half of it."""
    if folder.is_dir():
        shutil.rmtree(_rename_aside(folder))


def _rename_aside(folder: Path) -> Path:
    return folder.rename(folder.with_name(f"{folder.name}.discarded-{secrets.token_hex(4)}"))
