"""How a stage tells what it is doing, without knowing who listens.

The command line draws bars; a notebook or a test may pass `SILENT`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self


class Task(Protocol):
    """One piece of counted work. Use as a context manager."""

    def advance(self, count: int = 1, /, **fields: float | str) -> None:
        """Count `count` more units done; `fields` are shown beside the bar (loss parts, accuracy)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Progress(Protocol):
    """Where stages report to."""

    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> Task:
        """Begin counted work; `done` units were finished by an earlier run (resume)."""
        ...

    def note(self, message: str) -> None:
        """Say one line that a user wants to read in any case (resumed, skipped, chosen by default)."""
        ...

    def warn(self, message: str) -> None:
        """Say one line that may change what the user does."""
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

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass


SILENT: Progress = _Silent()
"""A progress that says nothing."""
