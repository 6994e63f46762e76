"""Locks on what is being built, held by one process; the operating system ends them with their process."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock

from pipeline.errors import LockedError

_LOG = logging.getLogger("sgsfa.store")
# Asking who holds a lock takes it for an instant; that must not look like another run.
_PATIENCE_SECONDS = 0.5
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


@contextlib.contextmanager
def exclusive(lock: Path, path: Path, kind: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file while `path` is built; it is removed when the context ends, however the process ends.

    The operating system holds the lock, so a file left by a killed process does not block. On a disk without locks a
    warning is logged and other processes are not kept away. `kind` is what is built, for messages: `mask file`.

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
            hint=_copies() or "wait until it has finished, stop it, or choose another path",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOG.warning("%s: this disk has no file locks; do not let two processes write there at once", path.parent)
        lock.unlink(missing_ok=True)
        yield
        return
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # for messages only, and not possible on Windows
            lock.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}", encoding="utf-8")
        yield
    finally:
        # Before the release: a process that waits for this file sees that its name is gone and creates it again.
        with contextlib.suppress(OSError):
            lock.unlink()
        with contextlib.suppress(OSError):  # it ends with the process at the latest
            held.release()


def _copies() -> str | None:
    """Return what to do if srun or mpirun, not torchrun, started this command several times."""
    for launcher, name in (("srun --ntasks=1", "SLURM_NTASKS"), ("mpirun -n 1", "OMPI_COMM_WORLD_SIZE")):
        if "RANK" not in os.environ and (count := os.environ.get(name, "1")) != "1":
            return f"{name}={count}: if each task runs this command, start it once ({launcher}), with torchrun for GPUs"
    return None


def owner(lock: Path) -> str | None:
    """Return who holds a lock file now, for messages, or None if no process does.

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


def _read_owner(lock: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        if text := lock.read_text(encoding="utf-8").strip():
            return text
    return "an unknown process"  # taken an instant ago, or not readable
