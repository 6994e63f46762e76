"""A table of images in a CSV file: the way to bring own data."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import get_args

from pipeline.config import suggestion
from pipeline.datasets.faults import NO_CAMERAS, FaultKind, ReadLog
from pipeline.datasets.kind import KindInfo
from pipeline.datasets.records import DISTRACTOR_PID, UNKNOWN, Dataset, Record, Split, short_name

_HIGHEST = 2**62
_LONGEST = 20  # Digits; longer numbers are not even read.

COLUMNS = ("path", "pid", "camid", "split")
SPLITS: tuple[Split, ...] = tuple(split for split in get_args(Split) if split != "all")


class RowFault(Exception):
    """A row that cannot be used; the message says why."""


@dataclass
class Table:
    """What was read from a CSV file."""

    records: list[Record] = field(default_factory=list)
    extra: dict[str, Mapping[str, str]] = field(default_factory=dict)


def read(path: Path, variant: str, log: ReadLog) -> Dataset:
    """Read a CSV file; image paths are relative to its folder."""
    table = read_table(path, log)
    return Dataset("csv", short_name(path.stem), path.parent, tuple(table.records), extra=table.extra)


def read_table(path: Path, log: ReadLog) -> Table:
    """Read a CSV file with the columns `path,pid,camid,split` in any order, and any others.

    Every faulty row is logged with its line. Rows with pid -1 are junk, dropped and counted.
    """
    table = Table()
    if not path.is_file():
        problem = "is a folder, not a CSV file" if path.is_dir() else "does not exist"
        log.fault(FaultKind.MISSING, f"the CSV file {problem}", path, expected=f"a file with {','.join(COLUMNS)}")
        return table
    try:
        # A spreadsheet program may have put a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            _read_rows(csv.DictReader(stream, strict=True), path, table, log)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        log.fault(FaultKind.MISSING, f"the CSV file cannot be read: {error}", path, expected="CSV in UTF-8")
    for split in SPLITS:
        if any(record.split == split for record in table.records):
            log.folders[split] = path
    return table


def _read_rows(reader: csv.DictReader[str], path: Path, table: Table, log: ReadLog) -> None:
    header = [name.strip() for name in reader.fieldnames or ()]
    if not _header_is_sound(header, path, log):
        return
    reader.fieldnames = header
    seen: dict[tuple[str, str], int] = {}
    owners: dict[str, tuple[int, int, int]] = {}
    junk = rows = 0
    for row in reader:
        rows += 1
        where = f"{path}, line {reader.line_num}"
        others = {name: (value or "").strip() for name, value in row.items() if name and name not in COLUMNS}
        try:
            record = _record(row)
            _check_visible(others.get("visible", ""))
        except RowFault as error:
            log.fault(FaultKind.ROW, str(error), where)
            continue
        if record.pid == UNKNOWN:
            junk += 1
            continue
        first = seen.setdefault((record.path, record.split), reader.line_num)
        if first != reader.line_num:
            log.fault(FaultKind.DUPLICATE, f"{record.path} is in {record.split} already (line {first})", where)
            continue
        pid, camid, line = owners.setdefault(record.path, (record.pid, record.camid, reader.line_num))
        if (pid, camid) != (record.pid, record.camid):
            found = f"{record.path} is identity {record.pid}, camera {record.camid}"
            log.fault(FaultKind.ROW, f"{found} here, but identity {pid}, camera {camid} in line {line}", where)
            continue
        if not (path.parent / record.path).is_file():
            log.fault(FaultKind.MISSING, f"the image {record.path} does not exist", where)
            continue
        earlier = table.extra.get(record.path, {})
        other = next(
            (name for name, value in others.items() if value and earlier.get(name, value) not in ("", value)), ""
        )
        if other:
            found = f"{record.path} has {other} {others[other]!r}"
            log.fault(FaultKind.ROW, f"{found} here, but {earlier[other]!r} in another row", where)
            continue
        table.records.append(record)
        if others:
            table.extra[record.path] = {name: value or earlier.get(name, "") for name, value in others.items()}
    if junk:
        log.note(f"{junk:,} junk rows (pid -1) dropped")
    if not rows:
        log.fault(FaultKind.EMPTY, "the CSV file has no rows", path)


def _header_is_sound(header: list[str], path: Path, log: ReadLog) -> bool:
    missing = [name for name in COLUMNS if name not in header]
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        log.fault(FaultKind.ROW, f"the column {doubled[0]!r} stands twice in the header", f"{path}, line 1")
    if missing:
        separators = [mark for mark in ";\t|" if any(mark in name for name in header)]
        others = [name for name in header if name not in COLUMNS]
        near = next((hint for name in missing if (hint := suggestion(name, others))), None)
        if near is None and missing == ["camid"]:
            near = NO_CAMERAS
        log.fault(
            FaultKind.ROW,
            f"the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing; there are: "
            f"{', '.join(header) or 'none'}",
            f"{path}, line 1",
            expected=f"a header with {','.join(COLUMNS)}",
            hint=f"separate the columns by commas, not {separators[0]!r}" if separators else near,
        )
    return not missing and not doubled


def _record(row: Mapping[str | None, object]) -> Record:
    if None in row:
        raise RowFault("more values than the header has columns; a path with a comma needs quotes")
    values: dict[str, str] = {}
    for name in COLUMNS:
        value = row[name]
        if not isinstance(value, str) or not value.strip():
            raise RowFault(f"no {name}")
        values[name] = value.strip()
    path = _inner_path(values["path"])
    pid = _integer("pid", values["pid"], lowest=UNKNOWN)
    camid = _integer("camid", values["camid"], lowest=0)
    split = next((split for split in SPLITS if split == values["split"]), None)
    if split is None:
        near = suggestion(values["split"].lower(), SPLITS)
        raise RowFault(
            f"unknown split {values['split']!r}; expected {' | '.join(SPLITS)}{f' ({near})' if near else ''}"
        )
    if pid == DISTRACTOR_PID and split == "query":
        raise RowFault("pid 0 marks distractors, which cannot be queries")
    return Record(path, pid, camid, split)


def _inner_path(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or PureWindowsPath(text).drive:
        raise RowFault(f"the path {text!r} is absolute; expected one relative to the CSV file's folder")
    if ".." in path.parts or ".." in PureWindowsPath(text).parts:
        raise RowFault(f"the path {text!r} leads outside the CSV file's folder")
    if "\\" in text:
        raise RowFault(f"the path {text!r} has backslashes; write '/'")
    return path.as_posix()


def _integer(name: str, text: str, *, lowest: int) -> int:
    # Python's own `int` also takes 1_000 and the digits of other scripts.
    if re.fullmatch(r"[+-]?[0-9]+", text) is None:
        raise RowFault(f"{name} {text!r} is not an integer")
    value = int(text) if len(text) <= _LONGEST else _HIGHEST + 1
    if value < lowest:
        raise RowFault(f"{name} {value} is below {lowest}")
    if value > _HIGHEST:
        raise RowFault(f"{name} {text[:_LONGEST]} is above {_HIGHEST}")
    return value


def _check_visible(text: str) -> None:
    """The column `visible`, where there is one, is a share of the body, or empty."""
    try:
        known = not text or 0 <= float(text) <= 1
    except ValueError:
        known = False
    if not known:
        raise RowFault(f"visible {text!r} is not a share; expected a number from 0 to 1, or nothing")


INFO = KindInfo(
    name="csv",
    summary="your own images, listed in a CSV file",
    layout="PATH is the file; columns path,pid,camid,split (train | query | gallery), paths relative to its folder",
    cameras="from the column camid",
    source="your own images; docs/how-to/own-data.md",
    read=read,
)
