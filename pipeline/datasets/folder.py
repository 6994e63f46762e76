"""Any folder of images, without identities: for masks and features only."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.faults import FaultKind, ReadLog
from pipeline.datasets.kind import KindInfo
from pipeline.datasets.layout import contents, list_images
from pipeline.datasets.records import UNKNOWN, Dataset, Record, short_name


def read(path: Path, _variant: str, log: ReadLog) -> Dataset:
    """Read every image in the folder and its sub-folders."""
    name = short_name(path.resolve().name)
    if not path.is_dir():
        problem = "is a file, not a folder" if path.exists() else "does not exist"
        log.fault(FaultKind.MISSING, f"the folder {problem}", path)
        return Dataset("folder", name, path, ())
    images = list_images(path, log, deep=True)
    if not images:
        log.fault(
            FaultKind.EMPTY,
            f"the folder has no images; it holds {contents(path)}",
            path,
            expected="image files, also in sub-folders",
            hint=_hint(path),
        )
    log.folders["all"] = path
    records = tuple(Record(image, UNKNOWN, UNKNOWN, "all") for image in images)
    return Dataset("folder", name, path, records)


def _hint(path: Path) -> str | None:
    suffixes = {file.suffix.lower() for file in path.iterdir()}
    if suffixes & {".heic", ".heif", ".avif", ".jxl"}:
        return "convert the images to JPEG or PNG"
    if suffixes & {".mp4", ".avi", ".mov", ".mkv"}:
        return "extract crops of persons from the videos"
    return "unpack the archive" if suffixes & {".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"} else None


INFO = KindInfo(
    name="folder",
    summary="any folder of images, without identities: for masks and features",
    layout="image files, also in sub-folders",
    cameras="none",
    source="your own images",
    read=read,
)
