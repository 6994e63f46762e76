"""What the user sees: progress on standard error, results on standard output, errors as one panel."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json as json_module
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

from sgsfa_cli import torchrun

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.table import Table

    from pipeline.errors import RejectedInputs, UserError
    from pipeline.runtime.progress import Progress

EXIT_INTERRUPTED = 130
_LISTED = 20
_MEMORY_HINT = (
    "take a smaller batch or less data, close other programs, or use a device (--device, where there is the option) or "
    "a machine with more memory; what was finished is kept"
)
_LINE_SECONDS = 10.0
_WINDOW_SECONDS = 30.0
_EXPLAINED_OS_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        # A file where a folder is needed, or the other way round; names that no disk takes.
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        # Memory, which the system refuses to a new process or a mapped file in this way.
        errno.ENOMEM,
    }
)


def out() -> Console:
    """The console for results: standard output."""
    from rich.console import Console

    # Piped tables must not be folded at 80 columns.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def err() -> Console:
    """The console for everything else: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def emit(obj: Mapping[str, object] | DataclassInstance, *, json: bool, draw: Callable[[], RenderableType]) -> None:
    """Print a result.

    Args:
        obj: The result as data: a dataclass or a mapping of dataclasses, mappings, sequences, paths, numbers, arrays.
        json: Print `obj` as JSON, and nothing else, to standard output.
        draw: Else makes what a person sees: a string (with Rich markup), a table, a group.
    """
    if not torchrun.is_main():
        return
    if json:
        sys.stdout.write(json_module.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        out().print(draw())


def plain(obj: object) -> Any:
    """`obj` as JSON can hold it; NaN and infinity become null."""
    if isinstance(obj, bool | int | str) or obj is None:
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Path):
        return obj.as_posix()
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: plain(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if hasattr(obj, "tolist"):
        return plain(obj.tolist())
    if isinstance(obj, Sequence | set | frozenset):
        return [plain(value) for value in obj]
    raise TypeError(f"{type(obj).__name__} has no form in JSON")


def table(*columns: str, rows: Sequence[Sequence[object]], title: str | None = None) -> Table:
    """A table in the program's one style. A column whose name ends in `>` is set flush right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        if name.endswith(">"):
            # Numbers under a head of one word: broken in two lines, neither can be read.
            made.add_column(name.removesuffix(">"), justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def duration(seconds: float) -> str:
    """A time span for people: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(stamp: str) -> str:
    """An ISO 8601 time stamp in the user's own time zone: `2025-03-01 14:05`."""
    return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M")


def size(count: float) -> str:
    """A number of bytes for people: `812 B`, `4.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


# Errors ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Turn the errors that are meant for users into one panel on standard error and an exit code.

    `UserError` ends with 2, `RejectedInputs` with 3, Ctrl-C with 130. Anything else is a defect and passes through.
    """
    # typer raises its own exceptions (Exit, usage errors) through here; they are not ours and pass.
    try:
        yield
    except (KeyboardInterrupt, typer.Abort):
        if torchrun.is_main():
            err().print("\nStopped. What was finished is kept; the same command goes on from there.", style="yellow")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        from pipeline.runtime.files import is_no_space

        if error.errno not in _EXPLAINED_OS_ERRORS and not is_no_space(error):
            raise
        # Of a renaming, the second name is the user's.
        name = error.filename2 or error.filename
        _panel(f"{error.strerror}", [("where", str(name))] if name else [])
        raise typer.Exit(2) from error
    except Exception as error:
        # Where the module was never loaded, nobody can have raised from it; help must not load the library.
        errors = sys.modules.get("pipeline.errors")
        if errors is None or not isinstance(error, errors.SgsfaError):
            if _memory_exhausted(error):
                # Where it happened nobody had better advice.
                said = [("it says", errors.first_line(error))] if errors is not None else []
                _panel("The memory is exhausted.", [*said, ("to do", _MEMORY_HINT)])
                raise typer.Exit(2) from error
            raise
        if not torchrun.record_error(error):
            pass
        elif isinstance(error, errors.UserError):
            show_user_error(error)
        elif isinstance(error, errors.RejectedInputs):
            _show_rejected(error)
        else:
            _panel(str(error), [])
        raise typer.Exit(error.exit_code) from error


def _memory_exhausted(error: Exception) -> bool:
    # Where torch was never loaded, only Python's own error can mean it.
    devices = sys.modules.get("pipeline.runtime.device")
    return isinstance(error, MemoryError) if devices is None else bool(devices.memory_exhausted(error))


def show_user_error(error: UserError) -> None:
    """Print an error as a panel."""
    _panel(error.message, error.details())


def _show_rejected(error: RejectedInputs) -> None:
    listed = [(rejected.path, rejected.reason) for rejected in error.rejected[:_LISTED]]
    rest = len(error.rejected) - len(listed)
    if rest:
        listed.append(("...", f"and {rest} more"))
    _panel(str(error), listed)


def _panel(headline: str, details: Sequence[tuple[str, str]]) -> None:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(headline)]
    if details:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", overflow="fold")
        grid.add_column(overflow="fold")
        for label, text in details:
            grid.add_row(Text(label), Text(text))
        parts.append(grid)
    err().print(Panel(Group(*parts), title="Error", title_align="left", border_style="red"))


# Progress -------------------------------------------------------------------------------------------------------


def progress(*, quiet: bool = False) -> Progress:
    """Where stages report to: bars on a terminal, a plain line now and then elsewhere, warnings only if `quiet`.

    Under `torchrun` only the first process speaks.
    """
    if not torchrun.is_main():
        from pipeline.runtime.progress import SILENT

        return SILENT
    if quiet:
        return _Quiet()
    return _Terminal() if sys.stderr.isatty() else _Lines()


