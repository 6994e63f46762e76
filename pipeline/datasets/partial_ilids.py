"""Partial-iLIDS (Zheng et al., CVPR 2011; He et al., CVPR 2018): 119 identities, one image per role."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from pipeline.datasets.faults import ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import find_root, folders_with, id_name, pseudo_cameras, read_split
from pipeline.datasets.records import Dataset

# The archive has Probe and Gallery; copies differ in case, and some use query.
FOLDERS = (("Probe", "Gallery"), ("probe", "gallery"), ("query", "gallery"), ("Query", "Gallery"))
_NAME = re.compile(r"(?P<pid>\d+)(_\d+)?", re.ASCII)

parse_name = functools.partial(id_name, _NAME, "a person id, as in 001.jpg")
"""Camera id -> parser of image names."""


def read(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read the two folders; the set has no training images."""
    query, gallery = next((pair for pair in FOLDERS if path.is_dir() and folders_with(path, pair)), FOLDERS[0])
    root = find_root(path, (query, gallery), log)
    records = [
        *read_split(root, query, "query", parse_name(0), log),
        *read_split(root, gallery, "gallery", parse_name(1), log),
    ]
    pseudo_cameras(log)
    return Dataset("partial-ilids", "partial-ilids", root, tuple(records))


INFO = KindInfo(
    name="partial-ilids",
    summary="Partial-iLIDS",
    layout="Probe/ Gallery/, 001.jpg = identity",
    cameras="none; pseudo: query 0, gallery 1",
    source="He et al., 'Deep Spatial Feature Reconstruction for Partial Person Re-identification', CVPR 2018: the "
    "authors; derived from i-LIDS, whose images the UK Home Office licensed",
    read=read,
    entries=("Probe", "probe"),
    counts={"": {"query": Count(119, 119, each=1), "gallery": Count(119, 119, each=1)}},
    comparable="trained on Market-1501, single shot; rank-1 and rank-3",
)
