"""A table of images in a CSV file: the way to use own data, and the form of rendered data sets."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import get_args

from pipeline.config import suggestion
from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.images import SUFFIXES
from pipeline.datasets.kind import KindInfo
from pipeline.datasets.layout import find_root, log_missing
from pipeline.datasets.records import DISTRACTOR_PID, UNKNOWN, Dataset, Record, Split, short_name
from pipeline.formats.foreign import DESCRIPTIONS, HINTS, sniff
from pipeline.runtime.names import NameIndex

_HIGHEST = 2**62
_LONGEST = 20  # digits; longer numbers are not even parsed

COLUMNS = ("path", "pid", "camid", "split")
SPLITS: tuple[Split, ...] = tuple(split for split in get_args(Split) if split != "all")

_TABLE, _LABEL_MAPS = "dataset.csv", "labels"  # of a rendered data set
_LINK = "put a symbolic link to the images' folder beside the CSV file, or move the CSV file above both"
_NUMBER = "number the ids from 1, as in pandas: df['{name}'] = pandas.factorize(df['{name}'])[0] + 1"

_EXPORT = "save it as 'CSV UTF-8' in the spreadsheet program"
_DIGITS = "a spreadsheet program shortened the number: format the column as text there and export it again"
_ROLES = "test images are query (searched with) or gallery (searched in); for both, list them twice without camid"


class RowFault(Exception):
    """A row that cannot be used; the message gives the reason, `hint` what to do."""

    def __init__(self, message: str, hint: str | None = None, kind: FaultKind = FaultKind.ROW) -> None:
        super().__init__(message)
        self.hint, self.kind = hint, kind


def _read_csv(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read a CSV file; image paths are relative to its folder."""
    reader = _read_table(path, log)
    return Dataset("csv", short_name(path.stem), path.parent, tuple(reader.records), extra=reader.extra)


