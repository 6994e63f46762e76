"""The place of one file that a command makes: files can be made there, and one process alone makes this one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts.lock import locked
from pipeline.errors import ArtifactError, FormatError, LockedError
from pipeline.runtime.progress import Progress


def check_place(out: Path, what: str, example: str) -> None:
    """Make the folder of `out`, and see that files can be made there before long work is done for nothing.

    Args:
        out: The file to make.
        what: What it is, for messages: `mask file`.
        example: A name for it, where `out` is a folder.

    Raises:
        FormatError: `out` is a folder, or no file can be made beside it.
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


@contextlib.contextmanager
def alone(out: Path, what: str, progress: Progress) -> Iterator[None]:
    """Keep other processes that would make `out` away: HDF5's own lock begins only when the file is there.

    Raises:
        LockedError: Another process is at work on it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out.with_name(out.name + ".lock")))
        except LockedError as error:
            raise LockedError(
                f"another process is building this {what}",
                where=out,
                expected=error.expected,
                hint="let it finish or stop it, or build another file (--out)",
            ) from None
        except ArtifactError:
            progress.warn(f"this disk has no file locks: let no other process write {out} at the same time")
        yield
