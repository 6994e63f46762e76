"""A lock on the building of one artifact, held by one process on one machine.

The operating system holds it (`flock`), so it ends with its process however that dies; what the file says about the
owner is for messages only. A file left by a dead process is simply locked again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import ArtifactError, LockedError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_POLL_SECONDS = 0.1
# Whoever asks who owns a lock holds it for an instant; a builder must not take that for another builder.
_PATIENCE_SECONDS = 0.5
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: Process id on `host`.
        host: Name of the machine.
        since: When it was taken, ISO 8601 with time zone.
    """

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        if self == _UNKNOWN:
            return "a process that has not said its name"
        return f"process {self.pid} on {self.host}, since {self.since}"


_UNKNOWN = Owner(0, "", "")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`; it is removed when the context ends.

    Args:
        path: The lock file; its folder exists.
        wait: Wait as long as another process holds it.

    Raises:
        LockedError: Another live process holds it, and `wait` is off.
        ArtifactError: The file system has no locks.
    """
    handle = _acquire(path, wait)
    try:
        _write_owner(handle)
        yield
    finally:
        # Removed while still held: whoever waits on this file sees that its name is gone and opens anew.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def owner(path: Path) -> Owner | None:
    """Who holds the lock file `path` now, or None when nobody does (whether or not the file is there).

    A lock file that may not be read is another user's; it counts as held.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return _UNKNOWN
    except OSError:
        return None
    try:
        # Shared, which needs no right to write, and which the owner's exclusive lock refuses all the same.
        if _try_lock(handle, shared=True):
            return None
        return _read_owner(handle)
    finally:
        os.close(handle)


def _acquire(path: Path, wait: bool) -> int:
    begun = time.monotonic()
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _try_lock(handle):
                if _is_same(handle, path):
                    return handle
            elif not wait and time.monotonic() - begun > _PATIENCE_SECONDS:
                raise LockedError(
                    "another run is building this artifact",
                    where=path.with_suffix(""),
                    expected=f"nobody else at work on it; found {_read_owner(handle)}",
                    hint="wait for it with --wait, or stop it",
                )
        except BaseException as error:
            os.close(handle)
            if isinstance(error, ArtifactError) and not isinstance(error, LockedError):
                path.unlink(missing_ok=True)  # no lock, and nobody's
            raise
        os.close(handle)
        time.sleep(_POLL_SECONDS)


def _is_same(handle: int, path: Path) -> bool:
    """Whether `path` still names the open file: its last owner may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(handle: int, *, shared: bool = False) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise ArtifactError(
                "the file system of the artifacts folder has no file locks",
                hint="keep artifacts on another disk: --set artifacts=FOLDER",
            ) from error
        return False
    return True


def _write_owner(handle: int) -> None:
    me = Owner(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(asdict(me)).encode())


def _read_owner(handle: int) -> Owner:
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        return Owner(**json.loads(os.read(handle, 4096)))
    except (ValueError, TypeError):
        # It was taken a moment ago and its owner has not written its name yet.
        return _UNKNOWN
