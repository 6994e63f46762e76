"""The features file: features and ids of every image in HDF5, written row by row; the same arrays as `.npz`.

Layout (N images, D = part_dim, W = global_dim), contiguous and uncompressed: `/parts (N,7,D) f4`,
`/global_feature (N,W) f4`, `/visibility (N,7) f4`, `/thresholds (7) f4`, `/names (N)` UTF-8, `/pids (N) i8`,
`/camids (N) i8`, `/splits (N)` UTF-8, and per row `/status` and `/reason` (`pipeline.formats.rows`), which also
makes files resumable. docs/formats/features.md describes it for readers in other programs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.errors import FormatError, Rejected
from pipeline.formats import rows as row_file
from pipeline.formats.features import Features, as_slice
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import OK, PENDING, Column, Layout, RowFormat
from pipeline.parts import NUM_PARTS, PARTS
from pipeline.runtime.files import atomic_write

FORMAT = RowFormat("sgsfa-features", version=1, title="features file")

ARRAYS = ("parts", "global_feature", "visibility")
SPLITS = ("train", "query", "gallery", "all")

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureFile:
    """A checked features file; features are read when asked for.

    Attributes:
        path: The file.
        provenance: What decided the features.
        notes: Notes on the data set (images dropped, pseudo cameras).
        part_dim: D; 0 for a model without part features.
        global_dim: W; 0 for a model without a global feature.
        thresholds: (7,) float32 calibrated visibility thresholds.
        pids: (N,) person ids of all rows.
        camids: (N,) camera ids of all rows.
        rows: (M,) ascending rows that hold features; the others belong to images that could not be read.
        failed: Images without features, with the reason.
    """

    path: Path
    provenance: Provenance
    notes: tuple[str, ...]
    part_dim: int
    global_dim: int
    thresholds: Floats
    pids: Ints
    camids: Ints
    rows: Ints
    failed: tuple[Rejected, ...]

    @classmethod
    def open(cls, path: Path) -> FeatureFile:
        """Check a features file and read everything but names and features.

        Raises:
            FormatError: The file is missing, damaged, of another kind or version, or incomplete.
        """
        with row_file.reading(path, FORMAT) as file:
            part_dim, global_dim = _check_datasets(file, path)
            status = file[row_file.STATUS][...]
            pending = int((status == PENDING).sum())
            if pending:
                raise FormatError(
                    f"the features file is incomplete: {pending:,} of {len(status):,} images are pending",
                    where=path,
                    hint="run the extraction again; it resumes",
                )
            thresholds = file["thresholds"][...]
            if not np.isfinite(thresholds).all():
                raise FormatError("/thresholds contains numbers that are not finite", where=path)
            return cls(
                path=path,
                provenance=Provenance.from_json(file.attrs["provenance"]),
                notes=tuple(json.loads(file.attrs["notes"])),
                part_dim=part_dim,
                global_dim=global_dim,
                thresholds=thresholds,
                pids=file["pids"][...],
                camids=file["camids"][...],
                rows=np.flatnonzero(status == OK),
                failed=_failed(file, status),
            )

    def __len__(self) -> int:
        """N, rows of images without features included."""
        return len(self.pids)

    def load(self, rows: Ints | None = None) -> Features:
        """Read features with ids into memory: `rows` in any order, or all with features.

        Raises:
            FormatError: The file is damaged, a feature is not finite, or a visibility is outside [0, 1].
        """
        chosen = self.rows if rows is None else rows
        return replace(
            self.at(chosen),
            names=self.names(chosen),
            pids=self.pids[chosen],
            camids=self.camids[chosen],
            splits=self._texts("splits", chosen),
            provenance=self.provenance,
        )

    def split_rows(self, *splits: str) -> Ints:
        """Return the rows with features whose split is among `splits`."""
        with row_file.reading(self.path, FORMAT) as file:
            stored = file["splits"][...]
        return self.rows[np.isin(stored[self.rows], [split.encode() for split in splits])]

    def names(self, rows: Ints | None = None) -> npt.NDArray[np.str_]:
        """Return the image names of rows (any shape and order), or of all with features."""
        return self._texts("names", self.rows if rows is None else rows)

    def at(self, rows: Ints) -> Features:
        """Read the features of rows in any order, without ids; raises `FormatError` as for `load`."""
        with row_file.reading(self.path, FORMAT) as file:
            span = as_slice(rows)
            if isinstance(span, slice):
                return self._checked(self._read(file, span.start, span.stop), rows)
            return self._checked({name: _picked(self.path, file[name], rows) for name in ARRAYS}, rows)

    def mapped(self) -> Features:
        """Return all rows as memory maps, without ids and unchecked, for reading many single rows again and again.

        The system may count much of the file as memory of this process.
        """
        with row_file.reading(self.path, FORMAT) as file:
            arrays = [_mapped(self.path, file[name]) for name in ARRAYS]
        return Features.from_arrays(*arrays, thresholds=self.thresholds)

    def blocks(self, size: int, rows: Ints | None = None, *, reuse: bool = False) -> Iterator[tuple[int, Features]]:
        """Yield features of ascending rows without ids, for files larger than memory, after the number of rows before.

        Args:
            size: File rows per block; a block holds those of them that are chosen.
            rows: The rows; None: all with features.
            reuse: Read each block into the arrays of the one before. New arrays scatter over the heap, and a process
                that reads millions of rows grows.

        Raises:
            FormatError: As for `load`.
        """
        chosen = self.rows if rows is None else rows
        if not len(chosen):
            return
        end = int(chosen[-1]) + 1
        with row_file.reading(self.path, FORMAT) as file:
            buffers = {name: np.empty((size, *file[name].shape[1:]), dtype=np.float32) for name in ARRAYS * reuse}
            before = 0
            for first in range(int(chosen[0]), end, size):
                last = min(first + size, end)
                after = int(np.searchsorted(chosen, last))
                if after > before:
                    block = self._checked(self._read(file, first, last, buffers), range(first, last))
                    full = after - before == last - first
                    yield before, block if full else block.select(chosen[before:after] - first)
                before = after

    def _read(
        self, file: h5py.File, start: int, stop: int, buffers: Mapping[str, Floats] | None = None
    ) -> dict[str, Floats]:
        """Read rows [start, stop), into the first rows of `buffers` if given."""
        read: dict[str, Floats] = {}
        for name in ARRAYS:
            dataset, count = file[name], stop - start
            into = buffers[name][:count] if buffers else np.empty((count, *dataset.shape[1:]), dtype=np.float32)
            if into.size:
                dataset.read_direct(into, np.s_[start:stop])
            read[name] = into
        return read

    def _checked(self, arrays: Mapping[str, Floats], rows: Ints | range) -> Features:
        _check_values(self.path, arrays, rows)
        return Features.from_arrays(*(arrays[name] for name in ARRAYS), thresholds=self.thresholds)

    def _texts(self, name: str, rows: Ints) -> npt.NDArray[np.str_]:
        unique, inverse = np.unique(rows, return_inverse=True)
        with row_file.reading(self.path, FORMAT) as file:
            stored = file[name][as_slice(unique)]
        decoded = _decoded(stored)
        return decoded[inverse.reshape(np.shape(rows))]


def feature_layout(
    *,
    names: Sequence[str],
    pids: npt.ArrayLike,
    camids: npt.ArrayLike,
    splits: Sequence[str],
    thresholds: npt.ArrayLike,
    part_dim: int,
    global_dim: int,
    notes: Sequence[str] = (),
) -> Layout:
    """Return the layout of a features file.

    Args:
        names: (N,) image names (POSIX paths relative to the data set); a name may occur in two splits.
        pids: (N,) person ids, -1 where unknown.
        camids: (N,) camera ids, -1 where unknown.
        splits: (N,) of `SPLITS`.
        thresholds: (7,) calibrated visibility thresholds, in [0, 1].
        part_dim: D; 0 for a model without part features.
        global_dim: W; 0 for a model without a global feature.
        notes: Notes on the data set.
    """
    fixed = {
        "names": row_file.encode_texts(names),
        "pids": np.asarray(pids, dtype="<i8"),
        "camids": np.asarray(camids, dtype="<i8"),
        "splits": row_file.encode_texts(splits),
        "thresholds": np.asarray(thresholds, dtype="<f4"),
    }
    if fixed["thresholds"].shape != (NUM_PARTS,) or not np.isfinite(fixed["thresholds"]).all():
        raise ValueError(f"thresholds must be {NUM_PARTS} finite numbers, not {thresholds!r}")
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"unknown splits {sorted(unknown)}")
    if part_dim < 0 or global_dim < 0 or part_dim + global_dim == 0:
        raise ValueError(f"part_dim {part_dim} and global_dim {global_dim} leave no feature")
    return Layout(
        FORMAT,
        len(names),
        _columns(part_dim, global_dim),
        fixed,
        {"part_names": ",".join(PARTS), "notes": json.dumps(list(notes), ensure_ascii=False)},
    )


def write_features(path: Path, features: Features) -> None:
    """Write features in memory to an HDF5 file, atomically. See `Features.save`."""
    layout = feature_layout(
        names=features.names.tolist(),
        pids=features.pids,
        camids=features.camids,
        splits=features.splits.tolist(),
        thresholds=features.thresholds,
        part_dim=features.part_dim,
        global_dim=features.global_dim,
    )
    arrays = features.to_numpy()
    with atomic_write(path) as temporary, row_file.open_or_create(temporary, layout, features.provenance) as writer:
        writer.write(0, {name: arrays[name] for name in ARRAYS}, np.full(len(features), OK, np.uint8))
        writer.finish()


def write_npz(path: Path, features: Features) -> None:
    """Write features in memory to a NumPy archive, atomically. See `Features.save`."""
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        texts = {"format": np.array(FORMAT.name), "provenance": np.array(features.provenance.to_json())}
        np.savez(stream, allow_pickle=False, **texts, **features.to_numpy())


def read_npz(path: Path) -> Features:
    """Read features from a NumPy archive. See `Features.load`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        if str(arrays.pop("format", "")) != FORMAT.name:
            raise FormatError("this NumPy archive is not a features file", where=path, expected=f"format {FORMAT.name}")
        provenance = Provenance.from_json(str(arrays.pop("provenance")))
        features = Features.from_arrays(**arrays, provenance=provenance)
    except FileNotFoundError:
        raise FormatError("features file not found", where=path) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"the features file cannot be read: {error}", where=path) from error
    _check_values(path, features.to_numpy(), range(len(features)))
    return features


