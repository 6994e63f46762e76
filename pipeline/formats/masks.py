"""The mask file: part masks of a set of images in one HDF5 file that any program with HDF5 can read.

Contiguous, uncompressed datasets, read whole into memory (30,000 images are 81 MB). Rows are written in an order that
leaves the file readable when the writer is killed at any moment: contents, flush, `done`, flush, in the earliest
HDF5 file format, whose metadata never moves once the datasets exist. The layout is described in docs/formats/masks.md.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, FormatError, LockedError, UserError
from pipeline.parts import SEMANTIC
from pipeline.runtime.files import NO_SPACE, fsync_path, reserve, sha256_bytes
from pipeline.version import __version__

FORMAT = "sgsfa-masks"
FORMAT_VERSION = 2

PART_NAMES = SEMANTIC
"""The second axis of `parts`."""

PARTS_SIZE = (16, 8)
"""Height and width of a part mask: the stage-4 map of a 256 x 128 input."""

BODY_SIZE = (64, 32)
"""Height and width of a body mask: the stage-1 map of a 256 x 128 input."""

PENDING, DONE, FAILED = 0, 1, 2
"""Values of `done`."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ERRNO = re.compile(r"errno = (\d+)")

_DATASETS: dict[str, tuple[tuple[int, ...], str]] = {
    "names": ((), "S"),
    "parts": ((len(PART_NAMES), *PARTS_SIZE), "u1"),
    "body": (BODY_SIZE, "u1"),
    "quality": ((), "f4"),
    "done": ((), "u1"),
    "crc": ((), "u4"),
}
"""Of each dataset the shape of a row and the type; `S` is UTF-8 of a fixed length."""

_ROW_BYTES = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in _DATASETS.values())
_STRUCTURE = 1 << 16  # Bytes that the file's own structure takes at most.

_LISTS = ("groups_absent", "label_maps")  # attributes whose text is a list

_INCIDENTAL = frozenset({"backend", "precision", "batch_size"})

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MaskMeta:
    """Where the masks of a file come from; stored as attributes of the same names.

    Attributes:
        parser: Name of the parser.
        parser_version: Its version.
        weights_sha256: Hash of its weights file; empty where it has none.
        label_set: What its output channels mean.
        grouping: Which labels make up the parts.
        groups_absent: Parts that the label set cannot give; their masks are zeros.
        resize: How label maps were brought to the masks' size.
        input_size: Height and width of the parser's input.
        flip: Whether outputs were averaged over the image and its mirror image.
        hard: Whether each pixel's most likely label was taken before resizing.
        backend: What computed it, where the build began.
        precision: In which precision, likewise; another device may have gone on in another one.
        batch_size: Images a forward. A resumed build keeps it, because sums round differently in other batches.
        rules_sha256: Hash of the content of the label set, the grouping and the description beside a model: what
            stands in files of the user's may change under one name.
        label_maps: Of finished label maps, the hashes of some, evenly spread over the images; empty where there was
            none. Maps may be added later, and those that are there must stay what they were.
    """

    parser: str
    parser_version: str
    weights_sha256: str
    label_set: str
    grouping: str
    groups_absent: tuple[str, ...]
    resize: str
    input_size: tuple[int, int]
    flip: bool
    hard: bool
    backend: str
    precision: str
    batch_size: int
    rules_sha256: str = ""
    label_maps: tuple[str, ...] = ()

    def difference(self, other: MaskMeta) -> str | None:
        """The first setting in which two files' masks differ, in words; None where there is none.

        What follows the device does not count, so that a build can go on where it is faster; nor does `batch_size`,
        because a resumed build keeps that of its file.
        """
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            if field.name == "rules_sha256" and mine != others:
                return (
                    f"another content of the label set {self.label_set!r}, the grouping {self.grouping!r} or the "
                    "model's description"
                )
            if field.name == "label_maps":
                if any(one and other and one != other for one, other in zip(mine, others, strict=False)):
                    return "other label maps"
            elif field.name not in _INCIDENTAL and mine != others:
                return f"{field.name} = {mine!r}, not {others!r}"
        return None


