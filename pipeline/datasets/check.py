"""Look a data set over: counts and every fault, never stopping at the first."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.datasets.faults import NO_CAMERAS, Fault, FaultKind
from pipeline.datasets.images import decode_image
from pipeline.datasets.kind import Count, count
from pipeline.datasets.records import UNKNOWN, Dataset, Record, Split, lonely_queries, unique_names
from pipeline.datasets.registry import overruled_kinds, parse_spec, read_logged
from pipeline.errors import DataError, ImageError, Rejected
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.progress import SILENT, Progress

SPLITS: tuple[Split, ...] = ("train", "query", "gallery", "all")


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Size of one split.

    Attributes:
        split: Which.
        images: Images found, junk left out.
        ids: Identities found, distractors left out; 0 where there are no identities.
        cameras: Cameras found; 0 where there are none.
        expected: The published size, where there is one.
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
    """What `check_dataset` found.

    Attributes:
        spec: The data set as the user named it.
        root: The folder it was found in.
        splits: Sizes of the splits that are there or should be.
        faults: Everything wrong, images last.
        notes: What a result must mention.
        images: Distinct image files.
        decoded: How many of them were read and decoded; 0 without decoding.
        sizes: Of the decoded images, if any.
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
        """Nothing is wrong."""
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
    """Read a data set and list everything that is wrong with it.

    Args:
        spec: KIND:PATH or KIND/VARIANT:PATH.
        decode: Also read and decode every image.
        expect_counts: Wrong counts and missing folders of a known data set are faults; else they become notes.
        threads: Decoding threads; None: one a core.
        progress: Where to report to.

    Raises:
        DataError: `spec` is no specification of a known kind. Faults of the data are reported, not raised.
    """
    parsed = parse_spec(spec)
    dataset, log = read_logged(parsed)
    notes = list(dataset.notes)
    overruled = overruled_kinds(parsed.info, expect_counts) if dataset.records else frozenset()
    faults = [fault for fault in log.faults if fault.kind not in overruled]
    notes += [f"{fault.where}: {fault.message}" for fault in log.faults if fault.kind in overruled]
    faults += _lonely_queries(dataset, notes)
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
    """One error for the faults of the data set as a whole, or None where at most single images are bad."""
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
    nobody = all(record.pid == UNKNOWN for record in records)
    return SplitReport(split, found.images, 0 if nobody else found.ids, len(cameras), expected)


def _lonely_queries(dataset: Dataset, notes: list[str]) -> list[Fault]:
    queries, gallery = dataset.split("query"), dataset.split("gallery")
    if queries and not gallery:
        return [Fault(FaultKind.EMPTY, "there are queries but no gallery to search", str(dataset.root))]
    lonely = lonely_queries(queries, gallery)
    if queries and len(lonely) == len(queries):
        return [
            Fault(
                FaultKind.LONELY,
                f"none of the {len(queries):,} queries has a gallery image of the same identity in another camera",
                str(dataset.root),
                expected="another camera than the query's: images of its own camera are not counted as found",
                hint=NO_CAMERAS,
            )
        ]
    if lonely:
        notes.append(
            f"{len(lonely):,} {'query has' if len(lonely) == 1 else 'queries have'} no gallery image of the same "
            f"identity in another camera and will be skipped ({lonely[0].path})"
        )
    return []


def _decode_all(dataset: Dataset, names: Sequence[str], threads: int, progress: Progress) -> _Decoded:
    decoded = _Decoded()

    def look(name: str) -> tuple[str, tuple[int, int]] | ImageError:
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
            for name, result in zip(some, pool.map(look, some), strict=True):
                if isinstance(result, ImageError):
                    decoded.faults.append(Fault(FaultKind.IMAGE, result.message, name, result.expected))
                else:
                    decoded.hashes[name], size = result
                    decoded.sizes.append(size)
            task.advance(len(some))
    return decoded


def _equal_files(dataset: Dataset, hashes: dict[str, str]) -> list[str]:
    """Note images of one split that are equal to the byte; published sets have a few, so it is no fault."""
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
            strangers = sum(record.pid != other.pid for record, other in equal)
            notes.append(
                f"{len(equal):,} {f'image of {split} is' if len(equal) == 1 else f'images of {split} are'} equal to "
                f"another one to the byte ({record.path} = {other.path})"
                + (f"; {strangers:,} of them under another identity" if strangers else "")
            )
    return notes


def _size_report(sizes: list[tuple[int, int]]) -> SizeReport | None:
    if not sizes:
        return None
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return SizeReport(by_area[0], by_area[len(by_area) // 2], by_area[-1])
