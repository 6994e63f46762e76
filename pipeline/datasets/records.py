"""The model of a data set: a root folder and a list of records."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Split = Literal["train", "query", "gallery", "all"]
"""`all` marks images without a role: a plain folder, for masks and extraction only."""

DISTRACTOR_PID = 0
"""Gallery images of no query identity; they stay as negatives (Market-1501)."""

UNKNOWN = -1
"""pid or camid of an image that has none (a plain folder). Junk images (-1 in Market-1501) are never records."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image in one role.

    Attributes:
        path: POSIX path relative to the root of the data set; the name of the image in every file.
        pid: Person id as in the data set, or `UNKNOWN`.
        camid: Camera id as in the data set, or `UNKNOWN`.
        split: Its role.
    """

    path: str
    pid: int
    camid: int
    split: Split


@dataclass(frozen=True)
class Dataset:
    """A data set that was read.

    Attributes:
        kind: Name of its layout (`market1501`, `csv`, ...).
        name: Short name for folders and tables.
        root: Folder that record paths are relative to.
        records: All records, in the order of the layout (gallery order breaks ties in rankings).
        label_maps: Folder of 20-class label maps with the images' relative names, if the set has them.
        extra: Further columns, by record path (visible fraction, occluder, ...).
        notes: Choices and losses that a result must mention (junk dropped, pseudo cameras, missing images, ...).

    Examples:
        >>> from sgsfa import open_dataset
        >>> dataset = open_dataset("csv:dataset.csv")
        >>> len(dataset.split("query")), dataset.path_of(dataset.records[0]).suffix
        (4, '.png')
    """

    kind: str
    name: str
    root: Path
    records: tuple[Record, ...]
    label_maps: Path | None = None
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def split(self, *names: Split) -> tuple[Record, ...]:
        """Return the records whose split is among `names`, in order."""
        return tuple(record for record in self.records if record.split in names)

    def path_of(self, record: Record) -> Path:
        """Return the path of a record's image."""
        return self.root / record.path


def unique_names(records: Iterable[Record]) -> list[str]:
    """Return the distinct image names of `records`, sorted; the order of every mask file."""
    return sorted({record.path for record in records})


def short_name(text: str) -> str:
    """Return a name for folders and tables: letters of any script, digits, `-`, `_` and `.` only."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "data"


def queries_without_match(queries: Sequence[Record], gallery: Sequence[Record]) -> list[Record]:
    """Return the queries without a gallery image of the same identity in another camera."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for record in gallery:
        cameras[record.pid].add(record.camid)
    return [record for record in queries if not cameras[record.pid] - {record.camid}]
