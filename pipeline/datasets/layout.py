"""Folders, file names and lists: shared by the readers of all layouts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.images import SUFFIXES
from pipeline.datasets.records import UNKNOWN, Record, Split
from pipeline.runtime.names import NameIndex

BOXES = ("bounding_box_train", "query", "bounding_box_test")
"""The three folders of Market-1501, which many sets adopted."""

PACKED = frozenset({".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"})

_ALIASES = {
    "bounding_box_train": ("train", "train_all", "training", "bbox_train"),
    "bounding_box_test": ("gallery", "test", "testing", "bbox_test"),
    "query": ("probe", "queries"),
}
_HIDDEN = (".", "__MACOSX")  # archives packed on a Mac have resource forks under the names of the files
_NESTING = 2
_MANY = 64
_SHOWN = 3


class NameFault(Exception):
    """A file name that does not follow its layout; the message gives the reason."""


ParseName = Callable[[str], tuple[int, int]]
"""(path inside the split's folder, POSIX, without its suffix) -> (pid, camid); raises `NameFault`. A pid of `UNKNOWN`
marks junk."""


@dataclass(frozen=True, slots=True)
class NamePattern:
    """File names that contain the person id, and the camera id unless all images have the same; a `ParseName`.

    Attributes:
        pattern: Matches the whole name without its suffix; groups `pid` and `cam`.
        expected: Valid names, for messages.
        cameras: Valid camera ids, or the id of all images.
    """

    pattern: str
    expected: str
    cameras: range | int

    def __call__(self, stem: str) -> tuple[int, int]:
        """Return person and camera id of an image; raises `NameFault`."""
        match = re.fullmatch(self.pattern, stem, re.ASCII)
        if match is None:
            raise NameFault(f"expected {self.expected}")
        if isinstance(self.cameras, int):
            return int(match["pid"]), self.cameras
        camera = int(match["cam"])
        if camera not in self.cameras:
            raise NameFault(f"camera {camera} is not one of {self.cameras.start} to {self.cameras.stop - 1}")
        return int(match["pid"]), camera


def id_folder(camid: int) -> ParseName:
    """Return a parser of `ID/anything.jpg`: the folder is the person id, and all images have the camera `camid`."""
    return NamePattern(r"(?P<pid>\d+)/[^/]+", "ID/IMAGE, one folder per identity, its name a number", camid)


# Folders ----------------------------------------------------------------------------------------------------------


def find_root(path: Path, wanted: Sequence[str], log: ReadLog) -> Path:
    """Return the folder that holds the `wanted` entries: `path` itself, or one a few levels below it.

    Archives are often unpacked with one folder more. Missing entries are logged; if nothing fits, `path` is returned.
    """
    if not is_folder(path):
        packed = exists(path) and path.suffix.lower() in PACKED
        log.fault(
            FaultKind.MISSING,
            f"the data folder {'is a file, not a folder' if exists(path) else 'does not exist'}",
            path,
            expected=f"a folder with {', '.join(wanted)}",
            hint="unpack the archive and use its folder" if packed else None,
        )
        return path
    best, roots = 0, [path]
    for level in _levels(path):
        counts = [(sum(exists(folder / name) for name in wanted), folder) for folder in level]
        most = max((number for number, _ in counts), default=0)
        if most > best:
            best, roots = most, [folder for number, folder in counts if number == most]
        if best == len(wanted):
            break
    if len(roots) > 1:
        return choose_root(roots, path, log)
    root = roots[0]
    missing = [name for name in wanted if not exists(root / name)]
    if best == 0:
        log.fault(
            FaultKind.MISSING,
            f"the folder has none of {', '.join(wanted)}; it holds {contents(path)}",
            path,
            expected=f"these {len(wanted)} in it, or at most {_NESTING} folders deeper",
            hint=_rename_hint(root, missing),
        )
        return root
    for name in missing:
        text = f"{name} is missing; the folder holds {contents(root)}"
        log.fault(FaultKind.MISSING, text, root, expected=", ".join(wanted), hint=_rename_hint(root, [name]))
    return root


def choose_root(roots: Sequence[Path], path: Path, log: ReadLog) -> Path:
    """Return the first of the folders that fit; log a fault if there are several."""
    if len(roots) > 1:
        names = ", ".join(root.relative_to(path).as_posix() for root in roots[:4])
        hint = f"give the path of one of them, such as {roots[0]}"
        log.fault(FaultKind.AMBIGUOUS, f"{len(roots)} folders fit: {names}", path, expected="one", hint=hint)
    return roots[0]


def folders_with(path: Path, wanted: Sequence[str]) -> list[Path]:
    """Return all folders, `path` or at most a few levels below it, that hold every one of the `wanted` entries."""
    return [folder for level in _levels(path) for folder in level if all(exists(folder / name) for name in wanted)]


def is_folder(path: Path) -> bool:
    """Whether a folder exists; unlike `Path.is_dir`, False inside a folder that may not be entered."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path) -> bool:
    """Whether a path exists; False inside a folder that may not be entered."""
    return os.path.exists(path)  # noqa: PTH110


def subfolders(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones; none if it cannot be read."""
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(_HIDDEN) and entry.is_dir())
    except OSError:
        return []
    return [path / name for name in names]


def contents(path: Path) -> str:
    """Return what a folder holds, for messages."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return f"unreadable entries ({error.strerror})"
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"


def _rename_hint(root: Path, missing: Sequence[str]) -> str | None:
    existing = {folder.name.lower(): folder.name for folder in subfolders(root)}
    found = {name: next((a for a in _ALIASES.get(name, ()) if a in existing), None) for name in missing}
    pairs = [f"{existing[alias]} to {name}" for name, alias in found.items() if alias]
    return f"rename or link {', '.join(pairs)}" if pairs else None


def _levels(path: Path) -> Iterator[list[Path]]:
    """The folder, then the folders in it, and so on; each level is listed when it is asked for."""
    level = [path]
    yield level
    for _ in range(_NESTING):
        # There can be thousands of identity folders; no archive nests its content beside that many.
        level = [folder for parent in level for folder in subfolders(parent)[:_MANY]]
        yield level


# Images of a folder -----------------------------------------------------------------------------------------------


def list_images(folder: Path, log: ReadLog, *, deep: bool = False) -> list[str]:
    """Return the images in a folder, or also below it, as relative POSIX paths, sorted by name.

    Hidden files are ignored, and so are files whose suffix is not that of an image, which are noted. Links to folders
    are followed, each folder once. Names that are not UTF-8 are logged and left out.
    """
    found: list[str] = []
    others: list[str] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        log.fault(FaultKind.UNREADABLE, f"the folder cannot be read: {error.strerror}", error.filename)

    for here, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(here)
        if real in seen or not deep:
            folders.clear()
        if real in seen:
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN))
        prefix = Path(here).relative_to(folder).as_posix()
        for name in files:
            if not name.startswith("."):
                relative = name if prefix == "." else f"{prefix}/{name}"
                (found if _suffix(name).lower() in SUFFIXES else others).append(relative)
    if others:
        log.note(f"{len(others):,} files in {folder.name} are not images by their suffix, e.g. {min(others)!r}")
    for name in [name for name in found if not _is_utf8(name)]:
        log.fault(FaultKind.NAME, f"the name {os.fsencode(name)!r} is not UTF-8", folder, hint="rename the file")
        found.remove(name)
    return sorted(found)


