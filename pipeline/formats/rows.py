"""Row-wise HDF5 files that survive a kill at any moment: the base of mask files and features files.

Besides the columns of its kind, a file has a `status` (pending, ok or failed) and the `reason` of a failure per row.
Resuming a file means writing its pending rows. The guarantee rests on three things: the layout and its storage are
allocated when the file is created (`libver="earliest"`, contiguous datasets), so later writes change no metadata; the
contents of rows are flushed before their status; and rows that are overwritten are pending meanwhile.

HDF5's own file locks stay off: the creator of an output holds our lock, and some network disks support no others.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, FormatError
from pipeline.formats.foreign import DESCRIPTIONS, sniff
from pipeline.formats.provenance import Difference, Provenance, canonical_json
from pipeline.formats.resume import START_OVER, conflict
from pipeline.runtime.files import atomic_write, error_number, is_no_space, reserve, sha256_bytes
from pipeline.version import __version__

PENDING, OK, FAILED = 0, 1, 2
"""Values of `status`."""

REASON_BYTES = 120
"""Most bytes of UTF-8 that are kept of a reason."""

STATUS, REASON, CRC = "status", "reason", "crc"

_STRUCTURE = 1 << 16  # most bytes that the structure of a file takes

Status = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A kind of row-wise file: attributes `format` and `format_version`, what messages call it (`mask file`).

    With `checksums`, each row has a CRC-32 (dataset `crc`).
    """

    name: str
    version: int
    title: str
    checksums: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A dataset that is written row by row: the shape of a row and its type, as in `f4`."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that is fixed when a file of `count` rows is created.

    Attributes:
        columns: Datasets that are written row by row.
        fixed: Datasets that are written at once: names, ids. Text as from `encode_texts`.
        attributes: Further attributes of the file, texts or integers.
    """

    format: RowFormat
    count: int
    columns: Mapping[str, Column]
    fixed: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, str | int] = field(default_factory=dict)


class RowWriter:
    """Writes the rows of a file in any order. Returned by `open_or_create`; use as a context manager.

    Attributes:
        provenance: The record in the file; its incidental keys may differ from the caller's.
        status: (N,) uint8, the state of each row. A caller may set failed rows to `PENDING` to try them again.
    """

    def __init__(self, path: Path, layout: Layout, provenance: Provenance, status: Status, file: h5py.File) -> None:
        self.path = path
        self.provenance = provenance
        self.status = status
        self._layout = layout
        self._file = file

    def reasons(self) -> dict[int, str]:
        """Reasons of the failed rows, by row."""
        return read_reasons(self._file, self.status)

    def write(
        self, start: int, columns: Mapping[str, NDArray[Any]], status: Status, reasons: Mapping[int, str] | None = None
    ) -> None:
        """Write consecutive rows from `start` on; when this returns, they survive the death of this process.

        `columns` has an array of n rows each, `status` (n,) is `OK` or `FAILED`, `reasons` are by row of the file.

        Raises:
            ArtifactError: The rows cannot be written (the disk is full).
            ValueError: The arrays do not fit the layout.
        """
        stop = start + len(status)
        if stop > self._layout.count:
            raise ValueError(f"rows {start} to {stop} do not fit a file of {self._layout.count}")
        arrays = {}
        for name, column in self._layout.columns.items():
            arrays[name] = np.ascontiguousarray(columns[name], np.dtype(column.dtype).newbyteorder("<"))
            if arrays[name].shape != (len(status), *column.shape):
                raise ValueError(f"{name} is {arrays[name].shape}, expected {(len(status), *column.shape)}")
        with translated(self.path, self._layout.format, writing=True):
            if self._file[STATUS][start:stop].any():
                self._file[STATUS][start:stop] = PENDING
                self._file.flush()
            for name, array in arrays.items():
                self._file[name][start:stop] = array
            if (status == FAILED).any() or self._file[REASON][start:stop].any():
                texts = [(reasons or {}).get(row, "") for row in range(start, stop)]
                self._file[REASON][start:stop] = encode_texts(texts, REASON_BYTES)
            if self._layout.format.checksums:
                self._file[CRC][start:stop] = row_checksums(arrays, status)
            self._file.flush()
            self._file[STATUS][start:stop] = status
            self._file.flush()
        self.status[start:stop] = status

    def finish(self) -> None:
        """Bring the complete file to the disk.

        Raises:
            ValueError: Rows are pending.
            ArtifactError: The disk is full or fails.
        """
        if (self.status == PENDING).any():
            raise ValueError("rows are still pending")
        with translated(self.path, self._layout.format, writing=True):
            self._file.flush()
            os.fsync(self._file.id.get_vfd_handle())

    def close(self) -> None:
        """Close the file; what was written stays."""
        with translated(self.path, self._layout.format, writing=True):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        # The first error is the one to report; on a full disk, closing fails again for the same reason.
        with contextlib.suppress(ArtifactError):
            self.close()


def open_or_create(
    path: Path,
    layout: Layout,
    provenance: Provenance,
    *,
    incidental: Callable[[Difference], bool] | None = None,
    published: Path | None = None,
) -> RowWriter:
    """Create a file whose rows are all pending, or open the one at `path` to resume it.

    A file without one row that is `OK` is replaced whatever it was created for: nothing is lost.

    Args:
        path: The file, in an existing folder.
        layout: What is fixed.
        provenance: The record of what decides the rows.
        incidental: What a resumed file may differ in from `provenance` (`resume.conflict`).
        published: An earlier, finished file. Where `path` does not exist, its rows are taken over, so that failed ones
            can be tried again.

    Raises:
        FormatError: A file there is damaged, or was created for other rows or with another record.
        ArtifactError: There is not enough space, or the file cannot be written.
    """
    earlier = next((each for each in (path, published) if each is not None and each.exists()), None)
    if earlier is None or not _has_rows(earlier, layout.format):
        _create(path, layout, provenance)
        earlier = path
    with reading(earlier, layout.format) as file:
        _require_same_rows(file, earlier, layout)
        recorded = Provenance.from_json(file.attrs["provenance"])
        if error := conflict(layout.format.title, earlier, recorded, provenance, incidental=incidental):
            raise error
        check_datasets(file, earlier, layout.format, layout.count, layout.columns)
        status: Status = file[STATUS][...]
        if layout.format.checksums and status.any():
            columns = {name: file[name][...] for name in layout.columns}
            status[corrupt_rows(columns, status, file[CRC][...])] = PENDING
    if earlier != path:
        with atomic_write(path) as copy:
            shutil.copyfile(earlier, copy)
    with translated(path, layout.format, writing=True):
        opened = h5py.File(path, "r+", libver="earliest", locking=False)
    return RowWriter(path, layout, recorded, status, opened)


@contextlib.contextmanager
def reading(path: Path, kind: RowFormat) -> Iterator[h5py.File]:
    """Open a file of a kind for reading; its attributes have been checked.

    Raises:
        FormatError: The file is missing, is not one of this kind or version, or is damaged; also when reading from it
            fails inside the context.
    """
    if not path.is_file():
        raise FormatError(f"{kind.title} not found", where=path)
    with translated(path, kind):
        content = sniff(path)
        if content != "hdf5":
            raise FormatError(f"the {kind.title} is {DESCRIPTIONS[content]}", where=path, expected="an HDF5 file")
        with h5py.File(path, "r", locking=False) as file:
            _check_attributes(file, path, kind)
            yield file


def read_reasons(file: h5py.File, status: Status) -> dict[int, str]:
    """Read the reasons of the failed rows, by row."""
    rows = np.flatnonzero(status == FAILED)
    return dict(zip(rows.tolist(), decode_texts(file[REASON][rows]), strict=True)) if len(rows) else {}


def row_columns(kind: RowFormat, columns: Mapping[str, Column]) -> dict[str, Column]:
    """Return columns with those that every row-wise file of a kind has."""
    own = {STATUS: Column((), "u1"), REASON: Column((), f"S{REASON_BYTES}")}
    return {**columns, **own, **({CRC: Column((), "u4")} if kind.checksums else {})}


def check_datasets(
    file: h5py.File,
    path: Path,
    kind: RowFormat,
    count: int,
    columns: Mapping[str, Column],
    others: Mapping[str, Column] | None = None,
) -> None:
    """Check that an open file of `count` rows has some datasets, and the columns of every row-wise file.

    `columns` have one entry per row, `others` fixed shapes; the type `S` is text of any fixed length.

    Raises:
        FormatError: One is missing, or has another shape or type.
    """
    wanted = {name: ((count, *each.shape), each.dtype) for name, each in row_columns(kind, columns).items()}
    wanted |= {name: (each.shape, each.dtype) for name, each in (others or {}).items()}
    for name, (shape, dtype) in wanted.items():
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise FormatError(f"the {kind.title} lacks the dataset /{name}", where=path)
        text = dtype.startswith("S")
        same_type = dataset.dtype.kind == "S" if text else dataset.dtype == np.dtype(dtype)
        if dataset.shape != shape or not same_type:
            raise FormatError(
                f"the dataset /{name} has shape {dataset.shape} and type {dataset.dtype}",
                where=path,
                expected=f"{shape} of {'fixed-length UTF-8' if text else dtype}",
            )


def check_fixed(file: h5py.File, path: Path, kind: RowFormat, fixed: Mapping[str, NDArray[Any]]) -> None:
    """Check the fixed datasets, already read, against their checksum; raises `FormatError`."""
    if _fixed_hash(fixed) != file.attrs["fixed_sha256"]:
        raise FormatError(f"the {kind.title} is damaged: {', '.join(fixed)} do not match their checksum", where=path)


def row_checksums(columns: Mapping[str, NDArray[Any]], status: Status) -> NDArray[np.uint32]:
    """CRC-32 of each row: the little-endian bytes of its columns in order, then its status."""
    arrays = [np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for array in (*columns.values(), status)]
    sums = np.zeros(len(status), "<u4")
    for row in range(len(status)):
        crc = 0
        for array in arrays:
            crc = zlib.crc32(array[row].tobytes(), crc)
        sums[row] = crc
    return sums


def corrupt_rows(columns: Mapping[str, NDArray[Any]], status: Status, crc: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Rows that are not pending and do not match their checksum."""
    return np.flatnonzero((status != PENDING) & (row_checksums(columns, status) != crc))