@dataclasses.dataclass
class _Count:
    """How far a task is, and how fast."""

    label: str
    total: int | None
    done: int
    unit: str
    fields: dict[str, float | str] = dataclasses.field(default_factory=dict)
    begun: float = dataclasses.field(default_factory=time.monotonic)
    marks: deque[tuple[float, int]] = dataclasses.field(default_factory=deque)

    def __post_init__(self) -> None:
        self.first = self.done
        self.marks.append((self.begun, self.done))

    def advance(self, count: int, fields: Mapping[str, float | str]) -> None:
        self.done += count
        self.fields.update(fields)
        now = time.monotonic()
        if now - self.marks[-1][0] >= 0.25:
            self.marks.append((now, self.done))
        # One mark from before the window stays, or a slow task would have no rate at all.
        while len(self.marks) > 2 and now - self.marks[1][0] > _WINDOW_SECONDS:
            self.marks.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second over the last half minute; resumed units do not count."""
        since, done = self.marks[0]
        elapsed = time.monotonic() - since
        return (self.done - done) / elapsed if elapsed > 0.1 and self.done > done else None

    @property
    def left(self) -> float | None:
        """Seconds to go, once there is something to judge by."""
        seen = self.done - self.first
        if self.total is None or self.done >= self.total or self.rate is None:
            return None
        if seen < 20 and time.monotonic() - self.begun < 10:
            return None
        return (self.total - self.done) / self.rate

    def counts(self) -> str:
        return f"{self.done}/{self.total} {self.unit}" if self.total is not None else f"{self.done} {self.unit}"

    def details(self) -> str:
        parts = []
        if (rate := self.rate) is not None:
            # A slow thing reads better upside down: 12 s each, not 0.083/s.
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{duration(1 / rate)} each")
        if (left := self.left) is not None:
            parts.append(f"{duration(left)} left")
        parts += [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                  for name, value in self.fields.items()]  # fmt: skip
        return "  ".join(parts)


class _Reporter:
    """Notes and warnings, the same for all."""

    def note(self, message: str) -> None:
        self._print(message)

    def warn(self, message: str) -> None:
        self._print(f"warning: {message}", style="yellow")

    def _print(self, message: str, style: str | None = None) -> None:
        err().print(message, style=style, markup=False, soft_wrap=True)


class _Task:
    def __init__(self, count: _Count) -> None:
        self.count = count

    def advance(self, count: int = 1, /, **fields: float | str) -> None:
        self.count.advance(count, fields)
        self.changed()

    def changed(self) -> None:
        """Show the new state."""

    def finished(self, failed: bool) -> None:
        """Show the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finished(kind is not None)


class _Quiet(_Reporter):
    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> _Task:
        return _Task(_Count(label, total, done, unit))

    def note(self, message: str) -> None:
        pass


class _Lines(_Reporter):
    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> _Task:
        return _LineTask(_Count(label, total, done, unit), self)


class _LineTask(_Task):
    def __init__(self, count: _Count, reporter: _Reporter) -> None:
        super().__init__(count)
        self.reporter = reporter
        self.shown = time.monotonic()

    def changed(self) -> None:
        if time.monotonic() - self.shown >= _LINE_SECONDS:
            self.show()

    def finished(self, failed: bool) -> None:
        if not failed:
            self.show(f"  in {duration(time.monotonic() - self.count.begun)}")

    def show(self, end: str = "") -> None:
        self.shown = time.monotonic()
        self.reporter.note(f"{self.count.label}: {self.count.counts()}  {self.count.details()}{end}")


class _Terminal(_Reporter):
    """Bars at the foot of the terminal while at least one task is open."""

    def __init__(self) -> None:
        self.bars: Bars | None = None
        self.open = 0

    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> _Task:
        return _BarTask(_Count(label, total, done, unit), self)

    def _print(self, message: str, style: str | None = None) -> None:
        console = self.bars.console if self.bars is not None else err()
        console.print(message, style=style, markup=False, soft_wrap=True)

    def begin(self) -> Bars:
        if self.bars is None:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars

            self.bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[counts]}", markup=False),
                TextColumn("{task.fields[details]}", markup=False, style="dim"),
                console=err(),
                refresh_per_second=5,
            )
            self.bars.start()
        self.open += 1
        return self.bars

    def end(self) -> None:
        self.open -= 1
        if self.open == 0 and self.bars is not None:
            self.bars.stop()
            self.bars = None


class _BarTask(_Task):
    def __init__(self, count: _Count, owner: _Terminal) -> None:
        super().__init__(count)
        self.owner = owner
        self.bars: Bars | None = None
        self.shown = 0.0

    def __enter__(self) -> Self:
        self.bars = self.owner.begin()
        count = self.count
        self.bar = self.bars.add_task(
            count.label, total=count.total, completed=count.done, counts=count.counts(), details=""
        )
        return self

    def changed(self) -> None:
        # Formatting at each call would cost more than a small batch's work.
        if time.monotonic() - self.shown >= 0.2:
            self.show()

    def show(self) -> None:
        self.shown = time.monotonic()
        if self.bars is not None:
            count = self.count
            self.bars.update(self.bar, completed=count.done, counts=count.counts(), details=count.details())

    def finished(self, failed: bool) -> None:
        self.show()
        if self.bars is not None:
            if self.owner.open > 1:
                # Work within other work, which goes on: its bars would pile up.
                self.bars.remove_task(self.bar)
                if not failed:
                    took = duration(time.monotonic() - self.count.begun)
                    self.owner.note(f"{self.count.label}: {self.count.counts()} in {took}")
            self.owner.end()
