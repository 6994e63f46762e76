"""P-DukeMTMC-reID (Zhuo et al., ICME 2018): occluded queries, whole-body gallery, from DukeMTMC-reID."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.dukemtmc import WITHDRAWN
from pipeline.datasets.faults import ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import find_root, id_folder, pseudo_cameras, read_split
from pipeline.datasets.records import Dataset, Record

OCCLUDED, WHOLE = "occluded_body_images", "whole_body_images"


def read(path: Path, variant: str, log: ReadLog) -> Dataset:
    """Read the test split and, except in the variant `transfer`, the training split."""
    parts = ("test",) if variant == "transfer" else ("train", "test")
    root = find_root(path, tuple(f"{part}/{body}" for part in parts for body in (OCCLUDED, WHOLE)), log)
    records: list[Record] = []
    if variant != "transfer":
        records += read_split(root, f"train/{OCCLUDED}", "train", id_folder(0), log, deep=True)
        records += read_split(root, f"train/{WHOLE}", "train", id_folder(1), log, deep=True)
        if "train" in log.folders:
            log.folders["train"] = root / "train"
    records += read_split(root, f"test/{OCCLUDED}", "query", id_folder(0), log, deep=True)
    records += read_split(root, f"test/{WHOLE}", "gallery", id_folder(1), log, deep=True)
    pseudo_cameras(log)
    if variant == "transfer":
        log.note("transfer: its training images are ignored; train on another set (Market-1501 in published tables)")
    return Dataset("p-duke", "p-duke-transfer" if variant == "transfer" else "p-duke", root, tuple(records))


_TRAIN = Count(12_927, 665)
_QUERY, _GALLERY = Count(2_163, 634), Count(9_053, 634)

INFO = KindInfo(
    name="p-duke",
    summary="P-DukeMTMC-reID",
    layout=f"train/ and test/, each with {OCCLUDED}/ID/ and {WHOLE}/ID/",
    cameras="none; pseudo: occluded 0, whole 1",
    source="Zhuo et al., 'Occluded Person Re-identification', ICME 2018; images: DukeMTMC, " + WITHDRAWN,
    read=read,
    entries=(f"test/{OCCLUDED}",),
    counts={
        "": {"train": _TRAIN, "query": _QUERY, "gallery": _GALLERY},
        "supervised": {"train": _TRAIN, "query": _QUERY, "gallery": _GALLERY},
        "transfer": {"query": _QUERY, "gallery": _GALLERY},
    },
    variants={
        "": "the same as supervised",
        "supervised": "train on its training split",
        "transfer": "test split only, for models trained on Market-1501",
    },
    comparable="tables must state which of the two protocols they used",
)
