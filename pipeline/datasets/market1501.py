"""Market-1501 (Zheng et al., ICCV 2015)."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.datasets.faults import ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import BOXES, NamePattern, find_root, read_boxes
from pipeline.datasets.records import DISTRACTOR_PID, Dataset

NAME = NamePattern(
    # Some copies end in `.jpg.jpg`.
    re.compile(r"(?P<pid>-1|\d{4})_c(?P<cam>\d)s\d_\d{6}_\d{2}(\.jpg)?", re.ASCII),
    example="0002_c1s1_000451_03.jpg",
    cameras=range(1, 7),
)


def read(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read the three folders of the archive. Junk is dropped; distractors stay in the gallery."""
    root = find_root(path, BOXES, log)
    records = read_boxes(root, NAME, log)
    distractors = sum(record.split == "gallery" and record.pid == DISTRACTOR_PID for record in records)
    if distractors:
        log.note(f"{distractors:,} distractors (identity 0) stay in the gallery as negatives")
    return Dataset("market1501", "market1501", root, tuple(records))


INFO = KindInfo(
    name="market1501",
    summary="Market-1501",
    layout="bounding_box_train/ query/ bounding_box_test/, 0002_c1s1_000451_03.jpg",
    cameras="6, from the name (c1)",
    source="Zheng et al., 'Scalable Person Re-identification: A Benchmark', ICCV 2015: the authors' project page",
    read=read,
    entries=BOXES,
    counts={"": {"train": Count(12_936, 751), "query": Count(3_368, 750), "gallery": Count(15_913, 750)}},
    one_query_per_camera=True,
    comparable="single query, with the authors' junk and camera rules",
)
