"""A progress that records notes and warnings."""

from __future__ import annotations

from pipeline.runtime.progress import SILENT


class Notes:
    """A progress that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.task = SILENT.task

    def note(self, message: str) -> None:
        self.said.append(message)

    warn = note
