"""Stand-alone outputs: one lock and one `.partial` beside the file, which appears by one rename when it is complete."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ArtifactError, SgsfaError
from pipeline.runtime.files import error_number, fsync_path, is_no_space, is_temporary
from pipeline.store.lock import exclusive

_STORAGE_ERRORS = frozenset(
    {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ESTALE}
)
_LOW_BYTES = 1 << 20


@contextlib.contextmanager
def output(path: Path, kind: str) -> Iterator[Path]:
    """Build the file `path`: the body writes or resumes `path` with `.partial` appended, and a clean exit publishes it.

    The partial file may hold what an interrupted process left. A body that leaves none publishes nothing, for example
    because `path` is found to be complete already. `kind` is what is built, for messages: `mask file`.

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
            # Leftovers of a killed process; no other process writes here while the lock is held.
            for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
                if is_temporary(leftover):
                    leftover.unlink(missing_ok=True)
            yield partial
            if partial.exists():
                fsync_path(partial)
                partial.replace(path)
                fsync_path(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that becomes `path`, which is missing or empty: many files cannot each be published atomically.

    Nothing is kept of a body that fails: on a full disk, what was written so far would be in the way.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
        fsync_path(path.parent)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
        number, name = error_number(error), _file_of(error) or where
        # An error about an input that lies elsewhere is not about this output.
        if number in _STORAGE_ERRORS and name.absolute().is_relative_to(where.absolute()):
            raise ArtifactError(f"the output cannot be read or written: {os.strerror(number)}", where=name) from error
        raise


def _is_full(error: Exception, where: Path) -> bool:
    if is_no_space(error):
        return True
    # A library may report it in words of its own.
    with contextlib.suppress(OSError):
        return shutil.disk_usage(where).free < _LOW_BYTES
    return False


def _file_of(error: Exception) -> Path | None:
    """Return the file that an error is about; of a renaming, the new name."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