def encode_texts(texts: Sequence[str], most: int | None = None) -> NDArray[np.bytes_]:
    """Return texts as fixed-length UTF-8, cut between characters to `most` bytes; None: as long as the longest."""
    raw = [text.encode("utf-8", "surrogateescape" if most else "strict") for text in texts]
    if most is not None:
        raw = [text[:most].decode("utf-8", "ignore").encode() for text in raw]
    length = most or max((len(text) for text in raw), default=1) or 1
    return np.array(raw, dtype=h5py.string_dtype("utf-8", length))


def decode_texts(raw: NDArray[Any]) -> list[str]:
    """Return the texts of a dataset of `encode_texts`."""
    return [text.decode("utf-8") for text in raw.tolist()]


@contextlib.contextmanager
def translated(path: Path, kind: RowFormat, *, writing: bool = False) -> Iterator[None]:
    """Turn what HDF5 raises into errors for users.

    Raises:
        ArtifactError: The disk is full, or a file that is written fails.
        FormatError: A file that is read is damaged.
    """
    # HDF5 reports everything, from a full disk to a wild offset in a damaged file, as one of these.
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        number = error_number(error)
        reason = os.strerror(number).lower() if number else str(error)
        hint = "free some space and run the same command again" if is_no_space(error) else None
        # What cannot be read is damaged, unless the system says why; what cannot be written is as good as before.
        failure = ArtifactError if writing or number else FormatError
        doing = "written" if writing else "read"
        raise failure(f"the {kind.title} cannot be {doing}: {reason}", where=path, hint=hint) from error


