"""Output: results on standard output, as tables or JSON; progress, notes and warnings on standard error."""

from __future__ import annotations

import json as json_module
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sgsfa_cli import torchrun

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.console import Console, RenderableType

    from pipeline.runtime.progress import Progress

    Drawn = Sequence[RenderableType]

_LOGGER = logging.getLogger("sgsfa")

_OPTIONS = {
    ("masks.allow_failed", "true"): "--allow-failed",
    ("data.expect_counts", "false"): "--expect-counts off",
    ("extract.amp", "bf16"): "--amp bf16",
}
"""Options of some commands for values of the configuration; all other values are set by `--set`."""

_ASSIGNMENT = re.compile(
    r"(?:\bset )?(?<!--set )\b((?:data|synth|masks|model|loss|train|extract|matching)\.[a-z][a-z0-9_]*) ?= ?([^\s,;)]+)"
)


class _Log(logging.Handler):
    """Prints the library's notes and warnings through the console that draws the bars, so that neither breaks."""

    def __init__(self, meta: Mapping[str, Any]) -> None:
        super().__init__()
        self.console, self.meta = err(), meta
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text, style = in_terms_of(record.getMessage(), set(self.meta.get("options", ()))), None
        if record.levelno >= logging.WARNING:
            self.warnings.append(text)
            text, style = f"{record.levelname.lower()}: {text}", "yellow"
        self.console.print(text, style=style, markup=False, soft_wrap=True)


@dataclass
class _Command:
    """How the running command prints, and whether it has printed its JSON object."""

    json: bool = False
    quiet: bool = False
    printed_json: bool = False
    log: _Log | None = None


_command = _Command()


def begin(meta: Mapping[str, Any] | None = None, *, json: bool = False) -> None:
    """Start a command: print what the library logs to standard error, on ranks above 0 errors only.

    Args:
        meta: Of the command line; its `options`, known later, are those in which messages name configuration keys.
        json: Print one JSON object.
    """
    global _command
    if _command.log is not None:
        _LOGGER.removeHandler(_command.log)
    log = _Log(meta or {})
    _command = _Command(json, log=log)
    _LOGGER.addHandler(log)
    _LOGGER.setLevel(logging.INFO if torchrun.is_main() else logging.ERROR)


def use(*, json: bool, quiet: bool) -> None:
    """Set what the options --json and --quiet ask for."""
    _command.json, _command.quiet = json, quiet
    if quiet and torchrun.is_main():
        _LOGGER.setLevel(logging.WARNING)


def out() -> Console:
    """Return the console for results: standard output."""
    from rich.console import Console

    # Piped tables must not be folded at 80 columns.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def err() -> Console:
    """Return the console for everything else: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def emit(obj: Mapping[str, object] | DataclassInstance, draw: Callable[[], Drawn]) -> None:
    """Print a result: with --json as one object and nothing else, otherwise as `draw` returns it.

    Args:
        obj: The result as data: a dataclass or a mapping of dataclasses, mappings, sequences, paths, numbers, arrays.
        draw: Returns texts and tables.
    """
    if not _command.json:
        show(*draw())
    elif torchrun.is_main():
        warnings = _command.log.warnings if _command.log is not None else []
        print_json(plain(obj) | ({"warnings": warnings} if warnings else {}))


def show(*parts: RenderableType) -> None:
    """Print texts and tables to standard output, where the command does not print JSON."""
    if torchrun.is_main() and not _command.json:
        for part in parts:
            out().print(part)


def wants_json() -> bool:
    """Return whether an error has to be the JSON object of the command, which has printed none yet."""
    return _command.json and not _command.printed_json


def print_json(obj: Any) -> None:
    """Print the one JSON object of a command to standard output."""
    sys.stdout.write(json_module.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _command.printed_json = True


def plain(obj: object) -> Any:
    """Return `obj` as JSON can hold it; NaN and infinity become null.

    Raises:
        Exception: Something in it has no form in JSON.
    """
    from pydantic_core import to_jsonable_python

    # NumPy's arrays and numbers are the only other values in results.
    return to_jsonable_python(obj, inf_nan_mode="null", fallback=lambda value: value.tolist())


def table(*columns: str, rows: Sequence[Sequence[object]], title: str | None = None) -> RenderableType:
    """Return a table. A column whose name ends in `>` is aligned right."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    made = Table(show_header=any(columns), box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        if name.endswith(">"):
            # A number that is folded cannot be read.
            made.add_column(name.removesuffix(">"), justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    # A title of Rich is folded to the width of the table.
    return Group(Text(title, style="italic"), made) if title else made


def duration(seconds: float) -> str:
    """Return a time span as text: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(stamp: str) -> str:
    """Return an ISO 8601 time stamp in the user's own time zone: `2025-03-01 14:05`."""
    return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M")


def size(count: float) -> str:
    """Return a number of bytes as text: `812 bytes`, `4.1 MB`."""
    from rich.filesize import decimal

    return decimal(int(count))


def progress() -> Progress:
    """Return where the library reports progress to: bars on a terminal, otherwise a line every ten seconds."""
    from pipeline.runtime.progress import SILENT

    if _command.quiet or not torchrun.is_main():
        return SILENT
    from sgsfa_cli.progress import Bars

    return Bars(err() if _command.log is None else _command.log.console)


def in_terms_of(text: str, options: set[str]) -> str:
    """Return a message of the library with assignments of configuration keys as options of the current command.

    `masks.allow_failed=true` becomes `--set masks.allow_failed=true`, or `--allow-failed` where that exists.

    Args:
        text: The message.
        options: Options of the command.
    """

    def option(match: re.Match[str]) -> str:
        own = _OPTIONS.get((match[1], match[2]))
        if own is not None and own.split()[0] in options:
            return own
        return f"--set {match[1]}={match[2]}" if "--set" in options else match[0]

    return _ASSIGNMENT.sub(option, text)


def error_as_json(message: str, details: Sequence[tuple[str, str]], code: int) -> dict[str, Any]:
    """Return an error as it is printed with `--json`."""
    fields = {"where": None, "expected": None, "hint": None, **dict(details)}
    return {"error": {"message": message, **fields, "exit_code": code}}
