"""Description of a kind of data set, and the checks that follow from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.records import DISTRACTOR_PID, UNKNOWN, Dataset, Record, Split

Reader = Callable[[Path, str, ReadLog], Dataset]
"""(path, variant, log) -> data set. Adds faults to the log and returns what can be read."""


@dataclass(frozen=True, slots=True)
class Count:
    """Size of a split: images without junk, identities without distractors, images per identity if that is fixed."""

    images: int
    ids: int
    each: int | None = None


@dataclass(frozen=True, slots=True)
class KindInfo:
    """A kind of data set.

    Attributes:
        name: As in `KIND:PATH`.
        summary: A short description.
        layout: Files and folders below PATH.
        cameras: Number of cameras, and where their ids come from.
        source: Where to request the data.
        read: The reader.
        entries: Files or folders whose presence suggests this kind.
        counts: Published counts per split, by variant; the default variant is "".
        variants: Meaning of each variant, by name; the default one is "".
        one_query_per_camera: The protocol has at most one query per identity and camera.
        comparable: Which published results are comparable.
    """

    name: str
    summary: str
    layout: str
    cameras: str
    source: str
    read: Reader
    entries: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[Split, Count]] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    one_query_per_camera: bool = False
    comparable: str = ""


def count(records: Sequence[Record]) -> Count:
    """Count images and identities of one split's records."""
    ids = {record.pid for record in records if not (record.split == "gallery" and record.pid == DISTRACTOR_PID)}
    return Count(len(records), len(ids))


def check_counts(info: KindInfo, variant: str, dataset: Dataset, log: ReadLog) -> None:
    """Compare each split that was found with the published counts; log one fault per split that differs."""
    for split, expected in info.counts.get(variant, {}).items():
        records = dataset.split(split)
        found = count(records)
        if split in log.folders and (found.images, found.ids) != (expected.images, expected.ids):
            log.fault(
                FaultKind.COUNTS,
                f"{split}: found {found.images:,} images of {found.ids:,} identities"
                + _suspects(info, split, records, expected),
                log.folders[split],
                expected=f"{expected.images:,} images of {expected.ids:,} identities",
                hint="compare with the original archive, or accept the difference with data.expect_counts=false",
            )


def check_identities(dataset: Dataset, log: ReadLog) -> None:
    """Log one fault if identities are in both training and test: the result would be too good."""
    train = {record.pid for record in dataset.split("train")}
    test = {record.pid for record in dataset.split("query", "gallery")}
    shared = sorted(train & test - {UNKNOWN, DISTRACTOR_PID})
    if shared:
        some = ", ".join(map(str, shared[:5])) + (", ..." if len(shared) > 5 else "")
        text = f"{len(shared):,} identities are in train and in query or gallery: {some}"
        log.fault(FaultKind.IDENTITIES, text, dataset.root, expected="disjoint identities in training and test")


def _suspects(info: KindInfo, split: Split, records: Sequence[Record], expected: Count) -> str:
    """Name the images that must be behind a wrong count, if the protocol tells."""
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    odd: list[str] = []
    if expected.each is not None:
        for record in records:
            groups[record.pid, 0].append(record.path)
        odd = [
            f"identity {pid} has {len(paths)} of {expected.each} ({', '.join(paths[:6])})"
            for (pid, _), paths in sorted(groups.items())
            if len(paths) != expected.each
        ]
    elif split == "query" and info.one_query_per_camera:
        for record in records:
            groups[record.pid, record.camid].append(record.path)
        odd = [f"two queries of one camera: {', '.join(paths)}" for paths in groups.values() if len(paths) > 1]
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return f"; {'; '.join(odd[:3])}{more}" if odd else ""
