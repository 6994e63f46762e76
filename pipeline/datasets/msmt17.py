"""MSMT17 (Wei et al., CVPR 2018), versions 1 and 2 (faces masked)."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import NameFault, NamePattern, find_root, first_existing, list_images, read_lines
from pipeline.datasets.records import Dataset, Record, Split

NAME = NamePattern(
    re.compile(r"(?P<pid>\d{4})_\d+_(?P<cam>\d{2})_\w+", re.ASCII),
    example="0000_000_01_0303morning_0015_0.jpg",
    cameras=range(1, 16),
)

LISTS: dict[str, Split] = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}

TEST_OFFSET = 10_000
"""The set numbers its training and its test identities from 0 each; ours must tell them apart."""


def read(path: Path, variant: str, log: ReadLog) -> Dataset:
    """Read by the four lists. The validation list belongs to the training images, as in all published tables."""
    root = find_root(path, tuple(LISTS), log)
    folders = {
        "train": first_existing(root, ("train", "mask_train_v2")),
        "test": first_existing(root, ("test", "mask_test_v2")),
    }
    present: dict[str, set[str]] = {}
    for folder in folders.values():
        if (root / folder).is_dir():
            present[folder] = set(list_images(root / folder, log, deep=True))
        else:
            log.fault(FaultKind.MISSING, f"{folder} is missing", root, expected="train and test beside the lists")
    records: list[Record] = []
    for name, split in LISTS.items():
        folder = folders["train" if split == "train" else "test"]
        if (root / name).is_file() and folder in present:
            log.folders.setdefault(split, root / name)
            records += _read_list(root / name, split, folder, present[folder], log)
    records.sort(key=lambda record: (_ORDER[record.split], record.path))
    log.note(f"test identities are numbered from {TEST_OFFSET:,} (the set numbers training and test from 0 each)")
    log.note("the images of list_val.txt are training images")
    return Dataset("msmt17", "msmt17", root, tuple(records))


_ORDER: dict[Split, int] = {"train": 0, "query": 1, "gallery": 2}


def _read_list(file: Path, split: Split, folder: str, present: set[str], log: ReadLog) -> list[Record]:
    records: dict[str, Record] = {}
    for number, line in enumerate(read_lines(file, log), start=1):
        where = f"{file}, line {number}"
        if not line.strip():
            continue
        text, _, label = line.strip().rpartition(" ")
        try:
            pid, camid = NAME(PurePosixPath(text).stem)
        except NameFault as error:
            log.fault(FaultKind.NAME, f"the line {line.strip()!r} does not follow the layout: {error}", where)
            continue
        if label != str(pid):
            log.fault(FaultKind.NAME, f"{text} is listed as identity {label!r}", where, expected=str(pid))
        elif text in records:
            log.fault(FaultKind.DUPLICATE, f"{text} is listed already", where)
        elif text not in present:
            log.fault(FaultKind.MISSING, f"the image {folder}/{text} does not exist", where)
        else:
            records[text] = Record(f"{folder}/{text}", pid + (TEST_OFFSET if split != "train" else 0), camid, split)
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
    counts={"": {"train": Count(32_621, 1_041), "query": Count(11_659, 3_060), "gallery": Count(82_161, 3_060)}},
    comparable="single query; training with the validation list",
)
