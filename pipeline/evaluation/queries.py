"""The table of queries next to a result, for comparing runs query by query: `queries.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import FormatError
from pipeline.runtime.files import atomic_write

QUERIES_FILE = "queries.csv"

Doubles = npt.NDArray[np.float64]

_COLUMNS = ("name", "pid", "camid", "visible_fraction", "parts", "ap", "inp", "first_hit", "ap_visibility_ignored")


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
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        columns: Sequence[Sequence[object]] = (
            self.names,
            self.pids.tolist(),
            self.camids.tolist(),
            [_number(value) for value in self.visible_fraction],
            self.parts,
            [_number(value) for value in self.ap],
            [_number(value) for value in self.inp],
            self.first_hit.tolist(),
            [_number(value) for value in self.ap_ignored],
        )
        writer.writerows(zip(*columns, strict=True))
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
                if tuple(reader.fieldnames or ()) != _COLUMNS:
                    raise FormatError("not a table of queries", where=path, expected=",".join(_COLUMNS))
                rows = list(reader)
            return cls(
                tuple(row["name"] for row in rows),
                np.array([int(row["pid"]) for row in rows], dtype=np.int64),
                np.array([int(row["camid"]) for row in rows], dtype=np.int64),
                _floats(row["visible_fraction"] for row in rows),
                tuple(row["parts"] for row in rows),
                _floats(row["ap"] for row in rows),
                _floats(row["inp"] for row in rows),
                np.array([int(row["first_hit"]) for row in rows], dtype=np.int64),
                _floats(row["ap_visibility_ignored"] for row in rows),
            )
        except FileNotFoundError:
            raise FormatError("the result has no table of queries", where=path) from None
        except (OSError, ValueError, TypeError) as error:
            raise FormatError(f"the table of queries cannot be read: {error}", where=path) from error


def _number(value: float) -> str:
    return "" if np.isnan(value) else repr(float(value))


def _floats(texts: Iterable[str]) -> Doubles:
    return np.array([float(text) if text else np.nan for text in texts], dtype=np.float64)
