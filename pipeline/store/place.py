"""The place of something that a command makes: it can be made there, and one process alone makes it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.errors import ArtifactError, DeviceError, FormatError, LockedError
from pipeline.runtime.progress import Progress
from pipeline.store.lock import locked


@contextlib.contextmanager
def file_place(out: Path, what: str, example: str, progress: Progress) -> Iterator[None]:
    """Make the folder of a file, see that files can be made there, and keep other processes away meanwhile.

    Args:
        out: The file to make.
        what: What it is, for messages: `mask file`.
        example: A name for it, where `out` is a folder.
        progress: Warned where the disk has no locks.

    Raises:
        FormatError: `out` is a folder, or no file can be made beside it.
        LockedError: Another process is at work on it.
    """
    if out.is_dir():
        raise FormatError("this is a folder", where=out, expected=f"the file to make, as in {out / example}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise FormatError(
            f"no {what} can be written there: {(error.strerror or str(error)).lower()}", where=out.parent
        ) from error
    # HDF5's own lock begins only when the file is there.
    with alone(out.with_name(out.name + ".lock"), out, what, progress):
        yield


@contextlib.contextmanager
def smaller_batches_advised(key: str, size: int, holding: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """Add to an error about too large a batch what to do with unfinished files, which keep their batch size.

    Args:
        key: Where the size is set, as the error names it.
        size: The files' size.
        holding: Names the unfinished files, if they hold work; else the next run takes the size that is set then.

    Raises:
        DeviceError: As it came, or with that advice.
    """
    try:
        yield
    except DeviceError as error:
        files = list(holding()) if error.where == key else []
        if not files:
            raise
        raise DeviceError(
            error.message,
            where=error.where,
            expected=error.expected,
            hint=f"delete {', '.join(map(str, files))} to begin anew: as it is, it goes on in batches of {size}",
        ) from error


@contextlib.contextmanager
def alone(lock: Path, out: Path, what: str, progress: Progress) -> Iterator[None]:
    """Keep other processes that would make the same thing away.

    Args:
        lock: The lock file; its folder exists.
        out: What is made, for messages.
        what: What it is: `mask file`.
        progress: Warned where the disk has no locks; then nobody is kept away.

    Raises:
        LockedError: Another process is at work on it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except LockedError as error:
            raise LockedError(
                f"another process is making this {what}",
                where=out,
                expected=error.expected,
                hint="let it finish or stop it, or choose another place",
            ) from None
        except ArtifactError:
            progress.warn(f"this disk has no file locks: let no other process write {out} at the same time")
        yield
