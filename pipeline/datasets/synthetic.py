"""Rendered people, as `sgsfa data synth` writes them."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import KindInfo
from pipeline.datasets.layout import find_root
from pipeline.datasets.records import Dataset, short_name
from pipeline.datasets.table import read_table

TABLE = "dataset.csv"
LABEL_MAPS = "labels"


def read(path: Path, variant: str, log: ReadLog) -> Dataset:
    """Read the table, and find the true label maps beside the images."""
    name = short_name(path.resolve().name)
    faults = len(log.faults)
    root = find_root(path, (TABLE,), log)
    if len(log.faults) > faults:
        return Dataset("synthetic", name, root, ())
    table = read_table(root / TABLE, log)
    labels = root / LABEL_MAPS
    if not labels.is_dir():
        log.fault(FaultKind.MISSING, "the folder of label maps is missing", labels)
        return Dataset("synthetic", name, root, tuple(table.records), extra=table.extra)
    log.note("rendered people; masks can come from the true label maps")
    return Dataset("synthetic", name, root, tuple(table.records), label_maps=labels, extra=table.extra)


INFO = KindInfo(
    name="synthetic",
    summary="rendered people with true label maps",
    layout=f"{TABLE}, the images it lists, {LABEL_MAPS}/ with a label map for each",
    cameras="any number, from the table",
    source="`sgsfa data synth` makes it",
    read=read,
)
