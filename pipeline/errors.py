"""The errors that reach a user.

A `UserError` states what is wrong, where, what was expected and what to do; the command line prints it as one panel
and ends with its exit code. Any other exception is an internal error and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class SgsfaError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what a program should end with.

    Examples:
        >>> from sgsfa import load_model
        >>> try:
        ...     load_model("absent.safetensors")
        ... except SgsfaError as error:
        ...     print(error.exit_code, str(error).splitlines()[0])
        2 checkpoint not found
    """

    exit_code = 1


class UserError(SgsfaError):
    """Invalid input, configuration or surroundings.

    Args:
        message: What is wrong, with the offending value.
        where: The file, folder, option or configuration key concerned.
        expected: What would have been valid.
        hint: What to do about it.
        cause: The message of another library, which is shown whole and last, or its exception.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        where: str | Path | None = None,
        expected: str | None = None,
        hint: str | None = None,
        cause: BaseException | str | None = None,
    ) -> None:
        self.message = message
        self.where = None if where is None else str(where)
        self.expected = expected
        self.hint = hint
        self.cause = library_message(cause) if isinstance(cause, BaseException) else cause
        super().__init__(message, self.where, expected, hint, self.cause)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"{label}: {text}" for label, text in self.details())])

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by the default pickling, and workers send these errors home.
        return (_rebuild, (type(self), self.message, self.where, self.expected, self.hint, self.cause))

    def details(self) -> list[tuple[str, str]]:
        """Return the labelled lines below the headline, without those that are empty."""
        known = (("where", self.where), ("expected", self.expected), ("hint", self.hint), ("cause", self.cause))
        return [(label, text) for label, text in known if text]


def _rebuild(kind: type[UserError], message: str, *details: str | None) -> UserError:
    where, expected, hint, cause = details
    return kind(message, where=where, expected=expected, hint=hint, cause=cause)


def combine(errors: Sequence[UserError], headline: str) -> UserError:
    """Return one error for several: a single one as it is, otherwise a list below a headline.

    Args:
        errors: At least one; the first one decides the type.
        headline: What follows their number, as in `errors in the configuration`.
    """
    distinct = list({str(error): error for error in errors}.values())
    if len(distinct) == 1:
        return distinct[0]
    lines = [f"{len(distinct)} {headline}"]
    for error in distinct:
        where = f" ({error.where})" if error.where else ""
        expected = f"; expected {error.expected}" if error.expected else ""
        lines.append(f"- {error.message}{where}{expected}" + (f"; {error.hint}" if error.hint else ""))
    return type(distinct[0])("\n".join(lines))


class ConfigError(UserError):
    """A configuration file, preset or option is not valid."""


class DataError(UserError):
    """A data set, folder or list is not valid as a whole."""


class ImageError(UserError):
    """One image cannot be used; `where` is its path."""


class FormatError(UserError):
    """A file of this or another program is not valid (masks, features, label maps)."""


class WeightsError(UserError):
    """A weights or checkpoint file is missing, unsafe or of another network."""


class ArtifactError(UserError):
    """The artifact store or an output cannot be read or written."""


class LockedError(ArtifactError):
    """Another live process builds the same artifact or output."""


class DeviceError(UserError):
    """A device is not available, or its memory is exhausted."""


@dataclass(frozen=True)
class Rejected:
    """One input that was skipped, and why."""

    path: str
    reason: str


class RejectedInputs(SgsfaError):
    """The work is finished and published, but some inputs were skipped; ends with exit code 3."""

    exit_code = 3
    hint: str | None = None

    def __init__(self, stage: str, rejected: Sequence[Rejected], *, total: int) -> None:
        self.stage = stage
        self.rejected = tuple(rejected)
        self.total = total
        super().__init__(stage, self.rejected, total)

    def __str__(self) -> str:
        return f"{self.stage}: {len(self.rejected)} of {self.total} inputs were skipped"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_rejected, (self.stage, self.rejected, self.total))


def _rebuild_rejected(stage: str, rejected: tuple[Rejected, ...], total: int) -> RejectedInputs:
    return RejectedInputs(stage, rejected, total=total)


def library_message(error: BaseException) -> str:
    """Return the whole message of another library's exception, or the exception's name if it has none."""
    return str(error).strip() or type(error).__name__
