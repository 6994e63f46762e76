"""Rendered data sets: a table of images with their true label maps."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import KindInfo
from pipeline.datasets.layout import find_root
from pipeline.datasets.records import Dataset, short_name
from pipeline.datasets.table import read_table

TABLE = "dataset.csv"
LABEL_MAPS = "labels"


def read(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read the table, and find the true label maps beside the images."""
    name = short_name(path.resolve().name)
    root = find_root(path, (TABLE,), log)
    if log.faults:
        return Dataset("synthetic", name, root, ())
    table = read_table(root / TABLE, log)
    labels: Path | None = root / LABEL_MAPS
    if labels is not None and not labels.is_dir():
        log.fault(FaultKind.MISSING, "the folder of label maps is missing", labels)
        labels = None
    else:
        log.note("rendered images; masks can be built from the true label maps")
    return Dataset("synthetic", name, root, tuple(table.records), label_maps=labels, extra=table.extra)


INFO = KindInfo(
    name="synthetic",
    summary="rendered identities with true label maps",
    layout=f"{TABLE}, the images it lists, {LABEL_MAPS}/ with a label map for each",
    cameras="any number, from the table",
    source="rendered by sgsfa",
    read=read,
    entries=(TABLE,),
)
