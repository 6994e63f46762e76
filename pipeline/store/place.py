"""To go, when extraction uses `store.output`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.runtime.progress import Progress
from pipeline.store.lock import exclusive
from pipeline.store.output import storage_errors


@contextlib.contextmanager
def file_place(out: Path, what: str, example: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of a file."""
    with storage_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(out.with_name(out.name + ".lock"), out, what):
            yield


@contextlib.contextmanager
def smaller_batches_advised(key: str, size: int, holding: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """Do nothing."""
    yield
