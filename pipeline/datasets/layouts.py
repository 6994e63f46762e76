"""Layouts with a folder per split, as a table, and plain folders of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import (
    BOXES,
    PACKED,
    NamePattern,
    ParseName,
    contents,
    find_root,
    folders_with,
    id_folder,
    is_folder,
    list_images,
    read_split,
)
from pipeline.datasets.records import DISTRACTOR_PID, UNKNOWN, Dataset, Record, Split, short_name

NO_CAMERAS = "the data set has no cameras: queries get camera 0, gallery images camera 1"
WITHDRAWN = "withdrawn by its authors over privacy; only a copy that you already hold under its terms is read"


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one split: their folder, how their names are read, and whether each identity has a folder."""

    folder: str
    split: Split
    parse: ParseName
    deep: bool = False


def boxes(parse: ParseName) -> tuple[Part, ...]:
    """Return the three folders of Market-1501."""
    splits: tuple[Split, ...] = ("train", "query", "gallery")
    return tuple(Part(folder, split, parse) for folder, split in zip(BOXES, splits, strict=True))


def read_parts(root: Path, parts: Sequence[Part], log: ReadLog) -> tuple[Record, ...]:
    """Read the parts of a layout. Distractors stay in the gallery, which is noted."""
    records = [
        record
        for part in parts
        for record in read_split(root, part.folder, part.split, part.parse, log, deep=part.deep)
    ]
    if distractors := sum(record.split == "gallery" and record.pid == DISTRACTOR_PID for record in records):
        log.note(f"{distractors:,} distractors (identity 0) stay in the gallery as negatives")
    return tuple(records)


@dataclass(frozen=True, slots=True)
class Layout:
    """A variant of a layout: name of its data set, spellings of its folders (the first that exists counts), notes."""

    name: str
    spellings: tuple[tuple[Part, ...], ...]
    notes: tuple[str, ...] = ()


def folder_kind(name: str, by_variant: Mapping[str, Layout], **description: Any) -> KindInfo:
    """Return a kind whose variants have a folder per split; `description` are the further fields of `KindInfo`."""

    def read(path: Path, variant: str, log: ReadLog) -> Dataset:
        layout = by_variant[variant]
        parts = layout.spellings[0]
        if len(layout.spellings) > 1 and path.is_dir():
            folders = ((each, [part.folder for part in each]) for each in layout.spellings)
            parts = next((each for each, names in folders if folders_with(path, names)), parts)
        root = find_root(path, [part.folder for part in parts], log)
        records = read_parts(root, parts, log)
        for note in layout.notes:
            log.note(note)
        return Dataset(name, layout.name, root, records)

    return KindInfo(name=name, read=read, **description)


MARKET_NAME = NamePattern(
    # Some copies end in `.jpg.jpg`.
    r"(?P<pid>-1|\d{4})_c(?P<cam>\d)s\d_\d{6}_\d{2}(\.jpg)?",
    "a name like 0002_c1s1_000451_03.jpg",
    range(1, 7),
)
MARKET1501 = folder_kind(
    "market1501",
    {"": Layout("market1501", (boxes(MARKET_NAME),))},
    summary="Market-1501",
    layout="bounding_box_train/ query/ bounding_box_test/, 0002_c1s1_000451_03.jpg",
    cameras="6, from the name (c1)",
    source="Zheng et al., 'Scalable Person Re-identification: A Benchmark', ICCV 2015: the authors' project page",
    entries=BOXES,
    counts={"": {"train": Count(12_936, 751), "query": Count(3_368, 750), "gallery": Count(15_913, 750)}},
    one_query_per_camera=True,
    comparable="single query, with the authors' junk and camera rules",
)

DUKE_NAME = NamePattern(r"(?P<pid>\d{4})_c(?P<cam>\d)_f\d{7}", "a name like 0001_c2_f0046182.jpg", range(1, 9))
DUKE_GALLERY = Count(17_661, 1_110)
"""702 identities of queries and 408 others, which have ordinary ids."""

DUKEMTMC = folder_kind(
    "dukemtmc",
    {"": Layout("dukemtmc", (boxes(DUKE_NAME),))},
    summary="DukeMTMC-reID",
    layout="bounding_box_train/ query/ bounding_box_test/, 0001_c2_f0046182.jpg",
    cameras="8, from the name (c2)",
    source=WITHDRAWN,
    entries=BOXES,
    counts={"": {"train": Count(16_522, 702), "query": Count(2_228, 702), "gallery": DUKE_GALLERY}},
    one_query_per_camera=True,
    comparable="single query",
)

_OCCLUDED, _PARTIAL, _WHOLE = "occluded_body_images", "partial_body_images", "whole_body_images"