@dataclass(frozen=True, slots=True)
class Masks:
    """The arrays of a mask file, in memory.

    Attributes:
        parts: (N, 4, 16, 8) uint8, occupancy 0..255 of each cell by head, upper body, lower body and shoes.
        body: (N, 64, 32) uint8, occupancy 0..255 of each cell by the whole body.
        quality: (N,) float32 in [0, 1].
        done: (N,) uint8: 0 pending, 1 good, 2 failed (its masks are zeros and mean nothing).
        names: Image names, sorted.
        groups_absent: Parts that the parser cannot give; their masks are zeros for want of knowledge.
    """

    parts: Bytes
    body: Bytes
    quality: Floats
    done: Bytes
    names: tuple[str, ...]
    groups_absent: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


class MaskFile:
    """A mask file that was read and checked. Made by `MaskFile.open`."""

    def __init__(self, path: Path, meta: MaskMeta, masks: Masks, created: str, complete: bool) -> None:
        self.path = path
        self.meta = meta
        self.created = created
        self.complete = complete
        self._masks = masks
        self._rows = {name: row for row, name in enumerate(masks.names)}

    @classmethod
    def open(cls, path: Path, *, names: Sequence[str] | None = None, allow_incomplete: bool = False) -> Self:
        """Read a mask file and check all of it.

        Args:
            path: The file.
            names: Images that must be in it; others may be too.
            allow_incomplete: Also take a file whose build has not finished.

        Raises:
            FormatError: The file is missing or no mask file, has a newer format version, lacks a dataset, has one of
                another shape, was damaged (a checksum is wrong), is incomplete, or lacks one of `names`.
        """
        with _open_hdf5(path, "r") as file:
            attributes = _attributes(file, path)
            arrays = _arrays(file, path)
        stored = _names(arrays["names"], attributes, path)
        meta = _meta(attributes, path)
        masks = Masks(
            arrays["parts"], arrays["body"], arrays["quality"], arrays["done"], stored, tuple(meta.groups_absent)
        )
        broken = corrupt_rows(masks, arrays["crc"])
        if len(broken):
            raise FormatError(
                f"the mask file is damaged: {len(broken)} of {len(masks)} rows do not match their checksum, "
                f"first {stored[broken[0]]!r}",
                where=path,
                hint="build it again",
            )
        complete = bool(attributes["complete"])
        if not complete and not allow_incomplete:
            pending = int((masks.done == PENDING).sum())
            raise FormatError(
                f"the mask file is incomplete: {pending} of {len(masks)} images are still to do",
                where=path,
                hint="run the command that builds it again; it goes on where it stopped",
            )
        opened = cls(path, meta, masks, str(attributes["created"]), complete)
        if names is not None:
            opened.require(names)
        return opened

    @property
    def names(self) -> tuple[str, ...]:
        """All image names, sorted."""
        return self._masks.names

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def index(self, name: str) -> int:
        """Row of an image.

        Raises:
            FormatError: The image is not in the file.
        """
        if name not in self._rows:
            raise FormatError(f"there is no image {name!r} in the mask file", where=self.path)
        return self._rows[name]

    def require(self, names: Sequence[str]) -> None:
        """Check that all of `names` are in the file.

        Raises:
            FormatError: Some are not: the file was made for another list of images.
        """
        missing = [name for name in names if name not in self._rows]
        if missing:
            raise FormatError(
                f"the mask file was made for other images: it lacks {len(missing)} of {len(names)}, "
                f"first {missing[0]!r}",
                where=self.path,
                expected=f"names as in the data set; this file has {len(self)}, first {self.names[0]!r}"
                if self.names
                else None,
            )

    def load(self) -> Masks:
        """The arrays. They are shared with this object: do not write into them."""
        return self._masks

    def __len__(self) -> int:
        return len(self._masks)


