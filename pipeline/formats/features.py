"""The features file: part features, global feature and visibility of every image, in HDF5.

Layout (N images, D numbers a part, W numbers in the global feature), all contiguous and uncompressed:
`/parts (N,7,D) f4`, `/global_feature (N,W) f4`, `/visibility (N,7) f4` (raw mask means), `/thresholds (7) f4`,
`/names (N)` UTF-8, `/pids (N) i8`, `/camids (N) i8`, `/splits (N)` text, `/done () i8`. docs/formats/features.md
describes it for readers in other programs.

A killed writer leaves a readable file: the layout is fixed when the file is created (storage is allocated at once,
`libver="earliest"`), and rows are flushed before the count of finished rows is, so the count never runs ahead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.errors import ArtifactError, FormatError
from pipeline.parts import NUM_PARTS, PARTS
from pipeline.runtime.files import atomic_write, is_no_space, reserve
from pipeline.version import __version__

FORMAT = "sgsfa-features"
FORMAT_VERSION = 1
"""Raised when a reader of the older version would misread the file."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.str_]

_SPLITS = ("train", "query", "gallery", "all")
_ARRAYS = ("parts", "global_feature", "visibility")
_STRUCTURE = 1 << 16  # Bytes that the file's own structure takes at most.


@dataclass(frozen=True)
class FeatureHeader:
    """What is known of a features file before the first image is embedded.

    Attributes:
        names: Image names (POSIX paths relative to the data set's root), one a row; a name may occur in two splits.
        pids: (N,) identities, -1 where unknown.
        camids: (N,) cameras, -1 where unknown.
        splits: (N,) `query`, `gallery`, `train` or `all`.
        part_dim: D; 0 for a model without part features.
        global_dim: W; 0 for a model without a global feature.
        thresholds: (7,) calibrated visibility thresholds (tau of eq. 5), in [0, 1].
        attributes: Where the features come from (checkpoint and data fingerprints, flip, ...); JSON values.
    """

    names: Sequence[str]
    pids: npt.ArrayLike
    camids: npt.ArrayLike
    splits: Sequence[str]
    part_dim: int
    global_dim: int
    thresholds: npt.ArrayLike
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Some rows of a features file: parts (B,7,D) f4, whole (B,W) f4, visibility (B,7) f4, from row `start` on."""

    start: int
    parts: Floats
    global_feature: Floats
    visibility: Floats

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True, slots=True)
class Features:
    """Features in memory.

    Attributes:
        parts: (N,7,D) float32 part features in the order of `PARTS`, as the network gives them (not normalised).
        global_feature: (N,W) float32 global features.
        visibility: (N,7) float32 means of the predicted masks, in [0, 1].
        thresholds: (7,) float32 thresholds of hard visibility.
        names: (N,) image names.
        pids: (N,) int64 identities.
        camids: (N,) int64 cameras.
        splits: (N,) roles.
        attributes: Where the features come from.
    """

    parts: Floats
    global_feature: Floats
    visibility: Floats
    thresholds: Floats
    names: Strings
    pids: Ints
    camids: Ints
    splits: Strings
    attributes: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def visible(self) -> Bools:
        """(N,7) hard visibility: mask mean above the part's threshold (eq. 5)."""
        return self.visibility > self.thresholds

    def select(self, rows: npt.NDArray[Any] | slice) -> Features:
        """The rows picked by a slice (nothing is copied), an index or a boolean array."""
        return Features(
            self.parts[rows],
            self.global_feature[rows],
            self.visibility[rows],
            self.thresholds,
            self.names[rows],
            self.pids[rows],
            self.camids[rows],
            self.splits[rows],
            self.attributes,
        )

    def split(self, *names: str) -> Features:
        """The rows whose split is among `names`, in file order."""
        rows = np.flatnonzero(np.isin(self.splits, names))
        run = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
        return self.select(slice(rows[0], rows[-1] + 1) if run else rows)


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """A checked features file; rows are read when asked for.

    Attributes:
        path: Where it lies.
        total: N.
        done: Rows written so far; `total` in a finished file.
        part_dim: D.
        global_dim: W.
        thresholds: (7,) float32.
        attributes: Where the features come from.
    """

    path: Path
    total: int
    done: int
    part_dim: int
    global_dim: int
    thresholds: Floats
    attributes: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, *, allow_partial: bool = False) -> FeatureFile:
        """Check a features file and read what describes it.

        Args:
            path: The file.
            allow_partial: Accept a file that is still being written; only its first `done` rows are features.

        Raises:
            FormatError: The file is missing, damaged, of another kind, of a newer version, inconsistent or unfinished.
        """
        with _reading(path) as file:
            opened = _check(path, file)
        if opened.done < opened.total and not allow_partial:
            raise FormatError(
                f"the features file is unfinished: {opened.done:,} of {opened.total:,} rows are written",
                where=path,
                hint="run the extraction again; it goes on where it stopped",
            )
        return opened

    def load(self) -> Features:
        """Read everything into memory (N * (7 D + W) * 4 bytes).

        Raises:
            FormatError: A feature or visibility is not a finite number, or a visibility is outside [0, 1].
        """
        with _reading(self.path) as file:
            rows = self._rows(file, 0, self.done)
            pids, camids, splits = self._roles(file)
            names = _texts(file["names"][: self.done])
        return Features(
            rows.parts,
            rows.global_feature,
            rows.visibility,
            self.thresholds,
            names,
            pids,
            camids,
            splits,
            self.attributes,
        )

    def roles(self) -> tuple[Ints, Ints, Strings]:
        """Identities, cameras and splits of all rows, each (N,)."""
        with _reading(self.path) as file:
            return self._roles(file)

    def ids(self) -> tuple[Ints, Ints]:
        """Identities and cameras of all rows, each (N,): without the splits, which take twice their memory."""
        with _reading(self.path) as file:
            return file["pids"][: self.done], file["camids"][: self.done]

    def names(self, rows: npt.NDArray[np.integer] | None = None) -> Strings:
        """Image names of some rows (any order, repeats allowed), or of all."""
        with _reading(self.path) as file:
            if rows is None:
                return _texts(file["names"][: self.done])
            wanted, inverse = np.unique(rows, return_inverse=True)
            texts: Strings = _texts(file["names"][wanted])[inverse.reshape(np.shape(rows))]
            return texts

    def rows(self, start: int, stop: int) -> FeatureRows:
        """Read rows [start, stop).

        Raises:
            FormatError: As for `load`.
        """
        with _reading(self.path) as file:
            return self._rows(file, start, min(stop, self.done))

    def at(self, rows: Ints) -> FeatureRows:
        """Read single rows, in any order.

        Raises:
            FormatError: As for `load`.
        """
        with _reading(self.path) as file:
            read = FeatureRows(
                int(rows[0]) if len(rows) else 0, *(_picked(self.path, file[name], rows) for name in _ARRAYS)
            )
        return self._checked(read)

    def mapped(self) -> MappedRows:
        """Open the arrays for reading many single rows, again and again, through memory maps.

        Several times faster than `at`, but the system may count much of the file as memory of this process.
        """
        with _reading(self.path) as file:
            return MappedRows(*(_mapped(self.path, file[name]) for name in _ARRAYS))

    def blocks(
        self, size: int, *, start: int = 0, stop: int | None = None, reuse: bool = False
    ) -> Iterator[FeatureRows]:
        """Read rows [start, stop) in blocks of `size`, so that a file larger than memory can be gone through.

        Args:
            size: Rows a block; the last one may have fewer.
            start: First row.
            stop: Row after the last; None: the end.
            reuse: Read each block into the arrays of the one before. Fresh arrays scatter over the heap, and a process
                that goes through millions of rows grows.

        Raises:
            FormatError: As for `load`.
        """
        end = self.done if stop is None else min(stop, self.done)
        with _reading(self.path) as file:
            room = {name: np.empty((size, *file[name].shape[1:]), dtype=np.float32) for name in _ARRAYS * reuse}
            for first in range(start, end, size):
                yield self._rows(file, first, min(first + size, end), room)

    def _roles(self, file: h5py.File) -> tuple[Ints, Ints, Strings]:
        return file["pids"][: self.done], file["camids"][: self.done], _texts(file["splits"][: self.done])

    def _rows(self, file: h5py.File, start: int, stop: int, room: Mapping[str, Floats] | None = None) -> FeatureRows:
        """Rows [start, stop), in the first rows of the arrays in `room` where there are any."""
        read: dict[str, Floats] = {}
        try:
            for name in _ARRAYS:
                dataset, count = file[name], max(0, stop - start)
                into = room[name][:count] if room else np.empty((count, *dataset.shape[1:]), dtype=np.float32)
                if into.size:
                    dataset.read_direct(into, np.s_[start:stop])
                read[name] = into
        except OSError as error:
            raise FormatError(f"rows {start} to {stop} cannot be read: {error}", where=self.path) from error
        return self._checked(FeatureRows(start, **read))

    def _checked(self, rows: FeatureRows) -> FeatureRows:
        for name, values in (
            ("parts", rows.parts),
            ("global_feature", rows.global_feature),
            ("visibility", rows.visibility),
        ):
            # A sum is not finite when any summand is not; it is several times faster than looking at each.
            if not np.isfinite(values.sum(dtype=np.float64)):
                bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
                raise FormatError(
                    f"/{name} holds numbers that are not finite in {len(bad)} rows, first in row {rows.start + bad[0]}",
                    where=self.path,
                    hint="extract the features again; if it comes back, the checkpoint diverged",
                )
        if rows.visibility.size and (rows.visibility.min() < 0 or rows.visibility.max() > 1):
            raise FormatError("/visibility holds numbers outside [0, 1]", where=self.path, expected="mask means")
        return rows


