"""Stand-alone outputs: one lock and one `.partial` beside the file, which appears by one rename when it is complete."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from pipeline.errors import ArtifactError, LockedError, SgsfaError
from pipeline.runtime.files import fsync_path, is_no_space

_LOG = logging.getLogger("sgsfa.store")
# Asking who holds a lock takes it for an instant; that must not look like another run.
_PATIENCE_SECONDS = 0.5
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_STORAGE_ERRORS = frozenset(
    {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ESTALE}
)
_LOW_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        pid: Process id on `host`; 0 if unknown.
        host: Name of the machine.
        since: When the lock was taken, ISO 8601 with time zone.
    """

    pid: int = 0
    host: str = ""
    since: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}" if self.pid else "an unknown process"


@contextlib.contextmanager
def output(path: Path, kind: str) -> Iterator[Path]:
    """Build the file `path`: the body writes or resumes the partial file, and a clean exit publishes it.

    The partial file may hold what an interrupted process left. A body that leaves none publishes nothing, for example
    because `path` is found to be complete already.

    Args:
        path: The file to build; its folder is created.
        kind: What it is, for messages: `mask file`.

    Yields:
        `path` with `.partial` appended.

    Raises:
        LockedError: Another process builds it.
        ArtifactError: `path` is a folder, cannot be written, or the disk is full.
    """
    if path.is_dir():
        raise ArtifactError(f"the {kind} cannot replace a folder", where=path, expected="the path of a file")
    partial = path.with_name(path.name + ".partial")
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.with_name(path.name + ".lock"), path, kind):
            yield partial
            if partial.exists():
                fsync_path(partial)
                partial.replace(path)
                fsync_path(path.parent)


@contextlib.contextmanager
def exclusive(lock: Path, path: Path, kind: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file while `path` is built; it is removed when the context ends, however the process ends.

    The operating system holds the lock, so a file left by a killed process does not block. On a disk without locks a
    warning is logged and other processes are not kept away.

    Args:
        lock: The lock file; its folder exists.
        path: What is built, for messages.
        kind: What it is, for messages: `mask file`.
        wait: Wait for another process that holds it.

    Raises:
        LockedError: Another process holds it, and `wait` is off.
        OSError: The lock file cannot be created.
    """
    held = filelock.FileLock(lock, timeout=-1 if wait else _PATIENCE_SECONDS, fallback_to_soft=False)
    try:
        held.acquire()
    except filelock.Timeout:
        raise LockedError(
            f"another process is building this {kind}",
            where=path,
            expected=f"no other process; it is held by {_read_owner(lock)}",
            hint="wait until it has finished, stop it, or choose another path",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOG.warning("%s: this disk has no file locks; do not let two processes write there at once", path.parent)
        lock.unlink(missing_ok=True)
        yield
        return
    try:
        me = Owner(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))
        with contextlib.suppress(OSError):  # for messages only, and not possible on Windows
            lock.write_text(json.dumps(asdict(me)), encoding="utf-8")
        yield
    finally:
        # Before the release: a process that waits for this file sees that its name is gone and creates it again.
        with contextlib.suppress(OSError):
            lock.unlink()
        held.release()


def owner(lock: Path) -> Owner | None:
    """Return who holds a lock file now, or None if no process does.

    A lock file that may not be opened belongs to another user and counts as held.
    """
    if not lock.exists():
        return None
    probe = filelock.FileLock(lock, timeout=0, fallback_to_soft=False)
    try:
        probe.acquire()
    except (filelock.Timeout, PermissionError):
        return _read_owner(lock)
    except OSError:
        return None
    probe.release()
    return None


@contextlib.contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn a full disk and other failures of the storage under `where` into an `ArtifactError` that states them.

    Raises:
        ArtifactError: The disk is full, or `where` cannot be written; the system's reason is part of the message.
    """
    try:
        yield
    except SgsfaError:
        raise
    except Exception as error:
        if _is_full(error, where):
            raise ArtifactError(
                "the disk is full", where=where, hint="free some space and repeat the command: it resumes"
            ) from error
        if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS and _concerns(error, where):
            name = error.filename2 or error.filename or where
            raise ArtifactError(f"cannot write: {os.strerror(error.errno)}", where=str(name)) from error
        raise


def _is_full(error: Exception, where: Path) -> bool:
    # Libraries that write files themselves (HDF5, torch, safetensors) report a full disk each in its own way.
    if (isinstance(error, OSError) and is_no_space(error)) or "No space left" in str(error):
        return True
    with contextlib.suppress(OSError):
        return shutil.disk_usage(where).free < _LOW_BYTES
    return False


def _concerns(error: OSError, where: Path) -> bool:
    """Whether an error is about something under `where`, and not about an input that lies elsewhere."""
    name = error.filename2 or error.filename
    return name is None or Path(os.fsdecode(name)).absolute().is_relative_to(where.absolute())


def _read_owner(lock: Path) -> Owner:
    try:
        return Owner(**json.loads(lock.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        # Taken an instant ago, or not readable.
        return Owner()
