"""Occluded-DukeMTMC (Miao et al., ICCV 2019): DukeMTMC-reID, divided anew so that every query is occluded.

Its makers publish name lists and a script that copies the images into new folders. Both forms are read: the lists
beside, inside or above a DukeMTMC-reID tree, or the folders that the script makes (`occluded_duke_zip` makes them too).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.datasets.dukemtmc import GALLERY, NAME, WITHDRAWN
from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import (
    BOXES,
    NameFault,
    find_root,
    folders_with,
    is_folder,
    list_images,
    read_boxes,
    read_lines,
    subfolders,
)
from pipeline.datasets.records import Dataset, Record, Split

LISTS: dict[Split, str] = {"train": "train.list", "query": "query.list", "gallery": "gallery.list"}

# Most queries were gallery images of DukeMTMC-reID, so a list's image may lie in another folder than its split's.
FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("bounding_box_train",),
    "query": ("query", "bounding_box_test"),
    "gallery": ("bounding_box_test",),
}


def read(path: Path, variant: str, log: ReadLog) -> Dataset:
    """Read by the name lists where there are any, else the folders."""
    lists = folders_with(path, tuple(LISTS.values())) if path.is_dir() else []
    if lists:
        root = _tree(lists[0], log)
        records = _read_lists(lists[0], root, log)
    else:
        root = find_root(path, BOXES, log)
        records = read_boxes(root, NAME, log)
    _note_double_files(records, log)
    return Dataset("occluded-duke", "occluded-duke", root, tuple(records))


def _tree(lists: Path, log: ReadLog) -> Path:
    """The folder with DukeMTMC-reID's images: where the lists are, below it, or beside it."""
    # `.` and `..` have no parents of their own, and a link's target has other folders beside it.
    above = Path(os.path.abspath(lists)).parent  # noqa: PTH100
    for folder in itertools.chain([lists], subfolders(lists), [above], subfolders(above)):
        if all(is_folder(folder / name) for name in BOXES):
            return folder
    packed = [file for folder in (lists, above) for file in sorted(folder.glob("*.zip"))]
    log.fault(
        FaultKind.MISSING,
        f"the name lists are here, but no folder with {', '.join(BOXES)} is with them, below them or beside them",
        lists,
        hint=f"`sgsfa data occluded-duke {packed[0]} --lists {lists} --out FOLDER` unpacks what they name, if that is "
        "DukeMTMC-reID"
        if packed
        else "put train.list, query.list and gallery.list into the DukeMTMC-reID folder",
    )
    return lists


def _read_lists(lists: Path, root: Path, log: ReadLog) -> list[Record]:
    present = {name: set(list_images(root / name, log)) for name in BOXES if (root / name).is_dir()}
    if not present:
        return []
    records: list[Record] = []
    for split, name in LISTS.items():
        log.folders[split] = lists / name
        records += _read_list(lists / name, split, FOLDERS[split], present, log)
    log.note("divided by the name lists; the images are DukeMTMC-reID's")
    return records


class Listed(NamedTuple):
    """A line of a name list; `where` names it in messages."""

    name: str
    pid: int
    camid: int
    where: str


def read_names(file: Path, log: ReadLog) -> Iterator[Listed]:
    """The images of a name list, each once and in the list's order; faulty lines go to the log."""
    seen: set[str] = set()
    for number, line in enumerate(read_lines(file, log), start=1):
        name = PurePosixPath(line.strip()).name
        where = f"{file}, line {number}"
        if not name:
            continue
        if name in seen:
            log.fault(FaultKind.DUPLICATE, f"{name} is listed already", where)
            continue
        try:
            pid, camid = NAME(PurePosixPath(name).stem)
        except NameFault as error:
            log.fault(FaultKind.NAME, f"the name {name!r} does not follow the layout: {error}", where)
            continue
        seen.add(name)
        yield Listed(name, pid, camid, where)


def _read_list(
    file: Path, split: Split, folders: Sequence[str], present: dict[str, set[str]], log: ReadLog
) -> list[Record]:
    records: list[Record] = []
    for name, pid, camid, where in read_names(file, log):
        folder = next((folder for folder in folders if name in present.get(folder, ())), None)
        if folder is None:
            log.fault(FaultKind.MISSING, f"the image {name} is in none of {', '.join(folders)}", where)
            continue
        records.append(Record(f"{folder}/{name}", pid, camid, split))
    return sorted(records, key=lambda record: PurePosixPath(record.path).name)


def _note_double_files(records: Sequence[Record], log: ReadLog) -> None:
    names: dict[Split, set[str]] = {"query": set(), "gallery": set()}
    for record in records:
        if record.split in names:
            names[record.split].add(PurePosixPath(record.path).name)
    double = len(names["query"] & names["gallery"])
    if double:
        log.note(
            f"{double:,} of the {len(names['query']):,} queries are gallery files too; only the rule that leaves out "
            "the query's own identity and camera keeps them from being found"
        )


INFO = KindInfo(
    name="occluded-duke",
    summary="Occluded-DukeMTMC",
    layout="bounding_box_train/ query/ bounding_box_test/, or train.list query.list gallery.list with a DukeMTMC-reID "
    "tree beside, above or below them (from an archive: `sgsfa data occluded-duke`)",
    cameras="8, from the name (c2)",
    source="name lists: Miao et al., 'Pose-Guided Feature Alignment for Occluded Person Re-Identification', ICCV 2019; "
    f"images: DukeMTMC, {WITHDRAWN}",
    read=read,
    counts={"": {"train": Count(15_618, 702), "query": Count(2_210, 519), "gallery": GALLERY}},
    comparable="single query",
)
