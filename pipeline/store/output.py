"""Stand-alone outputs: one lock and one `.partial` beside the file, which appears by one rename when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ArtifactError, SgsfaError
from pipeline.runtime.files import fsync_path, is_no_space
from pipeline.store.lock import exclusive

_STORAGE_ERRORS = frozenset(
    {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ESTALE}
)
_LOW_BYTES = 1 << 20


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
            raise ArtifactError(
                f"the output cannot be read or written: {os.strerror(error.errno)}", where=str(name)
            ) from error
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