class MaskWriter:
    """Writes a mask file row by row. Made by `create` or `resume`; use as a context manager."""

    def __init__(self, file: h5py.File, path: Path, names: tuple[str, ...], meta: MaskMeta, done: Bytes) -> None:
        self.path = path
        self.names = names
        self.meta = meta
        self.done = done
        self._file = file

    @classmethod
    def create(cls, path: Path, names: Sequence[str], meta: MaskMeta) -> Self:
        """Begin a new file; an existing one is replaced.

        Args:
            path: The file.
            names: Relative POSIX paths of the images, sorted and distinct.
            meta: Where the masks come from.

        Raises:
            FormatError: The file cannot be written, or a name cannot be stored.
        """
        ordered = tuple(names)
        if list(ordered) != sorted(set(ordered)):
            raise ValueError("names must be sorted and distinct")
        encoded = [_encode(name, path) for name in ordered]
        # Laid out under another name: whatever lies at `path` can be resumed.
        laid_out = path.with_name(path.name + ".new")
        with _translated(path, "written"):
            try:
                _lay_out(laid_out, encoded, meta)
                fsync_path(laid_out)
                laid_out.replace(path)
            finally:
                laid_out.unlink(missing_ok=True)
            opened = h5py.File(path, "r+", libver="earliest")
        count = len(ordered)
        return cls(opened, path, ordered, meta, np.zeros(count, np.uint8))

    @classmethod
    def resume(cls, path: Path, names: Sequence[str], meta: MaskMeta | None = None) -> Self:
        """Go on with a file that was not finished.

        Rows whose checksum is wrong (the writer was killed while it wrote them) count as pending again.

        Args:
            path: The file.
            names: The images, as for `create`.
            meta: Where the masks come from; its `batch_size` may differ, the file's is kept. None: not compared.

        Raises:
            FormatError: The file is damaged, or was begun for other images or with other settings.
        """
        with _open_hdf5(path, "r") as file:
            attributes = _attributes(file, path)
            arrays = _arrays(file, path)
        stored = _names(arrays["names"], attributes, path)
        begun = _meta(attributes, path)
        if stored != tuple(names):
            raise FormatError(
                f"the unfinished mask file was begun for other images ({len(stored)} against {len(names)} now)",
                where=path,
                hint="delete it to begin again",
            )
        difference = begun.difference(meta) if meta is not None else None
        if difference is not None:
            raise FormatError(
                f"the unfinished mask file was begun with {difference}",
                where=path,
                hint="delete it to begin again, or go on with the settings it was begun with",
            )
        masks = Masks(arrays["parts"], arrays["body"], arrays["quality"], arrays["done"], stored, begun.groups_absent)
        broken = corrupt_rows(masks, arrays["crc"])
        done = masks.done.copy()
        done[broken] = PENDING
        with _translated(path, "written"):
            opened = h5py.File(path, "r+", libver="earliest")
        writer = cls(opened, path, stored, begun, done)
        if len(broken) or attributes["complete"]:
            with _translated(path, "written"):
                opened["done"][...] = done
                opened.attrs["complete"] = np.uint8(0)
                opened.flush()
        return writer

    def write(self, start: int, parts: Bytes, body: Bytes, quality: Floats, done: Bytes) -> None:
        """Write consecutive rows; when this returns they survive the death of this process.

        Args:
            start: First row.
            parts: (n, 4, 16, 8) uint8.
            body: (n, 64, 32) uint8.
            quality: (n,) float32.
            done: (n,) uint8, `DONE` or `FAILED`; the other arrays of failed rows must be zero.

        Raises:
            ArtifactError: The file cannot be written (a full disk).
        """
        rows = slice(start, start + len(done))
        with _translated(self.path, "written"):
            self._file["parts"][rows] = parts
            self._file["body"][rows] = body
            self._file["quality"][rows] = quality
            self._file["crc"][rows] = row_checksums(parts, body, quality, done)
            self._file.flush()
            self._file["done"][rows] = done
            self._file.flush()
        self.done[rows] = done

    def finish(self) -> None:
        """Mark the file as complete.

        Raises:
            ValueError: Rows are still pending.
        """
        if (self.done == PENDING).any():
            raise ValueError("rows are still pending")
        with _translated(self.path, "written"):
            self._file.attrs["complete"] = np.uint8(1)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with _translated(self.path, "written"):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # The first error is what the user must hear of; on a full disk, closing fails again for the same reason.
        with contextlib.suppress(UserError):
            self.close()


def row_checksums(parts: Bytes, body: Bytes, quality: Floats, done: Bytes) -> NDArray[np.uint32]:
    """CRC-32 of each row: the bytes of `parts`, `body`, `quality` (little-endian float32) and `done`, in order."""
    floats = np.ascontiguousarray(quality, "<f4")
    sums = np.empty(len(done), "<u4")
    for row in range(len(done)):
        crc = zlib.crc32(parts[row].tobytes())
        crc = zlib.crc32(body[row].tobytes(), crc)
        crc = zlib.crc32(floats[row].tobytes(), crc)
        sums[row] = zlib.crc32(done[row].tobytes(), crc)
    return sums