def _create(path: Path, layout: Layout, provenance: Provenance) -> None:
    """Write a file whose rows are all pending.

    Its space is reserved before HDF5 writes, since HDF5 crashes where it meets the end of a disk while it closes a
    file. Disks that compress or copy what they overwrite can still run full later; `RowWriter.write` reports that.
    """
    text = canonical_json(dict(layout.attributes)) + provenance.to_json()
    columns = row_columns(layout.format, layout.columns)
    row_bytes = sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in columns.values())
    fixed_bytes = sum(array.nbytes for array in layout.fixed.values())
    with translated(path, layout.format, writing=True), atomic_write(path) as temporary:
        reserve(temporary, layout.count * row_bytes + fixed_bytes + len(text) + _STRUCTURE)
        with h5py.File(temporary, "w", libver="earliest", locking=False) as file:
            for name, column in columns.items():
                _allocate(file, name, layout.count, column)
            for name, array in layout.fixed.items():
                file.create_dataset(name, data=array, track_times=False)
            for name in (STATUS, REASON):
                file[name][...] = np.zeros((), file[name].dtype)
            attributes = {
                **layout.attributes,
                "format": layout.format.name,
                "format_version": layout.format.version,
                "tool_version": __version__,
                "provenance": provenance.to_json(),
                "fixed_sha256": _fixed_hash(layout.fixed),
            }
            file.attrs.update({**attributes, "attributes_sha256": _attributes_hash(attributes)})
        # What is filled in later has only been named so far.
        reserve(temporary, temporary.stat().st_size)


