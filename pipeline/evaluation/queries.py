"""The table of queries next to a result, for comparing runs query by query: `queries.csv`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import FormatError
from pipeline.runtime.files import atomic_write

QUERIES_FILE = "queries.csv"

Doubles = npt.NDArray[np.float64]

_COLUMNS: dict[str, tuple[str, type]] = {
    "name": ("names", str),
    "pid": ("pids", int),
    "camid": ("camids", int),
    "visible_fraction": ("visible_fraction", float),
    "parts": ("parts", str),
    "ap": ("ap", float),
    "inp": ("inp", float),
    "first_hit": ("first_hit", int),
    "ap_visibility_ignored": ("ap_ignored", float),
}
"""Attribute and type of each column of the file."""


@dataclass(frozen=True, slots=True)
class QueryTable:
    """One row per query.

    Attributes:
        names: Image names.
        pids: (Q,) identities.
        camids: (Q,) cameras.
        visible_fraction: (Q,) visible share of the person: the data set's own figure where it has one, else the share
            of the seven parts that the network predicts as visible.
        parts: Names of the visible parts of each query, separated by blanks.
        ap: (Q,) average precision, NaN without a match.
        inp: (Q,) matches / rank of the last one, NaN without a match.
        first_hit: (Q,) rank of the first match, 0 without one.
        ap_ignored: (Q,) average precision with visibility ignored, NaN where that was not computed.
    """

    names: tuple[str, ...]
    pids: npt.NDArray[np.int64]
    camids: npt.NDArray[np.int64]
    visible_fraction: Doubles
    parts: tuple[str, ...]
    ap: Doubles
    inp: Doubles
    first_hit: npt.NDArray[np.int64]
    ap_ignored: Doubles

    def __len__(self) -> int:
        return len(self.names)

    def keys(self) -> list[tuple[str, int]]:
        """Return what identifies each query between runs: image name and camera."""
        return list(zip(self.names, self.camids.tolist(), strict=True))

    def write(self, path: Path) -> None:
        """Write the table as CSV, whole or not at all."""
        columns = [np.asarray(getattr(self, attribute)).tolist() for attribute, _ in _COLUMNS.values()]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        # NaN, which differs from itself, is an empty field.
        writer.writerows(["" if value != value else value for value in row] for row in zip(*columns, strict=True))
        with atomic_write(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> QueryTable:
        """Read a table.

        Raises:
            FormatError: It is missing or is not such a table.
        """
        try:
            with path.open(encoding="utf-8", newline="") as stream:
                reader = csv.DictReader(stream)
                if list(reader.fieldnames or ()) != list(_COLUMNS):
                    raise FormatError("not a table of queries", where=path, expected=",".join(_COLUMNS))
                rows = list(reader)
            columns: dict[str, Any] = {}
            for column, (attribute, kind) in _COLUMNS.items():
                texts = [row[column] for row in rows]
                if kind is str:
                    columns[attribute] = tuple(texts)
                else:
                    columns[attribute] = np.array([kind(text or "nan") for text in texts], np.dtype(kind))
            return cls(**columns)
        except FileNotFoundError:
            raise FormatError("the result has no table of queries", where=path) from None
        except (OSError, ValueError, TypeError) as error:
            raise FormatError(f"the table of queries cannot be read: {error}", where=path) from error