OCCLUDED_REID = folder_kind(
    "occluded-reid",
    {
        "": Layout(
            "occluded-reid",
            ((Part(_OCCLUDED, "query", id_folder(0), deep=True), Part(_WHOLE, "gallery", id_folder(1), deep=True)),),
            (NO_CAMERAS,),
        )
    },
    summary="Occluded-REID",
    layout=f"{_OCCLUDED}/ID/, {_WHOLE}/ID/; .tif or .jpg",
    cameras="none; pseudo: query 0, gallery 1",
    source="Zhuo et al., 'Occluded Person Re-identification', ICME 2018: the authors",
    entries=(_OCCLUDED,),
    counts={"": {"query": Count(1_000, 200, each=5), "gallery": Count(1_000, 200, each=5)}},
    comparable="trained on Market-1501, multi-shot gallery, all 200 identities",
)

_P_DUKE_TEST = (
    Part(f"test/{_OCCLUDED}", "query", id_folder(0), deep=True),
    Part(f"test/{_WHOLE}", "gallery", id_folder(1), deep=True),
)
_P_DUKE = Layout(
    "p-duke",
    (
        (
            Part(f"train/{_OCCLUDED}", "train", id_folder(0), deep=True),
            Part(f"train/{_WHOLE}", "train", id_folder(1), deep=True),
            *_P_DUKE_TEST,
        ),
    ),
    (NO_CAMERAS,),
)
_P_DUKE_TRANSFER = "transfer: its training images are ignored; train on another set (Market-1501 in published tables)"
_P_DUKE_TESTED: dict[Split, Count] = {"query": Count(2_163, 634), "gallery": Count(9_053, 634)}
_P_DUKE_COUNTS: dict[Split, Count] = {"train": Count(12_927, 665), **_P_DUKE_TESTED}

P_DUKE = folder_kind(
    "p-duke",
    {
        "": _P_DUKE,
        "supervised": _P_DUKE,
        "transfer": Layout("p-duke-transfer", (_P_DUKE_TEST,), (NO_CAMERAS, _P_DUKE_TRANSFER)),
    },
    summary="P-DukeMTMC-reID",
    layout=f"train/ and test/, each with {_OCCLUDED}/ID/ and {_WHOLE}/ID/",
    cameras="none; pseudo: occluded 0, whole 1",
    source="Zhuo et al., 'Occluded Person Re-identification', ICME 2018; images: DukeMTMC, " + WITHDRAWN,
    entries=(f"test/{_OCCLUDED}",),
    counts={"": _P_DUKE_COUNTS, "supervised": _P_DUKE_COUNTS, "transfer": _P_DUKE_TESTED},
    variants={
        "": "the same as supervised",
        "supervised": "train on its training split",
        "transfer": "test split only, for models trained on Market-1501",
    },
    comparable="tables must state which of the two protocols they used",
)


def partial_reid_name(camid: int) -> NamePattern:
    """Return the names of Partial-REID, identity and shot.

    The shot is not a camera: used as one, it would make the camera rule delete a fifth of all positives.
    """
    return NamePattern(r"(?P<pid>\d+)_(?P<shot>\d+)", "ID_SHOT, as in 006_004.jpg", camid)


def _partial_reid(name: str, queries: str) -> Layout:
    parts = Part(queries, "query", partial_reid_name(0)), Part(_WHOLE, "gallery", partial_reid_name(1))
    return Layout(name, (parts,), (NO_CAMERAS, f"queries: {queries}"))


_PARTIAL_COUNTS: dict[Split, Count] = {"query": Count(300, 60, each=5), "gallery": Count(300, 60, each=5)}

PARTIAL_REID = folder_kind(
    "partial-reid",
    {"": _partial_reid("partial-reid", _OCCLUDED), "partial": _partial_reid("partial-reid-partial", _PARTIAL)},
    summary="Partial-REID",
    layout=f"{_OCCLUDED}/ {_PARTIAL}/ {_WHOLE}/, 006_004.jpg = identity, shot",
    cameras="none; pseudo: query 0, gallery 1",
    source="Zheng et al., 'Partial Person Re-identification', ICCV 2015: the authors",
    entries=(_PARTIAL,),
    counts={"": _PARTIAL_COUNTS, "partial": _PARTIAL_COUNTS},
    variants={"": f"queries: {_OCCLUDED}", "partial": f"queries: {_PARTIAL} (cropped to the visible part)"},
    comparable="trained on Market-1501, multi-shot gallery; tables mix the two query folders, often without stating it",
)


def partial_ilids_name(camid: int) -> NamePattern:
    """Return the names of Partial-iLIDS, the identity."""
    return NamePattern(r"(?P<pid>\d+)(_\d+)?", "a person id, as in 001.jpg", camid)


# The archive has Probe and Gallery; copies differ in case, and some use query.
_ILIDS_FOLDERS = (("Probe", "Gallery"), ("probe", "gallery"), ("query", "gallery"), ("Query", "Gallery"))
_ILIDS = tuple(
    (Part(query, "query", partial_ilids_name(0)), Part(gallery, "gallery", partial_ilids_name(1)))
    for query, gallery in _ILIDS_FOLDERS
)