def open_features(path: Path) -> FeatureFile | Features:
    """Open a features file; an archive of NumPy is read into memory.

    Raises:
        FormatError: The file is missing, damaged, incomplete or not a features file.
    """
    return read_npz(path) if path.suffix == ".npz" else FeatureFile.open(path)


def require_comparable(query: Features, gallery: Features | FeatureFile) -> None:
    """Refuse to compare features of different dimensions or, where both record them, checkpoints or views.

    Raises:
        FormatError: They cannot be compared.
    """
    ours, theirs, where = query.provenance.values, gallery.provenance.values, getattr(gallery, "path", None)
    hashes = str(ours.get("checkpoint_sha256", "")), str(theirs.get("checkpoint_sha256", ""))
    if all(hashes) and hashes[0] != hashes[1]:
        raise FormatError(
            f"the gallery's features come from checkpoint {hashes[1][:8]}",
            where=where,
            expected=f"checkpoint {hashes[0][:8]}, which the queries' features come from",
            hint="features of two checkpoints lie in different spaces; extract both with the same one",
        )
    flips = [str(values["flip"]).lower() for values in (ours, theirs) if "flip" in values]
    if len(set(flips)) > 1:
        text = f"the gallery's features were extracted with extract.flip={flips[1]}"
        raise FormatError(text, where=where, expected=f"extract.flip={flips[0]}, as for the queries")
    if (query.part_dim, query.global_dim) != (gallery.part_dim, gallery.global_dim):
        raise FormatError(
            f"the gallery's features have part_dim {gallery.part_dim} and global_dim {gallery.global_dim}",
            where=where,
            expected=f"{query.part_dim} and {query.global_dim}, as the queries have",
            hint="extract both with the same checkpoint",
        )


