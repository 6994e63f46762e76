"""Occluded-REID (Zhuo et al., ICME 2018): 200 identities, five occluded and five whole-body images each."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.faults import ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import find_root, id_folder, pseudo_cameras, read_split
from pipeline.datasets.records import Dataset

QUERY, GALLERY = "occluded_body_images", "whole_body_images"


def read(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read the two folders; the set has no training images."""
    root = find_root(path, (QUERY, GALLERY), log)
    records = [
        *read_split(root, QUERY, "query", id_folder(0), log, deep=True),
        *read_split(root, GALLERY, "gallery", id_folder(1), log, deep=True),
    ]
    pseudo_cameras(log)
    return Dataset("occluded-reid", "occluded-reid", root, tuple(records))


INFO = KindInfo(
    name="occluded-reid",
    summary="Occluded-REID",
    layout=f"{QUERY}/ID/, {GALLERY}/ID/; .tif or .jpg",
    cameras="none; pseudo: query 0, gallery 1",
    source="Zhuo et al., 'Occluded Person Re-identification', ICME 2018: the authors",
    read=read,
    entries=(QUERY,),
    counts={"": {"query": Count(1_000, 200, each=5), "gallery": Count(1_000, 200, each=5)}},
    comparable="trained on Market-1501, multi-shot gallery, all 200 identities",
)
