"""MSMT17 (Wei et al., CVPR 2018), versions 1 and 2 (faces masked)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import (
    NameFault,
    NamePattern,
    choose_root,
    find_root,
    folders_with,
    log_missing,
    read_lines,
)
from pipeline.datasets.records import Dataset, Record, Split
from pipeline.runtime.names import NameIndex

NAME = NamePattern(
    r"(?P<pid>\d{4})_\d+_(?P<cam>\d{2})_\w+", "a name like 0000_000_01_0303morning_0015_0.jpg", range(1, 16)
)
LISTS: dict[str, Split] = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
"""Of training and test images, in versions 1 and 2."""

TEST_OFFSET = 10_000
"""Added to the ids of test identities: the set numbers training and test identities from 0 each."""


def read(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read by the four lists. The validation list belongs to the training images, as in all published tables."""
    root = _find_root(path, log)
    folders = next((pair for pair in FOLDERS if any((root / name).is_dir() for name in pair)), FOLDERS[0])
    for folder in folders:
        if not (root / folder).is_dir() and not log.faults:
            log.fault(FaultKind.MISSING, f"{folder} is missing", root, expected=f"{' and '.join(folders)}, lists")
    records: list[Record] = []
    for name, split in LISTS.items():
        folder = folders[split != "train"]
        if (root / name).is_file() and (root / folder).is_dir():
            log.folders.setdefault(split, root / name)
            records += _read_list(root / name, split, NameIndex(root / folder), log)
    records.sort(key=lambda record: (list(LISTS.values()).index(record.split), record.path))
    log.note(f"test identities are numbered from {TEST_OFFSET:,} (the set numbers training and test from 0 each)")
    log.note("the images of list_val.txt are training images")
    return Dataset("msmt17", "msmt17", root, tuple(records))


def _find_root(path: Path, log: ReadLog) -> Path:
    """The folder with the lists; copies without lists are reported as that."""
    if any(folders_with(path, (name,)) for name in LISTS) or not path.is_dir():
        return find_root(path, tuple(LISTS), log)
    roots = [root for pair in FOLDERS for root in folders_with(path, pair)]
    if not roots:
        return find_root(path, (*LISTS, *FOLDERS[0]), log)
    root = choose_root(roots, path, log)
    log.fault(
        FaultKind.MISSING,
        f"the four lists are missing beside {' and '.join(sorted(folder.name for folder in root.iterdir())[:4])}",
        root,
        expected=", ".join(LISTS),
        hint=f"copy the list files of the original archive into {root}",
    )
    return root


def _read_list(file: Path, split: Split, images: NameIndex, log: ReadLog) -> list[Record]:
    records: dict[str, Record] = {}
    missing: list[tuple[str, int]] = []
    for number, line in read_lines(file, log):
        where = f"{file}, line {number}"
        text, _, label = line.rpartition(" ")
        try:
            pid, camid = NAME(PurePosixPath(text).stem)
        except NameFault as error:
            log.fault(FaultKind.NAME, f"the line {line!r} does not follow the layout: {error}", where)
            continue
        found = images.find(text)
        if label != str(pid):
            log.fault(FaultKind.NAME, f"{text} is listed as identity {label!r}", where, expected=str(pid))
        elif found is None:
            missing.append((text, number))
        elif found in records:
            log.fault(FaultKind.DUPLICATE, f"{text} is listed already", where)
        else:
            shifted = pid + (TEST_OFFSET if split != "train" else 0)
            records[found] = Record(f"{images.root.name}/{found}", shifted, camid, split)
    log_missing(missing, len(missing) + len(records), file, images, log)
    return list(records.values())


INFO = KindInfo(
    name="msmt17",
    summary="MSMT17",
    layout="list_train.txt list_val.txt list_query.txt list_gallery.txt, train/ID/ and test/ID/ (or mask_train_v2, "
    "mask_test_v2), 0000_000_01_0303morning_0015_0.jpg",
    cameras="15, from the name (third number)",
    source="Wei et al., 'Person Transfer GAN to Bridge Domain Gap for Person Re-Identification', CVPR 2018: the "
    "authors, by licence agreement",
    read=read,
    entries=("list_train.txt", "list_query.txt", "mask_train_v2"),
    counts={"": {"train": Count(32_621, 1_041), "query": Count(11_659, 3_060), "gallery": Count(82_161, 3_060)}},
    comparable="single query; training with the validation list",
)