def corrupt_rows(masks: Masks, crc: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Rows that are marked as written but do not match their checksum; pending rows have none."""
    expected = row_checksums(masks.parts, masks.body, masks.quality, masks.done)
    return np.flatnonzero((masks.done != PENDING) & (expected != crc))


def has_rows(path: Path) -> bool:
    """Whether an unfinished file has rows that are done or failed; reads nothing else of its arrays.

    Raises:
        FormatError: It is no mask file, has a newer format version, or what is looked at here is damaged.
    """
    with _open_hdf5(path, "r") as file:
        _attributes(file, path)
        return bool(_array(file, "done", path).any())


def names_hash(names: Sequence[str]) -> str:
    """SHA-256 of a list of image names: each in UTF-8 and followed by a line feed."""
    return sha256_bytes(b"".join(name.encode() + b"\n" for name in names))


def _lay_out(path: Path, encoded: Sequence[bytes], meta: MaskMeta) -> None:
    """Write a mask file whose rows are all pending.

    Its space is asked for before HDF5 makes the file, since HDF5 crashes where it meets the end of a disk. HDF5 first
    empties the file and then writes little into it (names, attributes); when the rest is reserved, later writes need
    no more space, except on disks that compress, copy what they overwrite or cannot reserve: there `write` tells of it.
    """
    count = len(encoded)
    names = np.array(encoded, h5py.string_dtype("utf-8", max((len(name) for name in encoded), default=1) or 1))
    attributes = _attributes_of(meta, encoded)
    attributes["attributes_sha256"] = _attributes_hash(attributes)
    text = sum(len(value.encode()) for value in attributes.values() if isinstance(value, str))
    reserve(path, count * (_ROW_BYTES + names.itemsize) + text + _STRUCTURE)
    with h5py.File(path, "w", libver="earliest") as file:
        for key in ("parts", "body"):
            # Allocated now, though nothing is written: no metadata changes from here on.
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            file.create_dataset(key, (count, *_DATASETS[key][0]), np.uint8, dcpl=layout)
        file.create_dataset("quality", data=np.zeros(count, "<f4"))
        file.create_dataset("done", data=np.zeros(count, np.uint8))
        file.create_dataset("crc", data=np.zeros(count, "<u4"))
        file.create_dataset("names", data=names)
        for name, value in attributes.items():
            file.attrs[name] = value
        file.attrs["complete"] = np.uint8(0)
    reserve(path, path.stat().st_size)


@contextlib.contextmanager
def _translated(path: Path, action: str) -> Iterator[None]:
    # HDF5 reports everything, from a full disk to a wild offset in a damaged file, as one of these.
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        if "unable to lock" in str(error):
            raise LockedError("another process is writing this mask file", where=path) from error
        # Of HDF5's errors, the number stands in the text only.
        found = _ERRNO.search(str(error))
        number = int(found[1]) if found is not None else getattr(error, "errno", None)
        if number in NO_SPACE:
            raise ArtifactError(
                f"the mask file cannot be {action}: {os.strerror(number).lower()}",
                where=path,
                hint="make room and run the same command again",
            ) from error
        # What cannot be read is damaged; what cannot be written is as good as it was before.
        kind = FormatError if action == "read" else ArtifactError
        raise kind(f"the mask file cannot be {action}: {error}", where=path) from error


@contextlib.contextmanager
def _open_hdf5(path: Path, mode: str) -> Iterator[h5py.File]:
    if not path.is_file():
        raise FormatError("the mask file does not exist", where=path, hint="`sgsfa masks build` makes one")
    with _translated(path, "read"):
        with path.open("rb") as stream:
            signature = stream.read(len(_SIGNATURE))
        if signature != _SIGNATURE:
            raise FormatError(
                "this is no HDF5 file, or its beginning is damaged",
                where=path,
                expected="a file that `sgsfa masks build` wrote",
                hint="if it was one, move it away and build it again",
            )
        with h5py.File(path, mode) as file:
            yield file


def _attributes_of(meta: MaskMeta, encoded: Sequence[bytes]) -> dict[str, Any]:
    attributes: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    for key, value in asdict(meta).items():
        if key in _LISTS:
            attributes[key] = ",".join(value)
        elif isinstance(value, tuple):
            attributes[key] = np.array(value, "<i8")
        else:
            attributes[key] = np.uint8(value) if isinstance(value, bool) else value
    attributes["part_names"] = ",".join(PART_NAMES)
    attributes["names_sha256"] = sha256_bytes(b"".join(name + b"\n" for name in encoded))
    attributes["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    attributes["tool_version"] = __version__
    return attributes


def _attributes_hash(attributes: Mapping[str, Any]) -> str:
    """Hash of all attributes but `complete` and itself: JSON with sorted keys, numbers as numbers."""
    plain = {
        key: np.asarray(value).tolist() if not isinstance(value, str) else value
        for key, value in attributes.items()
        if key not in ("complete", "attributes_sha256")
    }
    return sha256_bytes(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode())


def _attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    attributes = dict(file.attrs)
    if attributes.get("format") != FORMAT:
        raise FormatError(
            "this HDF5 file is not a mask file", where=path, expected=f"the attribute format = {FORMAT!r}"
        )
    version = attributes.get("format_version")
    if version is None or int(version) != FORMAT_VERSION:
        newer = version is not None and int(version) > FORMAT_VERSION
        raise FormatError(
            f"the mask file has format version {version}" + (", which is newer than this program" if newer else ""),
            where=path,
            expected=f"format version {FORMAT_VERSION}",
            hint="update sgsfa" if newer else "delete it and build it again",
        )
    needed = {field.name for field in fields(MaskMeta)} | {"names_sha256", "created", "complete", "attributes_sha256"}
    missing = sorted(needed - attributes.keys())
    if missing:
        raise FormatError(
            f"the mask file lacks the attributes {', '.join(missing)}",
            where=path,
            hint="build it again",
        )
    if _attributes_hash(attributes) != attributes["attributes_sha256"]:
        raise FormatError(
            "the mask file is damaged: its attributes do not match their checksum", where=path, hint="build it again"
        )
    return attributes


def _arrays(file: h5py.File, path: Path) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    count: int | None = None
    for key in _DATASETS:
        arrays[key] = _array(file, key, path, count)
        count = len(arrays[key])
    return arrays


def _array(file: h5py.File, key: str, path: Path, count: int | None = None) -> Any:
    """One dataset, checked, of `count` rows; None: of any number."""
    shape, kind = _DATASETS[key]
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset):
        raise FormatError(f"the mask file lacks the dataset /{key}", where=path, hint="build it again")
    count = dataset.shape[0] if count is None and dataset.ndim else count
    right_kind = dataset.dtype.kind == "S" if kind == "S" else dataset.dtype == np.dtype(kind)
    if dataset.shape != (count, *shape) or not right_kind:
        raise FormatError(
            f"the dataset /{key} has shape {dataset.shape} and type {dataset.dtype}",
            where=path,
            expected=f"{(count, *shape)} of {'fixed-length UTF-8' if kind == 'S' else kind}",
        )
    return dataset[...]


def _names(raw: NDArray[np.bytes_], attributes: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    if sha256_bytes(b"".join(name + b"\n" for name in raw.tolist())) != attributes["names_sha256"]:
        raise FormatError(
            "the mask file is damaged: its image list does not match its checksum", where=path, hint="build it again"
        )
    with _translated(path, "read"):
        names = tuple(name.decode() for name in raw.tolist())
    for name in names:
        # Names become paths below other folders; no file of somebody else's may choose where.
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in re.split(r"[/\\]", name):
            raise FormatError(
                f"the mask file names the image {name!r}",
                where=path,
                expected="names relative to a data set's folder, that stay in it",
            )
    return names


def _meta(attributes: Mapping[str, Any], path: Path) -> MaskMeta:
    with _translated(path, "read"):
        lists = {key: str(attributes[key]) for key in _LISTS}
        height, width = attributes["input_size"].tolist()
        values = {
            **{key: tuple(text.split(",")) if text else () for key, text in lists.items()},
            "input_size": (int(height), int(width)),
            "flip": bool(attributes["flip"]),
            "hard": bool(attributes["hard"]),
            "batch_size": int(attributes["batch_size"]),
        }
        texts = {field.name: str(attributes[field.name]) for field in fields(MaskMeta) if field.name not in values}
        return MaskMeta(**values, **texts)  # type: ignore[arg-type]


def _encode(name: str, path: Path) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise FormatError(
            f"the file name {name!r} is not UTF-8", where=path, hint="rename the image; mask files store UTF-8 names"
        ) from None
    if b"\n" in encoded or b"\0" in encoded:
        raise FormatError(f"the file name {name!r} has a line break", where=path, hint="rename the image")
    return encoded