def _read_synthetic(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read the table of a rendered data set, and find the true label maps beside the images."""
    name = short_name(path.resolve().name)
    root = find_root(path, (_TABLE,), log)
    if log.faults:
        return Dataset("synthetic", name, root, ())
    reader = _read_table(root / _TABLE, log)
    labels = root / _LABEL_MAPS
    if labels.is_dir():
        log.note("rendered images; masks can be built from the true label maps")
    else:
        log.fault(FaultKind.MISSING, "the folder of label maps is missing", labels)
    maps = labels if labels.is_dir() else None
    return Dataset("synthetic", name, root, tuple(reader.records), label_maps=maps, extra=reader.extra)


def _read_table(path: Path, log: ReadLog) -> _TableReader:
    """Read a CSV file with the columns `path,pid,camid,split` in any order and case, and any others.

    Without `camid`, every image counts as its own camera: a query image itself is ignored, all other images of its
    identity count as matches. Every faulty row is logged with its line. Rows with pid -1 are junk, dropped and counted.
    """
    reader = _TableReader(path, log)
    if not path.is_file():
        problem = "is a folder, not a CSV file" if path.is_dir() else "does not exist"
        log.fault(FaultKind.MISSING, f"the CSV file {problem}", path, expected=f"a file with {','.join(COLUMNS)}")
        return reader
    try:
        content = sniff(path)
        if content not in ("text", "unknown"):
            cure = _EXPORT if content == "zip" else HINTS.get(content)  # XLSX files are zip archives
            log.fault(FaultKind.UNREADABLE, f"the CSV file is {DESCRIPTIONS[content]}", path, hint=cure)
            return reader
        # A spreadsheet program may have put a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader.read(csv.DictReader(stream, strict=True))
    except UnicodeDecodeError as error:
        text = f"the CSV file is not UTF-8: {error.reason} at byte {error.start}"
        hint = f"{_EXPORT}, or convert it with iconv"
        log.fault(FaultKind.UNREADABLE, text, path, expected="CSV in UTF-8", hint=hint)
    except (OSError, csv.Error) as error:
        log.fault(FaultKind.UNREADABLE, f"the CSV file cannot be read: {error}", path, expected="CSV in UTF-8")
    for split in SPLITS:
        if any(record.split == split for record in reader.records):
            log.folders[split] = path
    return reader


class _TableReader:
    """Reads rows one by one and remembers what earlier rows stated."""

    def __init__(self, path: Path, log: ReadLog) -> None:
        self.records: list[Record] = []
        self.extra: dict[str, Mapping[str, str]] = {}
        self._path = path
        self._log = log
        self._images = NameIndex(path.parent)
        self._lines: dict[tuple[str, str], int] = {}
        self._ids: dict[str, tuple[int, int, int]] = {}
        self._missing: list[tuple[str, int]] = []
        self._cameras: dict[str, int] | None = None

    def read(self, reader: csv.DictReader[str]) -> None:
        """Read all rows."""
        header = [_column(name) for name in reader.fieldnames or ()]
        if not _check_header(header, self._path, self._log):
            return
        reader.fieldnames = header
        if "camid" not in header:
            self._cameras = {}
            self._log.note("no column camid: every image is its own camera, so a query only ignores itself")
        rows = junk = 0
        for row in reader:
            # Spreadsheet programs leave rows and columns that are empty.
            if not any(row.values()):
                continue
            rows += 1
            try:
                junk += not self._add(row, reader.line_num)
            except RowFault as fault:
                where = f"{self._path}, line {reader.line_num}"
                self._log.fault(fault.kind, str(fault), where, hint=fault.hint)
        if junk:
            self._log.note(f"{junk:,} junk rows (pid -1) dropped")
        if not rows:
            self._log.fault(FaultKind.EMPTY, "the CSV file has no rows", self._path)
        log_missing(self._missing, rows, self._path, self._images, self._log)

    def _add(self, row: Mapping[str | None, object], line: int) -> bool:
        """Add one row; returns False for junk."""
        if None in row:
            raise RowFault("more values than the header has columns; a path with a comma needs quotes")
        values = {name: value.strip() if isinstance(value, str) else "" for name, value in row.items() if name}
        pid = _integer("pid", values.get("pid", ""), lowest=UNKNOWN)
        split = _split(values.get("split", ""))
        name = _inner_path(values.get("path", ""), self._path.parent)
        camid = self._camera(name, values)
        others = {key: value for key, value in values.items() if key not in COLUMNS}
        _check_visible(others.get("visible", ""))
        if pid == DISTRACTOR_PID and split == "query":
            raise RowFault("pid 0 marks distractors, which cannot be queries", "number the identities from 1")
        if pid == UNKNOWN:
            return False
        self._check_earlier(Record(name, pid, camid, split), line)
        found = self._images.find(name)
        if found is None:
            self._missing.append((name, line))
            return True
        self._merge(found, others)
        self.records.append(Record(found, pid, camid, split))
        return True

    def _camera(self, name: str, values: Mapping[str, str]) -> int:
        if self._cameras is None:
            return _integer("camid", values.get("camid", ""), lowest=0)
        return self._cameras.setdefault(name, len(self._cameras))

    def _check_earlier(self, record: Record, line: int) -> None:
        """Compare with earlier rows of the same image."""
        first = self._lines.setdefault((record.path, record.split), line)
        if first != line:
            raise RowFault(f"{record.path} is in {record.split} already (line {first})", kind=FaultKind.DUPLICATE)
        pid, camid, earlier = self._ids.setdefault(record.path, (record.pid, record.camid, line))
        if pid != record.pid or camid != record.camid:
            raise RowFault(
                f"{record.path} is identity {record.pid}, camera {record.camid} here, but identity {pid}, camera "
                f"{camid} in line {earlier}",
                "for images that are query and gallery, leave out the column camid" if pid == record.pid else None,
            )

    def _merge(self, path: str, others: Mapping[str, str]) -> None:
        """Merge the further columns with those of another row of the same image."""
        if not others:
            return
        earlier = self.extra.get(path, {})
        for name, value in others.items():
            if value and earlier.get(name, value) not in ("", value):
                raise RowFault(f"{path} has {name} {value!r} here, but {earlier[name]!r} in another row")
        self.extra[path] = {name: value or earlier.get(name, "") for name, value in others.items()}


def _column(name: str) -> str:
    """A column's name; those of `COLUMNS` in any case."""
    name = name.strip()
    return name.lower() if name.lower() in (*COLUMNS, "visible") else name


def _check_header(header: Sequence[str], path: Path, log: ReadLog) -> bool:
    missing = [name for name in COLUMNS if name not in header and name != "camid"]
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    where, expected = f"{path}, line 1", f"a header with {','.join(COLUMNS)}"
    if missing and any(Path(name).suffix.lower() in SUFFIXES for name in header):
        text, hint = f"the CSV file has no header: line 1 is {','.join(header)!r}", f"add the line {','.join(COLUMNS)}"
        log.fault(FaultKind.ROW, text, where, expected=expected, hint=f"{hint} at the top")
        return False
    if doubled:
        log.fault(FaultKind.ROW, f"the column {doubled[0]!r} occurs twice in the header", where)
    if missing:
        number, verb = ("s", "are") if len(missing) > 1 else ("", "is")
        columns = f"the column{number} {', '.join(missing)} {verb} missing"
        text = f"{columns}; the header has {', '.join(header) or 'no columns'}"
        log.fault(FaultKind.ROW, text, where, expected=expected, hint=_header_hint(header, missing))
    return not missing and not doubled


def _header_hint(header: Sequence[str], missing: Sequence[str]) -> str | None:
    if header and header[0].lower().startswith("sep="):
        return "delete line 1, an instruction to Excel, and separate the columns by commas"
    separators = [mark for mark in ";\t|" if any(mark in name for name in header)]
    if separators:
        return f"separate the columns by commas, not {separators[0]!r}"
    others = {name.lower(): name for name in header if name not in COLUMNS}
    for name in missing:
        for near in difflib.get_close_matches(name, others, n=1, cutoff=0.5):
            return f"rename the column {others[near]!r} to {name!r}"
    return None


def _split(text: str) -> Split:
    split = next((split for split in SPLITS if split == text.lower()), None)
    if split is None:
        near = suggestion(text.lower(), SPLITS) or _ROLES
        raise RowFault(f"unknown split {text!r}; expected {' | '.join(SPLITS)}" if text else "no split", near)
    return split


def _inner_path(text: str, folder: Path) -> str:
    """The path of an image relative to the folder of the CSV file, as a POSIX path."""
    if not text:
        raise RowFault("no path")
    if "\\" in text and not (folder / text).exists():
        text = PureWindowsPath(text).as_posix()
    path = PurePosixPath(text)
    if path.is_absolute() or PureWindowsPath(text).drive:
        try:
            path = PurePosixPath(Path(text).relative_to(folder.resolve()).as_posix())
        except ValueError:
            raise RowFault(f"the path {text!r} is outside the folder of the CSV file ({folder})", _LINK) from None
    if ".." in path.parts:
        raise RowFault(f"the path {text!r} leads outside the folder of the CSV file", _LINK)
    return path.as_posix()


def _integer(name: str, text: str, *, lowest: int) -> int:
    if not text:
        raise RowFault(f"no {name}")
    # Python's own `int` also accepts 1_000 and the digits of other scripts. pandas writes 1.0 for columns with gaps.
    match = re.fullmatch(r"([+-]?[0-9]+)(\.0*)?", text)
    if match is None:
        shortened = re.fullmatch(r"[0-9]+([.,][0-9]+)?[eE][+-]?[0-9]+", text)
        cure = _DIGITS if shortened else _NUMBER.format(name=name)
        raise RowFault(f"{name} {text[:_LONGEST]!r} is not an integer", cure)
    value = int(match[1]) if len(match[1]) <= _LONGEST else _HIGHEST + 1
    if value < lowest:
        raise RowFault(f"{name} {value} is below {lowest}")
    if value > _HIGHEST:
        raise RowFault(f"{name} {text[:_LONGEST]} is above {_HIGHEST}")
    return value


def _check_visible(text: str) -> None:
    """The column `visible` is a fraction of the body, or empty."""
    try:
        valid = not text or 0 <= float(text) <= 1
    except ValueError:
        valid = False
    if not valid:
        raise RowFault(f"visible {text!r} is not a number from 0 to 1")


CSV = KindInfo(
    name="csv",
    summary="your own images, listed in a CSV file",
    layout="PATH is the file; columns path,pid,camid,split (train | query | gallery), paths relative to its folder; "
    "without camid, a query only ignores itself",
    cameras="from the column camid",
    source="your own images",
    read=_read_csv,
)

SYNTHETIC = KindInfo(
    name="synthetic",
    summary="rendered identities with true label maps",
    layout=f"{_TABLE}, the images it lists, {_LABEL_MAPS}/ with a label map for each",
    cameras="any number, from the table",
    source="rendered by sgsfa",
    read=_read_synthetic,
    entries=(_TABLE,),
)
