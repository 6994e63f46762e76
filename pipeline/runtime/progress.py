"""Progress of counted work, for a display: the command line draws bars, a notebook passes `SILENT`."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self


class Task(Protocol):
    """One piece of counted work. Use as a context manager."""

    def advance(self, count: int = 1, /, **fields: float | str) -> None:
        """Count `count` more units as done; `fields` are shown beside the bar (loss parts, accuracy)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Progress(Protocol):
    """Displays counted work. Notes and warnings are logged (`logging.getLogger("sgsfa")`)."""

    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> Task:
        """Begin counted work, of which an earlier run finished `done` units."""
        ...


class _SilentTask:
    def advance(self, count: int = 1, /, **fields: float | str) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Silent:
    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> Task:
        return _SilentTask()


SILENT: Progress = _Silent()
"""Displays nothing."""
