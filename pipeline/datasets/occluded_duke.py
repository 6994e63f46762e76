"""Occluded-DukeMTMC (Miao et al., ICCV 2019): DukeMTMC-reID in another split, in which every query is occluded.

Its authors publish name lists and a script that copies the images into new folders. Both forms are read: the lists
beside, inside or above a DukeMTMC-reID tree, or the folders of the script.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import (
    BOXES,
    NameFault,
    choose_root,
    find_root,
    folders_with,
    is_folder,
    log_missing,
    read_lines,
    subfolders,
)
from pipeline.datasets.layouts import DUKE_GALLERY, DUKE_NAME, WITHDRAWN, boxes, read_parts
from pipeline.datasets.records import Dataset, Record, Split
from pipeline.runtime.names import NameIndex

_LISTS: dict[Split, str] = {"train": "train.list", "query": "query.list", "gallery": "gallery.list"}

# Most queries were gallery images of DukeMTMC-reID, so a list's image may lie in another folder than its split's.
_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("bounding_box_train",),
    "query": ("query", "bounding_box_test"),
    "gallery": ("bounding_box_test",),
}


def read(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read by the name lists if there are any, else the folders."""
    lists = folders_with(path, tuple(_LISTS.values())) if path.is_dir() else []
    if lists:
        folder = choose_root(lists, path, log)
        root = _tree(folder, log)
        records = _read_lists(folder, root, log)
    else:
        root = find_root(path, BOXES, log)
        records = read_parts(root, boxes(DUKE_NAME), log)
    queries, gallery = (
        {PurePosixPath(record.path).name for record in records if record.split == split}
        for split in ("query", "gallery")
    )
    if double := len(queries & gallery):
        log.note(
            f"{double:,} of the {len(queries):,} queries are gallery files too; only the rule that ignores "
            "gallery images of the query's identity and camera excludes them"
        )
    return Dataset("occluded-duke", "occluded-duke", root, tuple(records))


def _tree(lists: Path, log: ReadLog) -> Path:
    """The folder with DukeMTMC-reID's images: that of the lists, one below it, or one beside it."""
    # `.` and `..` have no parents, and the target of a link has other neighbours.
    above = Path(os.path.abspath(lists)).parent  # noqa: PTH100
    for folder in itertools.chain([lists], subfolders(lists), [above], subfolders(above)):
        if all(is_folder(folder / name) for name in BOXES):
            return folder
    log.fault(
        FaultKind.MISSING,
        f"the name lists are here, but no folder with {', '.join(BOXES)} in, below or beside this folder",
        lists,
        hint="unzip DukeMTMC-reID and put train.list, query.list and gallery.list beside its folder",
    )
    return lists


def _read_lists(lists: Path, root: Path, log: ReadLog) -> Sequence[Record]:
    present = {name: NameIndex(root / name) for name in BOXES if (root / name).is_dir()}
    if not present:
        return ()
    records: list[Record] = []
    for split, name in _LISTS.items():
        log.folders[split] = lists / name
        folders = [folder for folder in _FOLDERS[split] if folder in present]
        found: list[Record] = []
        missing: list[tuple[str, int]] = []
        for number, image, pid, camid in _read_names(lists / name, log):
            matches = ((folder, present[folder].find(image)) for folder in folders)
            path = next((f"{folder}/{match}" for folder, match in matches if match), None)
            if path is None:
                missing.append((image, number))
            else:
                found.append(Record(path, pid, camid, split))
        if folders:
            log_missing(missing, len(missing) + len(found), lists / name, present[folders[0]], log)
        records += sorted(found, key=lambda record: PurePosixPath(record.path).name)
    log.note("split by the name lists; the images are those of DukeMTMC-reID")
    return records


def _read_names(file: Path, log: ReadLog) -> Iterator[tuple[int, str, int, int]]:
    """Yield line number, name, pid and camid of the images of a name list, each once; faulty lines are logged."""
    seen: set[str] = set()
    for number, line in read_lines(file, log):
        name = PurePosixPath(line).name
        where = f"{file}, line {number}"
        try:
            pid, camid = DUKE_NAME(PurePosixPath(name).stem)
        except NameFault as error:
            log.fault(FaultKind.NAME, f"the name {name!r} does not follow the layout: {error}", where)
            continue
        if name in seen:
            log.fault(FaultKind.DUPLICATE, f"{name} is listed already", where)
            continue
        seen.add(name)
        yield number, name, pid, camid


INFO = KindInfo(
    name="occluded-duke",
    summary="Occluded-DukeMTMC",
    layout="bounding_box_train/ query/ bounding_box_test/, or train.list query.list gallery.list with a DukeMTMC-reID "
    "tree beside, above or below them",
    cameras="8, from the name (c2)",
    source="name lists: Miao et al., 'Pose-Guided Feature Alignment for Occluded Person Re-Identification', ICCV 2019; "
    f"images: DukeMTMC, {WITHDRAWN}",
    read=read,
    entries=(*BOXES, _LISTS["train"]),
    counts={"": {"train": Count(15_618, 702), "query": Count(2_210, 519), "gallery": DUKE_GALLERY}},
    comparable="single query",
)