def _allocate(file: h5py.File, name: str, count: int, column: Column) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    # Allocated now and never filled: later writes change no metadata.
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    text = column.dtype.startswith("S")
    dtype = h5py.string_dtype("utf-8", int(column.dtype[1:])) if text else np.dtype(column.dtype).newbyteorder("<")
    space = h5py.h5s.create_simple((count, *column.shape))
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, plist)


def _attributes_hash(attributes: Mapping[str, Any]) -> str:
    plain = {
        name: value if isinstance(value, str) else int(value)
        for name, value in attributes.items()
        if name != "attributes_sha256"
    }
    return sha256_bytes(canonical_json(plain).encode())


def _fixed_hash(fixed: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for name in sorted(fixed):
        array = fixed[name]
        found.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _check_attributes(file: h5py.File, path: Path, kind: RowFormat) -> None:
    attributes = dict(file.attrs)
    if attributes.get("format") != kind.name:
        raise FormatError(
            f"this HDF5 file is not a {kind.title}: its format is {attributes.get('format')!r}",
            where=path,
            expected=f"the attribute format = {kind.name!r}",
        )
    version = int(attributes.get("format_version", 0))
    if version != kind.version:
        raise FormatError(
            f"the {kind.title} has format version {version}",
            where=path,
            expected=f"format version {kind.version}",
            hint="update sgsfa: a newer version wrote this file" if version > kind.version else None,
        )
    if _attributes_hash(attributes) != attributes.get("attributes_sha256"):
        raise FormatError(f"the {kind.title} is damaged: its attributes do not match their checksum", where=path)


def _has_rows(path: Path, kind: RowFormat) -> bool:
    with reading(path, kind) as file:
        return bool((file[STATUS][...] == OK).any())


def _require_same_rows(file: h5py.File, path: Path, layout: Layout) -> None:
    if file.attrs["fixed_sha256"] != _fixed_hash(layout.fixed):
        names = _names_differ(file, layout)
        raise FormatError(f"the {layout.format.title} was created for other images{names}", where=path, hint=START_OVER)
    check_fixed(file, path, layout.format, {name: file[name][...] for name in layout.fixed})


def _names_differ(file: h5py.File, layout: Layout) -> str:
    """How the image names differ, in brackets; nothing where they are equal (ids or roles differ)."""
    recorded, current = set(decode_texts(file["names"][...])), set(decode_texts(layout.fixed["names"]))
    missing, unexpected = current - recorded, recorded - current
    if not missing and not unexpected:
        return ""
    return f" ({len(missing):,} missing, {len(unexpected):,} unexpected, such as {min(missing or unexpected)!r})"