PARTIAL_ILIDS = folder_kind(
    "partial-ilids",
    {"": Layout("partial-ilids", _ILIDS, (NO_CAMERAS,))},
    summary="Partial-iLIDS",
    layout="Probe/ Gallery/, 001.jpg = identity",
    cameras="none; pseudo: query 0, gallery 1",
    source="He et al., 'Deep Spatial Feature Reconstruction for Partial Person Re-identification', CVPR 2018: the "
    "authors; derived from i-LIDS, whose images the UK Home Office licensed",
    entries=("Probe", "probe"),
    counts={"": {"query": Count(119, 119, each=1), "gallery": Count(119, 119, each=1)}},
    comparable="trained on Market-1501, single shot; rank-1 and rank-3",
)

CUHK03_NAME = NamePattern(r"(?P<pid>\d{4})_c(?P<cam>\d)_\d+", "a name like 0003_c1_21.png", range(1, 3))
_CUHK03_RAW = "cuhk-03.mat"


def _read_cuhk03(path: Path, variant: str, log: ReadLog) -> Dataset:
    """Read `labeled/` or `detected/`, or `path` itself if the three folders are in it."""
    kind = variant or "labeled"
    name = f"cuhk03-np-{kind}"
    wanted = [f"{kind}/{each}" for each in BOXES]
    direct = all(is_folder(path / each) for each in BOXES)
    if not direct and not folders_with(path, wanted) and (raw := folders_with(path, (_CUHK03_RAW,))):
        log.fault(
            FaultKind.MISSING,
            f"{_CUHK03_RAW} is the raw data set, without the images of the new protocol",
            raw[0],
            expected="labeled/ and detected/ with the three folders of CUHK03-NP",
            hint="download CUHK03-NP (github.com/zhunzhong07/person-re-ranking), or extract the images with its splits",
        )
        return Dataset("cuhk03-np", name, path, ())
    root = path
    if not direct:
        # A folder with labeled/ and detected/ fits twice, so the variant is part of the path.
        root = find_root(path, wanted, log) / kind
    log.note(f"{kind} boxes")
    return Dataset("cuhk03-np", name, root, read_parts(root, boxes(CUHK03_NAME), log))


_LABELED: dict[Split, Count] = {"train": Count(7_368, 767), "query": Count(1_400, 700), "gallery": Count(5_328, 700)}
_DETECTED: dict[Split, Count] = {"train": Count(7_365, 767), "query": Count(1_400, 700), "gallery": Count(5_332, 700)}

CUHK03_NP = KindInfo(
    name="cuhk03-np",
    summary="CUHK03, new protocol",
    layout="labeled/ and detected/, each with bounding_box_train/ query/ bounding_box_test/, 0003_c1_21.png",
    cameras="2 of a pair, from the name (c1)",
    source="images: Li et al., 'DeepReID', CVPR 2014: the authors; split: Zhong et al., 'Re-ranking Person "
    "Re-identification with k-reciprocal Encoding', CVPR 2017",
    read=_read_cuhk03,
    entries=("labeled/query", "detected/query", _CUHK03_RAW),
    counts={"": _LABELED, "labeled": _LABELED, "detected": _DETECTED},
    variants={"": "the same as labeled", "labeled": "boxes labelled by hand", "detected": "boxes of a detector"},
    one_query_per_camera=True,
    comparable="tables of the 767/700 split only; never those of the older 20 random splits",
)


def _read_folder(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read every image in the folder and its sub-folders."""
    name = short_name(path.resolve().name)
    if not path.is_dir():
        log.fault(
            FaultKind.MISSING, f"the folder {'is a file, not a folder' if path.exists() else 'does not exist'}", path
        )
        return Dataset("folder", name, path, ())
    images = list_images(path, log, deep=True)
    if not images:
        suffixes = {file.suffix.lower() for file in path.iterdir()}
        hints = (
            ({".heic", ".heif", ".avif", ".jxl"}, "convert the images to JPEG or PNG"),
            ({".mp4", ".avi", ".mov", ".mkv"}, "extract crops of persons from the videos"),
            (PACKED, "unpack the archive"),
        )
        log.fault(
            FaultKind.EMPTY,
            f"the folder has no images; it holds {contents(path)}",
            path,
            expected="image files, also in sub-folders",
            hint=next((hint for kinds, hint in hints if suffixes & kinds), None),
        )
    log.folders["all"] = path
    return Dataset("folder", name, path, tuple(Record(image, UNKNOWN, UNKNOWN, "all") for image in images))


FOLDER = KindInfo(
    name="folder",
    summary="any folder of images, without identities: for masks and features",
    layout="image files, also in sub-folders",
    cameras="none",
    source="your own images",
    read=_read_folder,
)
