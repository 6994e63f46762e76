"""Check a data set: counts and all faults, not only the first."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.datasets.faults import Fault, FaultKind, match_fault
from pipeline.datasets.images import decode_image
from pipeline.datasets.kind import Count, count
from pipeline.datasets.records import UNKNOWN, Dataset, Record, Split, queries_without_match, unique_names
from pipeline.datasets.registry import accepted_kinds, parse_spec, read_logged
from pipeline.errors import DataError, ImageError, Rejected
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.progress import SILENT, Progress

SPLITS: tuple[Split, ...] = ("train", "query", "gallery", "all")


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Size of one split.

    Attributes:
        split: Which.
        images: Images, without junk.
        ids: Identities, without distractors; 0 if there are no identities.
        cameras: Cameras; 0 if they are unknown.
        expected: The published size, if there is one.
    """

    split: Split
    images: int
    ids: int
    cameras: int
    expected: Count | None


@dataclass(frozen=True, slots=True)
class SizeReport:
    """Sizes of the decoded images, in pixels: (height, width)."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class DatasetReport:
    """Result of `check_dataset`.

    Attributes:
        spec: The data set as the user named it.
        root: Its folder.
        splits: Sizes of the splits that exist or should exist.
        faults: All faults, those of images last.
        notes: Choices and losses that a result must mention.
        images: Distinct image files.
        decoded: Images that were decoded; 0 without decoding.
        sizes: Sizes of the decoded images, if any.
    """

    spec: str
    root: Path
    splits: tuple[SplitReport, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    images: int
    decoded: int
    sizes: SizeReport | None = None

    @property
    def sound(self) -> bool:
        """Whether there are no faults."""
        return not self.faults

    @property
    def structural(self) -> tuple[Fault, ...]:
        """Faults of the data set as a whole."""
        return tuple(fault for fault in self.faults if fault.kind != FaultKind.IMAGE)

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """The images that cannot be used."""
        return tuple(Rejected(fault.where, fault.message) for fault in self.faults if fault.kind == FaultKind.IMAGE)


def check_dataset(
    spec: str,
    *,
    decode: bool = True,
    expect_counts: bool = True,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> DatasetReport:
    """Read a data set and return all its faults.

    Args:
        spec: KIND:PATH, KIND/VARIANT:PATH or a folder of images.
        decode: Also read and decode every image.
        expect_counts: Wrong counts and missing folders of a known data set are faults; if off, they are notes.
        threads: Decoding threads; None: one per core.
        progress: Receives progress.

    Raises:
        DataError: `spec` is not valid. Faults of the data are reported, not raised.
    """
    parsed = parse_spec(spec)
    dataset, log = read_logged(parsed)
    notes = list(dataset.notes)
    accepted = accepted_kinds(parsed.info, expect_counts) if dataset.records else frozenset()
    faults = [fault for fault in log.faults if fault.kind not in accepted]
    notes += [f"{fault.where}: {fault.message}" for fault in log.faults if fault.kind in accepted]
    unmatched = match_fault(dataset)
    if unmatched is not None:
        faults.append(unmatched)
    else:
        notes += _unmatched_note(dataset)
    names = unique_names(dataset.records)
    images = _decode_all(dataset, names, threads or worker_count(-1), progress) if decode else _Decoded()
    faults += images.faults
    notes += _equal_files(dataset, images.hashes)
    expected = parsed.info.counts.get(parsed.variant, {})
    return DatasetReport(
        spec=spec,
        root=dataset.root,
        splits=tuple(
            _split_report(split, dataset.split(split), expected.get(split))
            for split in SPLITS
            if dataset.split(split) or split in expected
        ),
        faults=tuple(faults),
        notes=tuple(notes),
        images=len(names),
        decoded=len(images.sizes),
        sizes=_size_report(images.sizes),
    )


def as_whole(report: DatasetReport) -> DataError | None:
    """Return one error for the faults of the data set as a whole, or None if at most single images are unusable."""
    faults = report.structural
    if not faults:
        return None
    kinds = sorted({fault.kind.value for fault in faults})
    plural = "s" if len(faults) > 1 else ""
    return DataError(f"{len(faults):,} fault{plural} in the data set ({', '.join(kinds)})", where=report.spec)


@dataclass
class _Decoded:
    faults: list[Fault] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)


def _split_report(split: Split, records: Sequence[Record], expected: Count | None) -> SplitReport:
    found = count(records)
    cameras = {record.camid for record in records if record.camid != UNKNOWN}
    # One camera per image stands for unknown cameras (a table without the column camid).
    known = len(cameras) < len(records) or len(cameras) == 1
    unknown_ids = all(record.pid == UNKNOWN for record in records)
    return SplitReport(split, found.images, 0 if unknown_ids else found.ids, len(cameras) if known else 0, expected)


def _unmatched_note(dataset: Dataset) -> list[str]:
    unmatched = queries_without_match(dataset.split("query"), dataset.split("gallery"))
    if not unmatched:
        return []
    have = "query has" if len(unmatched) == 1 else "queries have"
    return [
        f"{len(unmatched):,} {have} no gallery image of the same identity in another camera and will be skipped "
        f"({unmatched[0].path})"
    ]


def _decode_all(dataset: Dataset, names: Sequence[str], threads: int, progress: Progress) -> _Decoded:
    decoded = _Decoded()

    def decode(name: str) -> tuple[str, tuple[int, int]] | ImageError:
        path = dataset.root / name
        try:
            data = path.read_bytes()
            height, width = decode_image(data, path).shape[:2]
            return hashlib.sha256(data).hexdigest(), (height, width)
        except OSError as error:
            return ImageError(f"the file cannot be read: {error.strerror or error}", where=path)
        except ImageError as error:
            return error

    # In slices, so that Ctrl-C does not have to wait for a hundred thousand queued images.
    with (
        progress.task("check", total=len(names)) as task,
        ThreadPoolExecutor(threads, thread_name_prefix="check") as pool,
    ):
        for start in range(0, len(names), 512):
            some = names[start : start + 512]
            for name, result in zip(some, pool.map(decode, some), strict=True):
                if isinstance(result, ImageError):
                    decoded.faults.append(Fault(FaultKind.IMAGE, result.message, name, result.expected))
                else:
                    decoded.hashes[name], size = result
                    decoded.sizes.append(size)
            task.advance(len(some))
    return decoded


def _equal_files(dataset: Dataset, hashes: dict[str, str]) -> list[str]:
    """Note images of one split with identical bytes; published sets have a few, so it is not a fault."""
    notes = []
    for split in SPLITS:
        first: dict[str, Record] = {}
        equal: list[tuple[Record, Record]] = []
        for record in dataset.split(split):
            sha256 = hashes.get(record.path)
            if sha256 is None:
                continue
            other = first.setdefault(sha256, record)
            if other is not record:
                equal.append((record, other))
        if equal:
            record, other = equal[0]
            others = sum(record.pid != other.pid for record, other in equal)
            notes.append(
                f"{len(equal):,} {'image' if len(equal) == 1 else 'images'} of {split} identical to another one "
                f"({record.path} = {other.path})" + (f"; {others:,} of them with another identity" if others else "")
            )
    return notes


def _size_report(sizes: list[tuple[int, int]]) -> SizeReport | None:
    if not sizes:
        return None
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return SizeReport(by_area[0], by_area[len(by_area) // 2], by_area[-1])
