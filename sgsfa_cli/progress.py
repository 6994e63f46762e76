"""Progress of counted work on standard error: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from sgsfa_cli.console import duration

_LINE_SECONDS = 10.0


class Bars:
    """Shows tasks as bars below the log while at least one is open; implements `pipeline.runtime.progress.Progress`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            _Column(counts),
            _Column(details, style="dim"),
            console=console,
            refresh_per_second=5,
            disable=not console.is_terminal,
        )
        self.open = 0

    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> OpenTask:
        """Begin counted work, of which `done` units were finished by an earlier run."""
        return OpenTask(self, self.bars.add_task(label, start=True, total=total, completed=done, unit=unit, values={}))

    def print(self, message: str) -> None:
        """Print a line."""
        self.console.print(message, markup=False, soft_wrap=True)


class OpenTask:
    """One piece of counted work; see `pipeline.runtime.progress.Task`."""

    def __init__(self, bars: Bars, task: TaskID) -> None:
        self.owner = bars
        self.bars = bars.bars
        self.id = task
        self.first = self.task.completed
        self.shown = time.monotonic()

    @property
    def task(self) -> Task:
        """State of the task."""
        return next(task for task in self.bars.tasks if task.id == self.id)

    def advance(self, count: int = 1, /, **fields: float | str) -> None:
        """Count `count` more units, and show `fields` beside the bar."""
        if fields:
            self.bars.update(self.id, advance=count, values=fields)
        else:
            self.bars.advance(self.id, count)
        if self.bars.disable and time.monotonic() - self.shown >= _LINE_SECONDS:
            self.shown = time.monotonic()
            self.owner.print(f"{self.task.description}: {counts(self.task)}  {details(self.task)}")

    def __enter__(self) -> Self:
        if self.owner.open == 0:
            self.bars.start()
        self.owner.open += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.owner.open -= 1
        # Bars of finished work would pile up below the one of the work that they are part of.
        task = self.task
        if kind is None and task.completed > self.first:
            elapsed = task.elapsed or 0.0
            rate = f", {_rate((task.completed - self.first) / elapsed)}" if elapsed > 0 else ""
            values = "".join(f"  {text}" for text in _values(task))
            self.owner.print(f"{task.description}: {counts(task)} in {duration(elapsed)}{rate}{values}")
        self.bars.remove_task(self.id)
        if self.owner.open == 0:
            self.bars.stop()


class _Column(ProgressColumn):
    """A column of text that a function makes from the state of a task."""

    def __init__(self, text: Callable[[Task], str], style: str = "") -> None:
        super().__init__()
        self.text = text
        self.style = style

    def render(self, task: Task) -> Text:
        return Text(self.text(task), style=self.style)


def counts(task: Task) -> str:
    """Return how much is done: `40/100 images`."""
    total = "" if task.total is None else f"/{task.total:,.0f}"
    return f"{task.completed:,.0f}{total} {task.fields['unit']}"


def details(task: Task) -> str:
    """Return rate, remaining time and the fields of a task: `12.5/s  30 s left  loss 0.25`."""
    parts = []
    if speed := task.speed:
        parts.append(_rate(speed))
        if task.remaining:
            parts.append(f"{duration(task.remaining / speed)} left")
    return "  ".join([*parts, *_values(task)])


def _rate(speed: float) -> str:
    # Slow work is easier to read as time: 12 s each, not 0.083/s.
    return f"{speed:.1f}/s" if speed >= 1 else f"{duration(1 / speed)} each"


def _values(task: Task) -> list[str]:
    return [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in task.fields["values"].items()
    ]
