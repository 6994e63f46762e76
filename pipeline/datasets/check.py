"""Check a data set: counts and all faults, not only the first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.faults import Fault, FaultKind, match_fault
from pipeline.datasets.images import decode_image, is_padded, read_bytes
from pipeline.datasets.kind import Count, count
from pipeline.datasets.records import UNKNOWN, Dataset, Record, Split, queries_without_match, unique_names
from pipeline.datasets.registry import accepted_kinds, parse_spec, read_logged
from pipeline.errors import DataError, ImageError, Rejected
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.progress import SILENT, Progress

SPLITS: tuple[Split, ...] = ("train", "query", "gallery", "all")


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Size of one split: images without junk, identities without distractors, cameras (0: none or unknown).

    `expected` is the published size, if there is one.
    """

    split: Split
    images: int
    ids: int
    cameras: int
    expected: Count | None


@dataclass(frozen=True, slots=True)
class SizeReport:
    """Sizes of the decoded images, in pixels: (height, width); how many are padded with `model.fit = "pad"`."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    padded: int


@dataclass(frozen=True)
class DatasetReport:
    """Result of `check_dataset`, for a data set as the user named it (`spec`) in the folder `root`.

    Attributes:
        splits: Sizes of the splits that exist or should exist.
        faults: All faults, those of images last.
        notes: Choices and losses that a result must mention.
        images: Distinct image files.
        decoded: Images that were decoded, of the sizes `sizes`; 0 without decoding.
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
    spec: str, *, decode: bool = True, expect_counts: bool = True, progress: Progress = SILENT
) -> DatasetReport:
    """Read a data set and return all its faults; with `decode`, every image is decoded.

    Without `expect_counts`, wrong counts and missing folders of a known data set are notes, not faults.

    Raises:
        DataError: `spec` is not valid. Faults of the data are reported, not raised.
    """
    parsed = parse_spec(spec)
    dataset, log = read_logged(parsed)
    accepted = accepted_kinds(parsed.info, expect_counts) if dataset.records else frozenset()
    faults = [fault for fault in log.faults if fault.kind not in accepted]
    notes = [*dataset.notes, *(f"{fault.where}: {fault.message}" for fault in log.faults if fault.kind in accepted)]
    if (unmatched := match_fault(dataset)) is not None:
        faults.append(unmatched)
    else:
        notes += _unmatched_note(dataset)
    names = unique_names(dataset.records)
    hashes: dict[str, str] = {}
    sizes: list[tuple[int, int]] = []
    for name, result in _decoded(dataset, names if decode else (), progress):
        if isinstance(result, ImageError):
            faults.append(Fault(FaultKind.IMAGE, result.message, name, result.expected))
        else:
            hashes[name], size = result
            sizes.append(size)
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
        notes=(*notes, *_equal_files(dataset, hashes)),
        images=len(names),
        decoded=len(sizes),
        sizes=_size_report(sizes) if sizes else None,
    )


def as_whole(report: DatasetReport) -> DataError | None:
    """Return one error for the faults of the data set as a whole, or None if at most single images are unusable."""
    faults = report.structural
    if not faults:
        return None
    kinds = sorted({fault.kind.value for fault in faults})
    plural = "s" if len(faults) > 1 else ""
    return DataError(f"{len(faults):,} fault{plural} in the data set ({', '.join(kinds)})", where=report.spec)


def _size_report(sizes: Sequence[tuple[int, int]]) -> SizeReport:
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    padded = sum(is_padded(*size) for size in sizes)
    return SizeReport(ordered[0], ordered[len(ordered) // 2], ordered[-1], padded)


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


def _decoded(
    dataset: Dataset, names: Sequence[str], progress: Progress
) -> Iterator[tuple[str, tuple[str, tuple[int, int]] | ImageError]]:
    """Hash and size of each image, or why it cannot be used."""

    def decode(name: str) -> tuple[str, tuple[int, int]] | ImageError:
        path = dataset.root / name
        try:
            data = read_bytes(path)
            height, width = decode_image(data, path).shape[:2]
            return hashlib.sha256(data).hexdigest(), (height, width)
        except ImageError as error:
            return error

    # In slices, so that Ctrl-C does not have to wait for a hundred thousand queued images.
    with (
        ThreadPoolExecutor(worker_count(-1), thread_name_prefix="check") as pool,
        progress.task("check", total=len(names)) as task,
    ):
        for start in range(0, len(names), 512):
            some = names[start : start + 512]
            yield from zip(some, pool.map(decode, some), strict=True)
            task.advance(len(some))


def _equal_files(dataset: Dataset, hashes: Mapping[str, str]) -> list[str]:
    """Note files with identical bytes, also of two splits; published sets have a few, so it is not a fault."""
    first: dict[str, Record] = {}
    found: dict[tuple[Split, Split], list[tuple[Record, Record]]] = {}
    for record in (record for split in SPLITS for record in dataset.split(split) if record.path in hashes):
        other = first.setdefault(hashes[record.path], record)
        if other.path != record.path:
            found.setdefault((record.split, other.split), []).append((record, other))
    notes = []
    for (split, earlier), equal in found.items():
        record, other = equal[0]
        others = sum(record.pid != other.pid for record, other in equal)
        notes.append(
            f"{len(equal):,} {'image' if len(equal) == 1 else 'images'} of {split} identical to "
            f"{'another one' if split == earlier else f'one of {earlier}'} ({record.path} = {other.path})"
            + (f"; {others:,} of them with another identity" if others else "")
        )
    return notes