def _check_datasets(file: h5py.File, path: Path) -> tuple[int, int]:
    """Check the datasets of an open file and return its dimensions."""
    shapes: dict[str, tuple[int, ...]] = {name: getattr(file.get(name), "shape", ()) for name in ARRAYS}
    count = shapes["parts"][0] if shapes["parts"] else 0
    part_dim, global_dim = (shapes[name][-1] if shapes[name] else 0 for name in ARRAYS[:2])
    ids = {"names": Column((), "S"), "pids": Column((), "i8"), "camids": Column((), "i8"), "splits": Column((), "S")}
    thresholds = {"thresholds": Column((NUM_PARTS,), "f4")}
    row_file.check_datasets(file, path, FORMAT, count, _columns(part_dim, global_dim) | ids, thresholds)
    if file.attrs.get("part_names") != ",".join(PARTS):
        raise FormatError(
            f"the features file has parts {file.attrs.get('part_names')}", where=path, expected=",".join(PARTS)
        )
    return part_dim, global_dim


def _columns(part_dim: int, global_dim: int) -> dict[str, Column]:
    return {
        "parts": Column((NUM_PARTS, part_dim), "f4"),
        "global_feature": Column((global_dim,), "f4"),
        "visibility": Column((NUM_PARTS,), "f4"),
    }


