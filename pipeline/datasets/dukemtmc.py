"""DukeMTMC-reID (Zheng et al., ICCV 2017, on data of Ristani et al., ECCVW 2016).

Its authors have withdrawn DukeMTMC over privacy. This reads a copy that the user already holds under its terms.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.datasets.faults import ReadLog
from pipeline.datasets.kind import Count, KindInfo
from pipeline.datasets.layout import BOXES, NamePattern, find_root, read_boxes
from pipeline.datasets.records import Dataset

NAME = NamePattern(
    re.compile(r"(?P<pid>\d{4})_c(?P<cam>\d)_f\d{7}", re.ASCII), example="0001_c2_f0046182.jpg", cameras=range(1, 9)
)

GALLERY = Count(17_661, 1_110)
"""702 identities of queries and 408 others, which have ordinary ids."""

WITHDRAWN = "withdrawn by its authors over privacy; only a copy that you already hold under its terms is read"


def read(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read the three folders of the archive."""
    root = find_root(path, BOXES, log)
    return Dataset("dukemtmc", "dukemtmc", root, tuple(read_boxes(root, NAME, log)))


INFO = KindInfo(
    name="dukemtmc",
    summary="DukeMTMC-reID",
    layout="bounding_box_train/ query/ bounding_box_test/, 0001_c2_f0046182.jpg",
    cameras="8, from the name (c2)",
    source=WITHDRAWN,
    read=read,
    entries=BOXES,
    counts={"": {"train": Count(16_522, 702), "query": Count(2_228, 702), "gallery": GALLERY}},
    one_query_per_camera=True,
    comparable="single query",
)
