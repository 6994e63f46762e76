"""The exit code of an error, and its report: one panel on standard error, or JSON on standard output."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import typer

from sgsfa_cli import console, torchrun

if TYPE_CHECKING:
    from pipeline.errors import RejectedInputs

EXIT_INTERNAL = 1
EXIT_INVALID = 2
EXIT_INTERRUPTED = 130

_LISTED = 20
_MEMORY_HINT = "use a smaller batch size, another device or a machine with more memory; finished work is kept"
_EXTERNAL = frozenset(
    {
        errno.EMFILE, errno.EACCES, errno.EPERM, errno.EROFS,
        # A file where a folder is needed, or the reverse; names that no disk takes.
        errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
        # Memory for a new process or a mapped file; a disk without locks or with defects.
        errno.ENOMEM, errno.ENOLCK, errno.EIO, errno.ESTALE, errno.ENOENT,
        # A full disk or quota.
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
    }
)  # fmt: skip
"""System errors whose cause lies outside the program."""

_COMMANDS = {
    "configuration file not found": "`sgsfa init` writes one",
    "mask file not found": "`sgsfa masks build` writes one",
    "checkpoint not found": "`sgsfa train` writes one",
    "features file not found": "`sgsfa extract` writes one",
    "the disk is full": "`sgsfa artifacts prune` removes artifacts that are no longer used",
    "the repository exists and is public": "`--public` allows it",
    "another process is building this artifact": "`sgsfa run --wait` waits for it",
}
"""Commands and options that help, by message of the library; added to its hint."""


@contextlib.contextmanager
def guard(context: typer.Context | None = None) -> Iterator[None]:
    """Turn errors with an outside cause into a message and an exit code; internal errors pass.

    Errors of the library end with their own code, usage errors with 2, Ctrl-C with 130.

    Args:
        context: Of the command line; `meta["options"]` are the options of the command.
    """
    _silence_h5py_destructors()
    try:
        yield
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", [("hint", "run the same command again to resume")], EXIT_INTERRUPTED)
    except typer.TyperException as error:
        # A misspelt option or command; without --json typer prints it with the usage.
        if not console.wants_json():
            raise
        _fail(error.format_message(), [], error.exit_code, error)
    except (typer.Exit, BrokenPipeError):
        raise
    except OSError as error:
        if error.errno not in _EXTERNAL:
            raise
        # Of a renaming, the second name is the user's.
        name = error.filename2 or error.filename
        _fail(str(error.strerror), [("where", str(name))] if name else [], EXIT_INVALID, error)
    except Exception as error:
        _translate(error, set() if context is None else set(context.meta.get("options", ())))
        raise


def _translate(error: Exception, options: set[str]) -> None:
    """Report an error of the library, or of exhausted memory, and exit; others return."""
    # If the module was never loaded, no error is from it; help must not load the library.
    errors = sys.modules.get("pipeline.errors")
    if errors is not None and isinstance(error, errors.UserError):
        details = {label: console.in_terms_of(text, options) for label, text in error.details()}
        if error.message in _COMMANDS:
            details["hint"] = "; ".join(filter(None, (error.hint, _COMMANDS[error.message])))
        _fail(console.in_terms_of(error.message, options), list(details.items()), error.exit_code, error)
    if errors is not None and isinstance(error, errors.RejectedInputs):
        # The result, which was printed before, lists them as well; standard output stays one JSON object.
        if torchrun.record_error(error):
            hint = [("hint", console.in_terms_of(error.hint, options))] if error.hint else []
            _panel(str(error), [*_rejected(error), *hint])
        raise typer.Exit(error.exit_code) from error
    if errors is not None and isinstance(error, errors.SgsfaError):
        _fail(str(error), [], error.exit_code, error)
    memory = sys.modules.get("pipeline.runtime.memory")
    if isinstance(error, MemoryError) or (memory is not None and memory.out_of_memory(error)):
        cause = [("cause", str(error))] if str(error) else []
        _fail("out of memory", [("hint", _MEMORY_HINT), *cause], EXIT_INVALID, error)


def _silence_h5py_destructors() -> None:
    """Stop h5py from printing a traceback for each object that it closes on a disk that fails.

    The failure itself is an error that is reported. Cython prints by both hooks, of which typer sets the first.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not any(frame.filename.startswith("h5py/_objects") for frame in traceback.extract_tb(trace)):
            sys.__excepthook__(kind, error, trace)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if "h5py" not in repr(args.object):
            sys.__unraisablehook__(args)

    sys.excepthook = hook
    sys.unraisablehook = unraisable


def _fail(message: str, details: Sequence[tuple[str, str]], code: int, error: BaseException | None = None) -> NoReturn:
    if torchrun.is_main() if error is None else torchrun.record_error(error):
        if console.wants_json():
            console.print_json(console.error_as_json(message, details, code))
        else:
            _panel(message, details, title="Stopped" if code == EXIT_INTERRUPTED else "Error")
    raise typer.Exit(code) from error


def _rejected(error: RejectedInputs) -> list[tuple[str, str]]:
    """Return the rejected inputs by reason, each reason once with its first inputs."""
    by_reason: dict[str, list[str]] = {}
    for rejected in error.rejected:
        by_reason.setdefault(rejected.reason, []).append(rejected.path)
    lines = []
    for reason, paths in by_reason.items():
        more = f" and {len(paths) - 3:,} more" if len(paths) > 4 else ""
        lines.append((", ".join(paths[: 3 if more else 4]) + more, reason))
    rest = len(lines) - _LISTED
    return lines if rest <= 0 else [*lines[:_LISTED], ("...", f"{rest} more reasons")]


def _panel(headline: str, details: Sequence[tuple[str, str]], title: str = "Error") -> None:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", overflow="fold")
    grid.add_column(overflow="fold")
    for row in details:
        grid.add_row(*row)
    style = "yellow" if title == "Stopped" else "red"
    console.err().print(Panel(Group(headline, grid), title=title, title_align="left", border_style=style))