def _check_values(path: Path, arrays: Mapping[str, Floats], rows: Ints | range) -> None:
    """Check that features of some rows are finite and visibilities in [0, 1]."""
    for name in ARRAYS:
        values = arrays[name]
        # A sum is not finite when any summand is not; it is several times faster than testing each.
        if not np.isfinite(values.sum(dtype=np.float64)):
            bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
            raise FormatError(
                f"/{name} contains numbers that are not finite in {len(bad)} rows, first in row {rows[bad[0]]}",
                where=path,
                hint="extract the features again; if it recurs, the training diverged",
            )
    visibility = arrays["visibility"]
    if visibility.size and (visibility.min() < 0 or visibility.max() > 1):
        raise FormatError("/visibility contains numbers outside [0, 1]", where=path, expected="mask means")


def _failed(file: h5py.File, status: npt.NDArray[np.uint8]) -> tuple[Rejected, ...]:
    reasons = row_file.read_reasons(file, status)
    names = row_file.decode_texts(file["names"][list(reasons)]) if reasons else []
    return tuple(Rejected(name, reason) for name, reason in zip(names, reasons.values(), strict=True))


def _mapped(path: Path, dataset: h5py.Dataset) -> Floats:
    """Return a whole dataset as a memory map, or read where it cannot be mapped."""
    offset = dataset.id.get_offset()  # None where another program rewrote the file in chunks
    if offset is None:
        return np.asarray(dataset[()], dtype=np.float32)
    # Copy on write: torch does not take read-only arrays.
    return np.memmap(path, dtype="<f4", mode="c", offset=offset, shape=dataset.shape)


def _picked(path: Path, dataset: h5py.Dataset, rows: Ints) -> Floats:
    """Read single rows of a dataset; through HDF5, each would take 30 microseconds."""
    offset = dataset.id.get_offset()
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


def _decoded(stored: npt.NDArray[np.bytes_]) -> npt.NDArray[np.str_]:
    if not stored.size:
        return np.empty(stored.shape, dtype=np.str_)
    try:
        # Plain ASCII widens at once; decoding two million names one by one takes seconds and a hundred megabytes.
        return stored.astype(np.str_)
    except UnicodeDecodeError:
        return np.char.decode(stored, "utf-8")