@dataclass(frozen=True, slots=True)
class MappedRows:
    """The arrays of a features file as memory maps (or in memory, where another program laid the file out)."""

    parts: Floats
    global_feature: Floats
    visibility: Floats

    def at(self, rows: Ints) -> FeatureRows:
        """Single rows, in any order; whether they are finite is not looked at again."""
        first = int(rows[0]) if len(rows) else 0
        return FeatureRows(
            first, *(np.asarray(array[rows]) for array in (self.parts, self.global_feature, self.visibility))
        )


class FeatureWriter:
    """Write a features file row block by row block; go on with one that an earlier run left.

    Use as a context manager. `append` in the order of the header's names until `done == total`, then `finish`.
    """

    def __init__(self, path: Path, file: h5py.File, total: int, part_dim: int, global_dim: int) -> None:
        self.path = path
        self.total = total
        self._file = file
        self._shapes = {"parts": (NUM_PARTS, part_dim), "global_feature": (global_dim,), "visibility": (NUM_PARTS,)}
        self._done = int(file["done"][()])

    @property
    def done(self) -> int:
        """Rows that are safely written."""
        return self._done

    @classmethod
    def begin(cls, path: Path, header: FeatureHeader) -> FeatureWriter:
        """Create the file, or open one with the same header to go on with it.

        Raises:
            FormatError: The file there is damaged or was begun for other images, another model or other data; or
                the header contradicts itself.
            ArtifactError: There is not enough space, or the folder cannot be written.
        """
        _check_header(header)
        if not path.exists():
            _create(path, header)
        opened = FeatureFile.open(path, allow_partial=True)
        _check_same(path, opened, header)
        try:
            file = h5py.File(path, "r+", libver="earliest")
        except OSError as error:
            raise ArtifactError(f"the features file cannot be opened for writing: {error}", where=path) from error
        return cls(path, file, opened.total, opened.part_dim, opened.global_dim)

    def append(self, parts: npt.ArrayLike, global_feature: npt.ArrayLike, visibility: npt.ArrayLike) -> None:
        """Write the next rows and make them durable against a kill of this process.

        Args:
            parts: (B,7,D) float32.
            global_feature: (B,W) float32.
            visibility: (B,7) float32 in [0, 1].

        Raises:
            ArtifactError: The rows cannot be written (the disk is full).
            ValueError: The arrays do not fit the header, or hold numbers that are not finite.
        """
        arrays = {
            name: np.ascontiguousarray(value, dtype=np.float32)
            for name, value in (("parts", parts), ("global_feature", global_feature), ("visibility", visibility))
        }
        count = len(arrays["parts"])
        for name, array in arrays.items():
            if array.shape != (count, *self._shapes[name]):
                raise ValueError(f"{name} is {array.shape}, expected {(count, *self._shapes[name])}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds numbers that are not finite")
        if self._done + count > self.total:
            raise ValueError(f"{self._done} + {count} rows do not fit a file of {self.total}")
        end = self._done + count
        try:
            for name, array in arrays.items():
                self._file[name][self._done : end] = array
            self._file.flush()
            self._file["done"][()] = end
            self._file.flush()
        except OSError as error:
            raise ArtifactError(
                f"rows {self._done} to {end} cannot be written: {error}", where=self.path, hint="is the disk full?"
            ) from error
        self._done = end

    def finish(self) -> None:
        """Mark the file complete and hand it to the disk.

        Raises:
            ValueError: Rows are missing.
        """
        if self._done != self.total:
            raise ValueError(f"{self._done} of {self.total} rows are written")
        self._file.attrs["complete"] = True
        self._file.flush()
        os.fsync(self._file.id.get_vfd_handle())

    def close(self) -> None:
        """Close the file; what was appended stays."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except (OSError, RuntimeError):
            # After a failed write HDF5 fails again on closing; the first error is the one to tell.
            if error is None:
                raise


def require_comparable(query: Features, gallery: FeatureFile) -> None:
    """Refuse to compare features of different lengths or, where both say so, of different checkpoints or views.

    Raises:
        FormatError: They cannot be compared.
    """
    ours, theirs = query.attributes.get("checkpoint_sha256"), gallery.attributes.get("checkpoint_sha256")
    if ours and theirs and ours != theirs:
        raise FormatError(
            f"the gallery's features come from checkpoint {str(theirs)[:8]}",
            where=gallery.path,
            expected=f"checkpoint {str(ours)[:8]}, which the queries' features come from",
            hint="features of two checkpoints lie in different spaces; extract both with the same one",
        )
    flips = query.attributes.get("flip"), gallery.attributes.get("flip")
    if None not in flips and flips[0] != flips[1]:
        ways = ["one view", "the mean of both mirror images"]
        raise FormatError(
            f"the gallery's features are of {ways[bool(flips[1])]} of each image",
            where=gallery.path,
            expected=f"{ways[bool(flips[0])]}, as the queries' are",
            hint=f"extract.flip={str(bool(flips[1])).lower()} for the queries",
        )
    lengths = query.parts.shape[2], query.global_feature.shape[1]
    if lengths != (gallery.part_dim, gallery.global_dim):
        raise FormatError(
            f"the gallery's features have dimension {gallery.part_dim} per part and {gallery.global_dim} globally",
            where=gallery.path,
            expected=f"{lengths[0]} and {lengths[1]}, as the queries have",
            hint="extract both with the same checkpoint",
        )


def _mapped(path: Path, dataset: h5py.Dataset) -> Floats:
    """A whole dataset as a memory map, or read where it cannot be mapped."""
    offset = _flat_offset(dataset)
    if offset is None:
        return np.asarray(dataset[()], dtype=np.float32)
    return np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=dataset.shape)


def _picked(path: Path, dataset: h5py.Dataset, rows: Ints) -> Floats:
    """Single rows of a dataset."""
    offset = _flat_offset(dataset)
    if offset is None:
        return np.array([dataset[row] for row in rows], dtype=np.float32).reshape(len(rows), *dataset.shape[1:])
    found = np.empty((len(rows), *dataset.shape[1:]), dtype="<f4")
    row_bytes = found.itemsize * int(np.prod(dataset.shape[1:]))
    with path.open("rb", buffering=0) as stream:
        for i, row in enumerate(rows.tolist()):
            stream.seek(offset + row * row_bytes)
            if stream.readinto(found[i].reshape(-1).view(np.uint8)) != row_bytes:
                raise FormatError(f"row {row} of /{dataset.name.strip('/')} cannot be read", where=path)
    return found.astype(np.float32, copy=False)


def _flat_offset(dataset: h5py.Dataset) -> int | None:
    """Where in the file the numbers lie one after the other, as we write them; HDF5 takes 30 microseconds a row.

    None where they are not laid out as ours (the file was rewritten by another program), or empty.
    """
    offset: int | None = dataset.id.get_offset()
    return offset if dataset.dtype == np.dtype("<f4") else None


def _reading(path: Path) -> h5py.File:
    if not path.is_file():
        raise FormatError("the features file does not exist", where=path, hint="`sgsfa extract` writes one")
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:
        raise FormatError(
            "another process is writing the features file", where=path, hint="wait for it; `sgsfa status` tells"
        ) from error
    except OSError as error:
        raise FormatError(
            f"the features file cannot be opened: {error}",
            where=path,
            expected="an HDF5 file written by `sgsfa extract`; this one is cut off, damaged or of another kind",
        ) from error


def _check(path: Path, file: h5py.File) -> FeatureFile:
    kind = file.attrs.get("format")
    if kind != FORMAT:
        raise FormatError(f"this HDF5 file is not a features file (format {kind!r})", where=path, expected=FORMAT)
    version = int(file.attrs.get("format_version", 0))
    if version > FORMAT_VERSION:
        raise FormatError(
            f"the features file has format version {version}",
            where=path,
            expected=f"at most {FORMAT_VERSION}",
            hint="it was written by a newer sgsfa; update this one",
        )
    if version < 1:
        raise FormatError("the features file says no format version", where=path)
    wanted = ("parts", "global_feature", "visibility", "thresholds", "names", "pids", "camids", "splits", "done")
    absent = [f"/{name}" for name in wanted if not isinstance(file.get(name), h5py.Dataset)]
    if absent:
        raise FormatError(f"the features file lacks {', '.join(absent)}", where=path)
    parts, global_feature = file["parts"], file["global_feature"]
    total = parts.shape[0] if parts.ndim == 3 else -1
    shapes = {
        "parts": (total, NUM_PARTS, parts.shape[-1] if parts.ndim == 3 else -1),
        "global_feature": (total, global_feature.shape[-1] if global_feature.ndim == 2 else -1),
        "visibility": (total, NUM_PARTS),
        "thresholds": (NUM_PARTS,),
        "names": (total,),
        "pids": (total,),
        "camids": (total,),
        "splits": (total,),
        "done": (),
    }
    for name, shape in shapes.items():
        if file[name].shape != shape:
            raise FormatError(f"/{name} has shape {file[name].shape}", where=path, expected=f"{shape}")
    for name, kinds in (("parts", "f"), ("global_feature", "f"), ("visibility", "f"), ("pids", "iu"), ("camids", "iu")):
        if file[name].dtype.kind not in kinds:
            raise FormatError(f"/{name} holds {file[name].dtype}", where=path, expected="numbers")
    order = tuple(str(name) for name in file.attrs.get("part_names", ()))
    if order != PARTS:
        raise FormatError(f"the parts are {', '.join(order) or 'not named'}", where=path, expected=", ".join(PARTS))
    done = int(file["done"][()])
    if not 0 <= done <= total:
        raise FormatError(f"{done} rows are said to be written of {total}", where=path)
    thresholds = file["thresholds"][()].astype(np.float32)
    if not np.isfinite(thresholds).all():
        raise FormatError("/thresholds holds numbers that are not finite", where=path)
    try:
        attributes = json.loads(file.attrs.get("attributes", "{}"))
    except ValueError as error:
        raise FormatError(f"the attribute `attributes` is not JSON: {error}", where=path) from error
    return FeatureFile(path, total, done, shapes["parts"][2], shapes["global_feature"][1], thresholds, attributes)


def _check_header(header: FeatureHeader) -> None:
    total = len(header.names)
    thresholds = np.asarray(header.thresholds, dtype=np.float32)
    if thresholds.shape != (NUM_PARTS,) or not np.isfinite(thresholds).all():
        raise ValueError(f"thresholds must be {NUM_PARTS} finite numbers, not {header.thresholds!r}")
    if not len(header.splits) == np.size(header.pids) == np.size(header.camids) == total:
        raise ValueError("names, pids, camids and splits differ in length")
    if strange := set(header.splits) - set(_SPLITS):
        raise ValueError(f"unknown splits {sorted(strange)}")
    if header.part_dim < 0 or header.global_dim < 0 or header.part_dim + header.global_dim == 0:
        raise ValueError(f"part_dim {header.part_dim} and global_dim {header.global_dim} leave no feature")


def _check_same(path: Path, opened: FeatureFile, header: FeatureHeader) -> None:
    pids, camids, splits = FeatureFile(
        path, opened.total, opened.total, opened.part_dim, opened.global_dim, opened.thresholds, opened.attributes
    ).roles()
    with _reading(path) as file:
        names = _texts(file["names"][:])
    same = {
        "images": opened.total == len(header.names) and names.tolist() == list(header.names),
        "feature lengths": (opened.part_dim, opened.global_dim) == (header.part_dim, header.global_dim),
        "identities": np.array_equal(pids, np.asarray(header.pids)),
        "cameras": np.array_equal(camids, np.asarray(header.camids)),
        "splits": splits.tolist() == list(header.splits),
        "thresholds": np.array_equal(opened.thresholds, np.asarray(header.thresholds, dtype=np.float32)),
        "origin": dict(opened.attributes) == json.loads(json.dumps(dict(header.attributes))),
    }
    differing = [name for name, equal in same.items() if not equal]
    if differing:
        raise FormatError(
            f"an unfinished features file for other work is in the way; it differs in {', '.join(differing)}",
            where=path,
            hint="delete it or write elsewhere",
        )


def _create(path: Path, header: FeatureHeader) -> None:
    total = len(header.names)
    numbers = NUM_PARTS * header.part_dim + header.global_dim + NUM_PARTS
    texts = {"names": _encoded(header.names), "splits": _encoded(header.splits)}
    needed = (
        total * (4 * numbers + 16)
        + sum(text.nbytes for text in texts.values())
        + len(json.dumps(dict(header.attributes)))
        + _STRUCTURE
    )
    try:
        with atomic_write(path) as temporary:
            reserve(temporary, needed)
            with h5py.File(temporary, "w", libver="earliest") as file:
                _fill(file, header, total, texts)
            # What is filled in later is only named so far.
            reserve(temporary, temporary.stat().st_size)
    except OSError as error:
        raise ArtifactError(
            f"the features file cannot be created: {error.strerror or error}",
            where=path,
            hint=f"make room: it needs {needed / 1e6:,.0f} MB" if is_no_space(error) else None,
        ) from error


def _fill(file: h5py.File, header: FeatureHeader, total: int, texts: Mapping[str, npt.NDArray[np.bytes_]]) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["part_names"] = list(PARTS)
    file.attrs["tool_version"] = __version__
    file.attrs["attributes"] = json.dumps(dict(header.attributes))
    file.attrs["complete"] = False
    for name, shape in (
        ("parts", (total, NUM_PARTS, header.part_dim)),
        ("global_feature", (total, header.global_dim)),
        ("visibility", (total, NUM_PARTS)),
    ):
        # Allocated now, never filled: later writes touch no metadata, so a kill cannot damage the file's structure.
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        # Equal features make equal files.
        layout.set_obj_track_times(False)
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, layout)
    file["thresholds"] = np.asarray(header.thresholds, dtype=np.float32)
    file["names"] = texts["names"]
    file["pids"] = np.asarray(header.pids, dtype=np.int64)
    file["camids"] = np.asarray(header.camids, dtype=np.int64)
    file["splits"] = texts["splits"]
    file["done"] = np.int64(0)


def _encoded(texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    raw = [text.encode("utf-8") for text in texts]
    longest = max((len(text) for text in raw), default=1) or 1
    return np.array(raw, dtype=h5py.string_dtype("utf-8", longest))


def _texts(raw: npt.NDArray[Any]) -> Strings:
    if raw.dtype.kind == "O":
        return np.array([text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in raw], dtype=np.str_)
    if not raw.size:
        return np.empty(raw.shape, dtype=np.str_)
    try:
        # Plain ASCII widens at once; decoding two million names one by one takes seconds and a hundred megabytes.
        return raw.astype(np.str_)
    except UnicodeDecodeError:
        return np.char.decode(raw, "utf-8")