def read_split(
    root: Path, folder: str, split: Split, parse: ParseName, log: ReadLog, *, deep: bool = False
) -> list[Record]:
    """Read one split, or a part of it, from the folder `folder` below the root of a data set.

    `parse` takes the path inside it. Faults are logged, and so is the number of junk images, which are dropped. With
    `deep`, sub-folders are included. Returns the records, sorted by path; none if the folder is missing.
    """
    base = root / folder
    if not base.is_dir():
        return []
    log.folders[split] = base.parent if split in log.folders else base
    records: list[Record] = []
    stems: dict[str, str] = {}
    junk = 0
    for path in list_images(base, log, deep=deep):
        stem = path.removesuffix(_suffix(path))
        try:
            pid, camid = parse(stem)
        except NameFault as error:
            text = f"the name {path!r} does not follow the layout: {error}"
            hint = "images with other names can be listed in a CSV file (kind csv)"
            log.fault(FaultKind.NAME, text, base / path, hint=hint)
            continue
        twin = stems.setdefault(stem, path)
        if twin != path:
            log.fault(FaultKind.DUPLICATE, f"{path} and {twin} are one image by their names", base / path)
        elif pid == UNKNOWN:
            junk += 1
        else:
            records.append(Record(f"{folder}/{path}", pid, camid, split))
    if junk:
        log.note(f"{junk:,} junk images (-1) of {folder} dropped")
    if not records:
        _log_empty(base, log, deep=deep)
    return records


def _log_empty(base: Path, log: ReadLog, *, deep: bool) -> None:
    within = [] if deep else [folder for folder in subfolders(base) if list_images(folder, ReadLog())]
    if within:
        log.fault(
            FaultKind.EMPTY,
            f"{base.name} holds {len(within):,} folders with images, such as {within[0].name}, and no images",
            base,
            expected="the images directly in it",
            hint="move the images up one level, or list them in a CSV file (kind csv)",
        )
    else:
        log.fault(FaultKind.EMPTY, f"{base.name} has no usable images; it holds {contents(base)}", base)


def _suffix(name: str) -> str:
    """The part from the last dot on, dot included. Cheaper than pathlib's, for a hundred thousand names."""
    dot = name.rfind(".")
    return name[dot:] if dot > 0 else ""


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# Lists of images --------------------------------------------------------------------------------------------------


def read_lines(file: Path, log: ReadLog) -> Iterator[tuple[int, str]]:
    """Yield the lines of a list that are not empty, with their numbers; a list that cannot be read is logged."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        log.fault(FaultKind.UNREADABLE, f"the list cannot be read: {error.strerror}", file)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def log_missing(missing: Sequence[tuple[str, int]], total: int, where: Path, index: NameIndex, log: ReadLog) -> None:
    """Log one fault for all images of a list of `total` that do not exist below `index`: names with their lines."""
    if not missing:
        return
    shown = ", ".join(f"{name} (line {line})" for name, line in missing[:_SHOWN])
    more = ", ..." if len(missing) > _SHOWN else ""
    folder, examples = index.root, index.examples(missing[0][0])
    holds = f"{folder.name or folder} holds {', '.join(examples)}, ..." if examples else f"{folder} has no images"
    text = f"{len(missing):,} of {total:,} listed images do not exist: {shown}{more}; {holds}"
    log.fault(FaultKind.MISSING, text, where)
