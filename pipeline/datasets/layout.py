"""Folders and file names: what the readers of all layouts share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.images import SUFFIXES
from pipeline.datasets.records import UNKNOWN, Record, Split

BOXES = ("bounding_box_train", "query", "bounding_box_test")
"""The three folders that Market-1501 introduced and many sets took over."""

_NESTING = 2
_MANY = 64
_PACKED = frozenset({".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"})


class NameFault(Exception):
    """A file name that does not follow its layout; the message says why."""


ParseName = Callable[[str], tuple[int, int]]
"""(path inside the split's folder, POSIX, without its ending) -> (pid, camid); raises `NameFault`. A pid of `UNKNOWN`
marks junk."""


@dataclass(frozen=True, slots=True)
class NamePattern:
    """File names that carry identity and camera.

    Attributes:
        regex: Matches the whole name without its ending; groups `pid` and `cam`.
        example: A name that follows it, for messages.
        cameras: Valid camera numbers.
    """

    regex: re.Pattern[str]
    example: str
    cameras: range

    def __call__(self, stem: str) -> tuple[int, int]:
        """Identity and camera of an image.

        Raises:
            NameFault: The name does not match, or its camera does not exist.
        """
        match = self.regex.fullmatch(stem)
        if match is None:
            raise NameFault(f"expected a name like {self.example}")
        camera = int(match["cam"])
        if camera not in self.cameras:
            raise NameFault(f"camera {camera} is not one of {self.cameras.start} to {self.cameras.stop - 1}")
        return int(match["pid"]), camera


def find_root(path: Path, wanted: Sequence[str], log: ReadLog) -> Path:
    """Find the folder that holds the `wanted` entries: `path` itself, or one a few levels below it.

    Archives are often unpacked with one folder more. What is missing is logged; where nothing fits, `path` is
    returned.
    """
    if not is_folder(path):
        problem = "is a file, not a folder" if _exists(path) else "does not exist"
        log.fault(
            FaultKind.MISSING,
            f"the data folder {problem}",
            path,
            expected=f"a folder with {_listed(wanted)}",
            hint="unpack the archive and name the folder" if _exists(path) and path.suffix in _PACKED else None,
        )
        return path
    best, roots = 0, [path]
    for level in _levels(path):
        counts = [(sum(_exists(folder / name) for name in wanted), folder) for folder in level]
        most = max((count for count, _ in counts), default=0)
        if most > best:
            best, roots = most, [folder for count, folder in counts if count == most]
        if best == len(wanted):
            break
    if best == 0:
        log.fault(
            FaultKind.MISSING,
            f"the folder has none of {_listed(wanted)}",
            path,
            expected=f"these {len(wanted)} in it, or at most {_NESTING} folders deeper",
            hint=f"it holds: {_contents(path)}",
        )
        return path
    if len(roots) > 1 and roots[0] != path:
        log.fault(
            FaultKind.MISSING,
            f"several folders fit: {', '.join(str(root.relative_to(path)) for root in roots[:4])}",
            path,
            hint="name the one that is meant",
        )
    for name in wanted:
        if not _exists(roots[0] / name):
            log.fault(FaultKind.MISSING, f"{name} is missing", roots[0], expected=_listed(wanted))
    return roots[0]


def folders_with(path: Path, wanted: Sequence[str]) -> list[Path]:
    """All folders, `path` or at most a few levels below it, that hold every one of the `wanted` entries."""
    return [folder for level in _levels(path) for folder in level if all(_exists(folder / name) for name in wanted)]


def first_existing(root: Path, names: Sequence[str]) -> str:
    """The first of `names` that exists in `root`, else the first one."""
    return next((name for name in names if _exists(root / name)), names[0])


def read_lines(file: Path, log: ReadLog) -> list[str]:
    """The lines of a list of names; a file that cannot be read is logged and has none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        log.fault(FaultKind.MISSING, f"the list cannot be read: {error.strerror}", file)
        return []


def list_images(folder: Path, log: ReadLog, *, deep: bool = False) -> list[str]:
    """The images in a folder as relative POSIX paths, sorted by name.

    Hidden files are passed over, and so are files whose ending names no image format; the latter are noted. Links to
    folders are followed, each folder once.

    Args:
        folder: Where to look.
        log: Takes the notes and names that are not UTF-8.
        deep: Also look in sub-folders.
    """
    found: list[str] = []
    others: list[str] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        log.fault(FaultKind.MISSING, f"the folder cannot be read: {error.strerror}", error.filename)

    for here, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(here)
        if real in seen or not deep:
            folders.clear()
        if real in seen:
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(here).relative_to(folder).as_posix()
        for name in files:
            if name.startswith("."):
                continue
            relative = name if prefix == "." else f"{prefix}/{name}"
            (found if _ending(name).lower() in SUFFIXES else others).append(relative)
    if others:
        if len(others) == 1:
            log.note(f"one file in {folder.name} is no image by its name: {others[0]!r}")
        else:
            log.note(f"{len(others)} files in {folder.name} are no images by their names, {min(others)!r} among them")
    return [name for name in sorted(found) if _is_utf8(name, folder, log)]


def read_split(
    root: Path, folder: str, split: Split, parse: ParseName, log: ReadLog, *, deep: bool = False
) -> list[Record]:
    """Read one split from one folder.

    Args:
        root: The data set's root.
        folder: Folder below it, as a POSIX path.
        split: The role of its images.
        parse: Identity and camera from the path inside `folder`.
        log: Takes the faults, and the number of junk images, which are dropped.
        deep: Look in sub-folders too.

    Returns:
        The records, sorted by path; none where the folder is missing.
    """
    base = root / folder
    if not base.is_dir():
        return []
    log.folders[split] = base
    records: list[Record] = []
    stems: dict[str, str] = {}
    junk = 0
    for path in list_images(base, log, deep=deep):
        stem = path.removesuffix(_ending(path))
        try:
            pid, camid = parse(stem)
        except NameFault as error:
            log.fault(
                FaultKind.NAME,
                f"the name {path!r} does not follow the layout: {error}",
                base / path,
                hint="images of your own, whatever their names, can be listed in a CSV file (docs/how-to/own-data.md)",
            )
            continue
        twin = stems.setdefault(stem, path)
        if twin != path:
            log.fault(FaultKind.DUPLICATE, f"{path} and {twin} are one image by their names", base / path)
            continue
        if pid == UNKNOWN:
            junk += 1
            continue
        records.append(Record(f"{folder}/{path}", pid, camid, split))
    if junk:
        log.note(f"{junk:,} junk images (-1) of {folder} dropped")
    if not records:
        log.fault(FaultKind.EMPTY, "the folder has no usable images", base)
    return records


def read_boxes(root: Path, parse: ParseName, log: ReadLog) -> list[Record]:
    """Read the folders `BOXES` as training images, queries and gallery."""
    splits: tuple[Split, ...] = ("train", "query", "gallery")
    return [
        record
        for folder, split in zip(BOXES, splits, strict=True)
        for record in read_split(root, folder, split, parse, log)
    ]


def id_folder(camid: int) -> ParseName:
    """Parse `ID/anything.jpg`: the folder is the identity, and all images have the pseudo camera `camid`."""

    def parse(stem: str) -> tuple[int, int]:
        folder, _, image = stem.partition("/")
        if not image or "/" in image or not _is_number(folder):
            raise NameFault("expected ID/IMAGE, one folder an identity, its name a number")
        return int(folder), camid

    return parse


def pseudo_cameras(log: ReadLog) -> None:
    """Note that the set has no cameras and gets 0 for queries and 1 for the gallery."""
    log.note("the set has no cameras: every query gets camera 0, every gallery image camera 1")


def _ending(name: str) -> str:
    """The part from the last dot on, dot included. Cheaper than pathlib's, for a hundred thousand names."""
    dot = name.rfind(".")
    return name[dot:] if dot > 0 else ""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _levels(path: Path) -> Iterator[list[Path]]:
    """The folder, then the folders in it, and so on; each level is listed when it is asked for."""
    level = [path]
    yield level
    for _ in range(_NESTING):
        # Identity folders can be thousands; no archive nests its content beside that many.
        level = [folder for parent in level for folder in subfolders(parent)[:_MANY]]
        yield level


def is_folder(path: Path) -> bool:
    """Whether there is a folder; unlike with `Path.is_dir`, there is none in one that we may not enter."""
    return os.path.isdir(path)  # noqa: PTH112


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (for the same reason)


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones; none where it cannot be read."""
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []
    return [path / name for name in names]


def _contents(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return f"nobody knows what: {error.strerror}"
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _is_utf8(name: str, folder: Path, log: ReadLog) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        log.fault(FaultKind.NAME, f"the name {os.fsencode(name)!r} is not UTF-8", folder, hint="rename the file")
        return False
    return True
