"""What the registry knows of a kind of data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.records import DISTRACTOR_PID, UNKNOWN, Dataset, Record, Split

Reader = Callable[[Path, str, ReadLog], Dataset]
"""(path, variant, log) -> data set. Writes what is wrong into the log and returns what it could read."""


@dataclass(frozen=True, slots=True)
class Count:
    """Published size of a split.

    Attributes:
        images: Images, after junk is dropped.
        ids: Identities, distractors (`DISTRACTOR_PID`) not counted.
        each: Images of every identity, where the protocol fixes it.
    """

    images: int
    ids: int
    each: int | None = None


@dataclass(frozen=True, slots=True)
class KindInfo:
    """A kind of data set.

    Attributes:
        name: As in `KIND:PATH`.
        summary: What it is, in a few words.
        layout: Files and folders below PATH.
        cameras: Cameras, and how they are known.
        source: Where a user asks for the data.
        read: The reader.
        counts: Published counts a split, by variant; the default variant is "".
        variants: Meaning of each variant, by name; the default one is "".
        one_query_a_camera: The protocol has at most one query of an identity in a camera.
        comparable: Which published results the numbers can be set beside.
    """

    name: str
    summary: str
    layout: str
    cameras: str
    source: str
    read: Reader
    counts: Mapping[str, Mapping[Split, Count]] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    one_query_a_camera: bool = False
    comparable: str = ""


def count(records: Iterable[Record]) -> Count:
    """Images and identities of one split's records."""
    records = tuple(records)
    ids = {record.pid for record in records if not (record.split == "gallery" and record.pid == DISTRACTOR_PID)}
    return Count(len(records), len(ids))


def check_counts(info: KindInfo, variant: str, dataset: Dataset, log: ReadLog) -> None:
    """Compare each split that was found with the published counts and log one fault a split that differs."""
    for split, expected in info.counts.get(variant, {}).items():
        folder = log.folders.get(split)
        if folder is None:
            continue
        records = dataset.split(split)
        found = count(records)
        if (found.images, found.ids) == (expected.images, expected.ids):
            continue
        suspects = _suspects(info, split, records, expected)
        log.fault(
            FaultKind.COUNTS,
            f"{split}: found {found.images:,} images of {found.ids:,} identities{suspects}",
            folder,
            expected=f"{expected.images:,} images of {expected.ids:,} identities",
            hint="compare with the original archive, or use what is there: --set data.expect_counts=false",
        )


def check_identities(dataset: Dataset, log: ReadLog) -> None:
    """Log one fault where identities are both trained on and searched for: the result would flatter."""
    train = {record.pid for record in dataset.split("train")}
    test = {record.pid for record in dataset.split("query", "gallery")}
    shared = sorted(train & test - {UNKNOWN, DISTRACTOR_PID})
    if shared:
        some = ", ".join(map(str, shared[:5])) + (", ..." if len(shared) > 5 else "")
        log.fault(
            FaultKind.IDENTITIES,
            f"{len(shared):,} identities are in train and in query or gallery: {some}",
            dataset.root,
            expected="nobody who is trained on is searched for",
        )


def _suspects(info: KindInfo, split: Split, records: tuple[Record, ...], expected: Count) -> str:
    """Name the images that must be behind a wrong count, where the protocol lets us know them."""
    groups: dict[tuple[int, ...], list[str]] = {}
    if expected.each is not None:
        for record in records:
            groups.setdefault((record.pid,), []).append(record.path)
        odd = [
            f"identity {pid} has {len(paths)} of {expected.each} ({', '.join(paths[:6])})"
            for (pid, *_), paths in sorted(groups.items())
            if len(paths) != expected.each
        ]
    elif split == "query" and info.one_query_a_camera:
        for record in records:
            groups.setdefault((record.pid, record.camid), []).append(record.path)
        odd = [f"two queries of one camera: {', '.join(paths)}" for paths in groups.values() if len(paths) > 1]
    else:
        odd = []
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return f"; {'; '.join(odd[:3])}{more}" if odd else ""
