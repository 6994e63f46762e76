"""Faults of a data set, collected while it is read so that no fault hides the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pipeline.datasets.records import Dataset, Record, Split, queries_without_match
from pipeline.errors import DataError

_SHOWN = 5


class FaultKind(StrEnum):
    """Kinds of faults; the value is shown in tables."""

    MISSING = "missing folder or file"
    AMBIGUOUS = "ambiguous folder"
    UNREADABLE = "unreadable"
    EMPTY = "no images"
    NAME = "invalid name"
    ROW = "invalid row"
    DUPLICATE = "duplicate"
    COUNTS = "counts differ"
    IDENTITIES = "identity in train and test"
    NO_MATCH = "no match for the queries"
    IMAGE = "unusable image"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what is wrong, at which file, folder or line, what would be valid, and what to do about it."""

    kind: FaultKind
    message: str
    where: str
    expected: str | None = None
    hint: str | None = None


@dataclass
class ReadLog:
    """Findings of a reader.

    Attributes:
        faults: All faults, in the order of reading.
        notes: Choices that a result must mention.
        folders: The folder or list that each split was read from; a split without an entry was not found.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folders: dict[Split, Path] = field(default_factory=dict)

    def fault(
        self, kind: FaultKind, message: str, where: Path | str, *, expected: str | None = None, hint: str | None = None
    ) -> None:
        """Add a fault."""
        self.faults.append(Fault(kind, message, str(where), expected, hint))

    def note(self, message: str) -> None:
        """Add a note."""
        self.notes.append(message)


def as_error(faults: Sequence[Fault], spec: str) -> DataError:
    """Return one error for all `faults` of the data set `spec`: a single fault, or the first few and their number."""
    first = faults[0]
    if len(faults) == 1:
        return DataError(first.message, where=first.where, expected=first.expected, hint=first.hint)
    lines = [f"{len(faults):,} faults in the data set"]
    for fault in faults[:_SHOWN]:
        expected = f" (expected: {fault.expected})" if fault.expected else ""
        lines.append(f"  {fault.where}: {fault.message}{expected}")
    if len(faults) > _SHOWN:
        lines.append(f"  ... and {len(faults) - _SHOWN:,} more")
    return DataError("\n".join(lines), where=spec, hint=next((fault.hint for fault in faults if fault.hint), None))


def match_fault(dataset: Dataset) -> Fault | None:
    """Return the fault of a data set in which no query can be found, or None; the hint follows from the ids."""
    queries, gallery, where = dataset.split("query"), dataset.split("gallery"), str(dataset.root)
    if not queries:
        return None
    if not gallery:
        return Fault(FaultKind.EMPTY, "there are queries but no gallery images", where)
    if len(queries_without_match(queries, gallery)) < len(queries):
        return None
    wanted, stored = ({record.pid for record in side} for side in (queries, gallery))
    if not wanted & stored:
        return Fault(
            FaultKind.NO_MATCH,
            f"none of the {len(wanted):,} query identities is in the gallery (query: {_some(wanted)}; gallery: "
            f"{_some(stored)})",
            where,
            expected="the same person ids in query and gallery",
        )
    return Fault(
        FaultKind.NO_MATCH,
        f"none of the {len(queries):,} queries has a gallery image of the same identity in another camera",
        where,
        expected="another camera than that of the query: gallery images of the same identity and camera are ignored",
        hint=_camera_hint(queries, gallery),
    )


def _camera_hint(queries: Sequence[Record], gallery: Sequence[Record]) -> str:
    leave_out = "leave out the column camid of a CSV file: then only the image itself is ignored"
    both = {record.path for record in queries} & {record.path for record in gallery}
    if both:
        return f"{len(both):,} images are query and gallery; {leave_out}"
    cameras = {record.camid for record in (*queries, *gallery)}
    return f"if cameras are not known, {leave_out}" if len(cameras) == 1 else "check the camera ids"


def _some(pids: set[int]) -> str:
    return ", ".join(map(str, sorted(pids)[:3])) + (", ..." if len(pids) > 3 else "")
