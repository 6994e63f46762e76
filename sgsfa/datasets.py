"""Data sets from tables in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from pipeline.datasets.images import write_image
from pipeline.datasets.records import UNKNOWN, Dataset, Record, Split
from pipeline.errors import DataError

_KEYS = ("path", "image", "pid", "camid", "split")


def from_records(table: Sequence[Mapping[str, Any]] | Any, root: Path) -> Dataset:
    """Make a data set of a table: a pandas frame, or a list of mappings. See `sgsfa.open_dataset`.

    Raises:
        DataError: A row has neither a path nor an image, or a value that cannot be used; the row is named.
    """
    rows: Sequence[Mapping[str, Any]] = table.to_dict("records") if hasattr(table, "to_dict") else table
    if not len(rows):
        raise DataError("the table has no rows", expected=f"rows with {', '.join(_KEYS)}")
    return Dataset("table", "table", root, tuple(_record(row, number, root) for number, row in enumerate(rows)))


def _record(row: Mapping[str, Any], number: int, root: Path) -> Record:
    where = f"row {number}"
    split = row.get("split", "all")
    if split not in get_args(Split):
        raise DataError(f"unknown split {split!r}", where=where, expected=" | ".join(get_args(Split)))
    return Record(
        path=_path(row, number, root),
        pid=_number(row.get("pid", UNKNOWN), "pid", where),
        camid=_number(row.get("camid", UNKNOWN), "camid", where),
        split=cast(Split, split),
    )


def _path(row: Mapping[str, Any], number: int, root: Path) -> str:
    if "path" in row:
        return Path(row["path"]).as_posix()
    if "image" not in row:
        raise DataError("neither path nor image", where=f"row {number}", expected=f"columns {', '.join(_KEYS)}")
    image = np.asarray(row["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"image of {image.dtype} and shape {image.shape}",
            where=f"row {number}",
            expected="uint8 RGB of shape (height, width, 3)",
        )
    name = f"{number:06d}.png"
    root.mkdir(parents=True, exist_ok=True)
    write_image(root / name, image)
    return name


def _number(value: Any, name: str, where: str) -> int:
    try:
        whole = int(value)
    except (TypeError, ValueError):
        whole = None
    if whole is None or whole != float(value):
        raise DataError(f"{name} {value!r} is not a whole number", where=where, expected="an integer")
    return whole
