"""The mask file: part masks of a list of images in one HDF5 file that any program with HDF5 can read.

Contiguous, uncompressed datasets, read into memory at once (30,000 images are 81 MB). `pipeline.formats.rows` writes
and resumes them; docs/formats/masks.md describes the layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FormatError
from pipeline.formats import rows
from pipeline.formats.provenance import Difference, Provenance
from pipeline.formats.rows import FAILED, OK, PENDING, Column, Layout, RowFormat, RowWriter
from pipeline.parts import SEMANTIC

__all__ = ["FAILED", "OK", "PENDING", "MaskFile", "absent_text", "open_mask_writer"]

FORMAT = RowFormat("sgsfa-masks", version=1, title="mask file", checksums=True)

PART_NAMES = SEMANTIC
"""The second axis of `parts`."""

PARTS_SIZE = (16, 8)
"""Height and width of a part mask: the stage-4 map of a 256 x 128 input."""

BODY_SIZE = (64, 32)
"""Height and width of a body mask: the stage-1 map of a 256 x 128 input."""

COLUMNS = {
    "parts": Column((len(PART_NAMES), *PARTS_SIZE), "u1"),
    "body": Column(BODY_SIZE, "u1"),
    "quality": Column((), "f4"),
}

_INCIDENTAL = frozenset({"backend", "precision", "batch_size"})
_LABEL_MAP = "label_map:"

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MaskFile:
    """A mask file in memory, checked. Returned by `MaskFile.open`.

    Attributes:
        path: The file.
        provenance: Parser, label set and everything else that decides the masks.
        names: Image names, sorted.
        parts: (N, 4, 16, 8) uint8, occupancy 0..255 of each cell by head, upper body, lower body and shoes.
        body: (N, 64, 32) uint8, occupancy 0..255 of each cell by the body.
        quality: (N,) float32 in [0, 1].
        status: (N,) uint8: `PENDING`, `OK` or `FAILED`; the masks of the latter two are zeros without meaning.
        reasons: Why rows failed, by row.
    """

    path: Path
    provenance: Provenance
    names: tuple[str, ...]
    parts: Bytes
    body: Bytes
    quality: Floats
    status: Bytes
    reasons: Mapping[int, str]

    @classmethod
    def open(cls, path: Path, *, allow_incomplete: bool = False) -> Self:
        """Read a mask file and check all of it; with `allow_incomplete`, rows may be pending.

        Raises:
            FormatError: The file is missing, not a mask file of this format version, damaged or incomplete.
        """
        with rows.reading(path, FORMAT) as file:
            provenance = Provenance.from_json(file.attrs["provenance"])
            count = len(file["names"]) if getattr(file.get("names"), "ndim", 0) else 0
            columns = {"names": Column((), "S"), **COLUMNS}
            rows.check_datasets(file, path, FORMAT, count, columns)
            arrays = {name: file[name][...] for name in (*columns, rows.STATUS)}
            rows.check_fixed(file, path, FORMAT, {"names": arrays["names"]})
            reasons = rows.read_reasons(file, arrays[rows.STATUS])
            checksums = file[rows.CRC][...]
        names = _safe_names(rows.decode_texts(arrays.pop("names")), path)
        corrupt = rows.corrupt_rows({name: arrays[name] for name in COLUMNS}, arrays[rows.STATUS], checksums)
        if len(corrupt):
            raise FormatError(
                f"the mask file is damaged: {len(corrupt)} of {count} rows do not match their checksum, "
                f"first {names[corrupt[0]]!r}",
                where=path,
                hint="delete it and build it again",
            )
        pending = int((arrays[rows.STATUS] == PENDING).sum())
        if pending and not allow_incomplete:
            text = f"the mask file is incomplete: {pending} of {count} images are pending"
            raise FormatError(text, where=path, hint="run the command that builds it again; it resumes")
        return cls(path, provenance, names, **arrays, reasons=reasons)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Rows by image name."""
        return {name: row for row, name in enumerate(self.names)}

    @property
    def complete(self) -> bool:
        """Whether no row is pending."""
        return not bool((self.status == PENDING).any())

    @property
    def absent_parts(self) -> tuple[str, ...]:
        """Parts that the parser's labels do not have; their masks are zeros in every image."""
        text = str(self.provenance.values.get("absent_parts", ""))
        return tuple(text.split(",")) if text else ()

    def index(self, name: str) -> int:
        """Return the row of an image; raises `FormatError` if the image is not in the file."""
        if name not in self:
            raise FormatError(f"no image {name!r} in the mask file", where=self.path)
        return self.rows[name]


def open_mask_writer(
    path: Path, names: Sequence[str], provenance: Provenance, *, published: Path | None = None
) -> RowWriter:
    """Create a mask file of images (sorted, distinct POSIX paths), or resume the one at `path`.

    The device may differ from the one a file was begun on, and so may the batch size, of which a resumed file keeps
    its own: sums round differently in other batches. Label maps may be added, but those recorded must be the same.

    Raises:
        FormatError: The file there is damaged, or was created for other images or with other settings.
        ArtifactError: The file cannot be written.
    """
    if any("\n" in name for name in names):
        raise FormatError("the name of an image has a line break", where=path, hint="rename the image")
    fixed = {"names": rows.encode_texts(names)}
    layout = Layout(FORMAT, len(names), COLUMNS, fixed, {"part_names": ",".join(PART_NAMES)})
    return rows.open_or_create(path, layout, provenance, incidental=_incidental, published=published)


def label_map_keys(hashes: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of a provenance for some label maps, given their hashes by image name."""
    return {f"{_LABEL_MAP}{name}": sha256 for name, sha256 in hashes.items()}


def absent_text(parts: Sequence[str]) -> str | None:
    """Return the entry `absent_parts` of a provenance."""
    return ",".join(parts) or None


def _incidental(difference: Difference) -> bool:
    if difference.key.startswith(_LABEL_MAP):
        return difference.recorded is None or difference.current is None
    return difference.key in _INCIDENTAL


def _safe_names(names: Sequence[str], path: Path) -> tuple[str, ...]:
    for name in names:
        # Names become paths below other folders; a file from elsewhere must not choose where.
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in re.split(r"[/\\]", name):
            raise FormatError(
                f"the mask file names the image {name!r}", where=path, expected="relative paths inside a data folder"
            )
    return tuple(names)
