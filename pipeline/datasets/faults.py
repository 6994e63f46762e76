"""What is wrong with a data set, collected while it is read so that no fault hides the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pipeline.datasets.records import Split
from pipeline.errors import DataError

_SHOWN = 5
NO_CAMERAS = "where cameras are not known, give all queries camera 0 and the gallery camera 1"


class FaultKind(StrEnum):
    """The families of faults; the value is what a table shows."""

    MISSING = "missing folder or file"
    EMPTY = "no images"
    NAME = "unparsable name"
    ROW = "bad row"
    DUPLICATE = "duplicate"
    COUNTS = "counts differ"
    IDENTITIES = "identity in train and test"
    LONELY = "no match in another camera"
    IMAGE = "unusable image"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: Its family.
        message: What is wrong, as a plain sentence.
        where: The file, folder or line concerned.
        expected: What would have been right.
        hint: What to do about it.
    """

    kind: FaultKind
    message: str
    where: str
    expected: str | None = None
    hint: str | None = None


@dataclass
class ReadLog:
    """Where a reader notes what it met.

    Attributes:
        faults: Everything wrong, in the order of reading.
        notes: Choices that a result must mention.
        folders: The folder or list that each split was read from; a split without an entry was not found at all.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folders: dict[Split, Path] = field(default_factory=dict)

    def fault(
        self,
        kind: FaultKind,
        found: str,
        where: Path | str,
        *,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Note a fault."""
        self.faults.append(Fault(kind, found, str(where), expected, hint))

    def note(self, message: str) -> None:
        """Note a choice."""
        self.notes.append(message)


def as_error(faults: Sequence[Fault], spec: str) -> DataError:
    """One error for all `faults` of the data set `spec`: a single fault as it is, or the first few and the number."""
    first = faults[0]
    if len(faults) == 1:
        # The list would say this one thing again.
        return DataError(first.message, where=first.where, expected=first.expected, hint=first.hint)
    lines = [f"{len(faults)} faults in the data set"]
    lines += [f"  {fault.where}: {fault.message}{_expected(fault)}" for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"  ... and {len(faults) - _SHOWN} more")
    everything = f"`sgsfa data check {spec}` lists everything that is wrong"
    return DataError("\n".join(lines), where=spec, hint="; ".join(filter(None, (first.hint, everything))))


def _expected(fault: Fault) -> str:
    return f" (expected: {fault.expected})" if fault.expected else ""
