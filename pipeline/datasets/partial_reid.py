"""Partial-REID (Zheng et al., ICCV 2015): 60 identities, five occluded, partial and whole-body images each.

A name like `006_004.jpg` is identity and shot. The shot is not a camera: used as one, it would make the camera rule
delete a fifth of all positives.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from pipeline.datasets.faults import ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import find_root, id_name, pseudo_cameras, read_split
from pipeline.datasets.records import Dataset, Split

OCCLUDED, PARTIAL, WHOLE = "occluded_body_images", "partial_body_images", "whole_body_images"
_NAME = re.compile(r"(?P<pid>\d+)_(?P<shot>\d+)", re.ASCII)

parse_name = functools.partial(id_name, _NAME, "ID_SHOT, as in 006_004.jpg")
"""Camera id -> parser of image names."""


def read(path: Path, variant: str, log: ReadLog) -> Dataset:
    """Read the queries of the variant, and the gallery; the set has no training images."""
    queries = PARTIAL if variant == "partial" else OCCLUDED
    root = find_root(path, (queries, WHOLE), log)
    records = [
        *read_split(root, queries, "query", parse_name(0), log),
        *read_split(root, WHOLE, "gallery", parse_name(1), log),
    ]
    pseudo_cameras(log)
    log.note(f"queries: {queries}")
    name = "partial-reid-partial" if variant == "partial" else "partial-reid"
    return Dataset("partial-reid", name, root, tuple(records))


_COUNTS: dict[Split, Count] = {"query": Count(300, 60, each=5), "gallery": Count(300, 60, each=5)}

INFO = KindInfo(
    name="partial-reid",
    summary="Partial-REID",
    layout=f"{OCCLUDED}/ {PARTIAL}/ {WHOLE}/, 006_004.jpg = identity, shot",
    cameras="none; pseudo: query 0, gallery 1",
    source="Zheng et al., 'Partial Person Re-identification', ICCV 2015: the authors",
    read=read,
    entries=(PARTIAL,),
    counts={"": _COUNTS, "partial": _COUNTS},
    variants={"": f"queries: {OCCLUDED}", "partial": f"queries: {PARTIAL} (cropped to the visible part)"},
    comparable="trained on Market-1501, multi-shot gallery; tables mix the two query folders, often without stating it",
)
