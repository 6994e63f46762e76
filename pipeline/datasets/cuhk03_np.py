"""CUHK03 with the split of Zhong et al. (CVPR 2017), "new protocol"; boxes labelled by hand or detected."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import BOXES, NamePattern, find_root, folders_with, read_boxes
from pipeline.datasets.records import Dataset, Split

_RAW = "cuhk-03.mat"

NAME = NamePattern(
    re.compile(r"(?P<pid>\d{4})_c(?P<cam>\d)_\d+", re.ASCII), example="0003_c1_21.png", cameras=range(1, 3)
)


def read(path: Path, variant: str, log: ReadLog) -> Dataset:
    """Read `labeled/` or `detected/`, or `path` itself if the three folders are in it."""
    boxes = variant or "labeled"
    if raw := folders_with(path, (_RAW,)):
        log.fault(
            FaultKind.MISSING,
            f"{_RAW} is the raw data set, without the images of the new protocol",
            raw[0],
            expected="labeled/ and detected/ with the three folders of CUHK03-NP",
            hint="download CUHK03-NP (github.com/zhunzhong07/person-re-ranking), or extract the images with its splits",
        )
        return Dataset("cuhk03-np", f"cuhk03-np-{boxes}", path, ())
    if path.is_dir() and all((path / name).is_dir() for name in BOXES):
        root = path
    else:
        # A folder with labeled/ and detected/ fits twice, so the variant is part of the path.
        outer = find_root(path, tuple(f"{boxes}/{name}" for name in BOXES), log)
        root = outer / boxes
    log.note(f"{boxes} boxes")
    return Dataset("cuhk03-np", f"cuhk03-np-{boxes}", root, tuple(read_boxes(root, NAME, log)))


_LABELED: dict[Split, Count] = {"train": Count(7_368, 767), "query": Count(1_400, 700), "gallery": Count(5_328, 700)}
_DETECTED: dict[Split, Count] = {"train": Count(7_365, 767), "query": Count(1_400, 700), "gallery": Count(5_332, 700)}

INFO = KindInfo(
    name="cuhk03-np",
    summary="CUHK03, new protocol",
    layout="labeled/ and detected/, each with bounding_box_train/ query/ bounding_box_test/, 0003_c1_21.png",
    cameras="2 of a pair, from the name (c1)",
    source="images: Li et al., 'DeepReID', CVPR 2014: the authors; split: Zhong et al., 'Re-ranking Person "
    "Re-identification with k-reciprocal Encoding', CVPR 2017",
    read=read,
    entries=("labeled/query", "detected/query", _RAW),
    counts={"": _LABELED, "labeled": _LABELED, "detected": _DETECTED},
    variants={"": "the same as labeled", "labeled": "boxes labelled by hand", "detected": "boxes of a detector"},
    one_query_per_camera=True,
    comparable="tables of the 767/700 split only; never those of the older 20 random splits",
)
