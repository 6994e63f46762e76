"""The errors that reach a user.

A `UserError` tells what was found, where, what was expected and what to do; the command line prints it as one
panel and ends with its exit code. Everything that is not one of these is a defect and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class SgsfaError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what a program should end with."""

    exit_code = 1


class UserError(SgsfaError):
    """Something that the user can put right.

    Args:
        message: What is wrong, as a plain sentence.
        where: The file, folder, option or configuration key concerned.
        expected: What would have been right.
        hint: What to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        where: str | Path | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.where = None if where is None else str(where)
        self.expected = expected
        self.hint = hint
        super().__init__(message, self.where, expected, hint)

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"{label}: {text}" for label, text in self.details()]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by the default pickling, and workers send these errors home.
        return (_rebuild, (type(self), self.message, self.where, self.expected, self.hint))

    def details(self) -> list[tuple[str, str]]:
        """The labelled lines under the headline, those that are known."""
        known = (("where", self.where), ("expected", self.expected), ("hint", self.hint))
        return [(label, text) for label, text in known if text]


def _rebuild(
    kind: type[UserError], message: str, where: str | None, expected: str | None, hint: str | None
) -> UserError:
    return kind(message, where=where, expected=expected, hint=hint)


class ConfigError(UserError):
    """A configuration file, preset or option is wrong."""


class DataError(UserError):
    """A data set, folder or list is wrong as a whole."""


class ImageError(UserError):
    """One image cannot be used; `where` is its path."""


class FormatError(UserError):
    """A file of ours or of another program is not what it should be (masks, features, label maps)."""


class WeightsError(UserError):
    """A weights or checkpoint file is missing, unsafe or of another shape."""


class ArtifactError(UserError):
    """The artifact store cannot be read or written."""


class LockedError(ArtifactError):
    """Another live process works on the same artifact."""


class DeviceError(UserError):
    """The device asked for is not there, or its memory is exhausted."""


@dataclass(frozen=True)
class Rejected:
    """One input that was left out, and why."""

    path: str
    reason: str


class RejectedInputs(SgsfaError):
    """The work is finished and published, but some inputs were rejected; ends with exit code 3."""

    exit_code = 3

    def __init__(self, stage: str, rejected: Sequence[Rejected], *, total: int) -> None:
        self.stage = stage
        self.rejected = tuple(rejected)
        self.total = total
        super().__init__(stage, self.rejected, total)

    def __str__(self) -> str:
        return f"{self.stage}: {len(self.rejected)} of {self.total} inputs were rejected"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_rejected, (self.stage, self.rejected, self.total))


def _rebuild_rejected(stage: str, rejected: tuple[Rejected, ...], total: int) -> RejectedInputs:
    return RejectedInputs(stage, rejected, total=total)


def first_line(error: Exception, limit: int = 200) -> str:
    """What a library's exception says, in one line; the exception's name, where it says nothing.

    Args:
        error: Of another library, whose further lines are for its developers.
        limit: Most characters.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # "backend='inductor' raised:" alone says nothing.
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:limit]
