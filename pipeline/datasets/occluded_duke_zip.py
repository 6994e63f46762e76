"""Create the folders of Occluded-DukeMTMC from the archive of DukeMTMC-reID and the authors' name lists.

The authors publish lists and no images. If DukeMTMC-reID is already unpacked, the reader uses the lists beside it; this
is for users who hold only the archive, and does what the authors' script does.
"""

from __future__ import annotations

import lzma
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.datasets.faults import ReadLog, as_error
from pipeline.datasets.layout import BOXES, folders_with
from pipeline.datasets.occluded_duke import FOLDERS, LISTS, read_names
from pipeline.datasets.records import Split
from pipeline.errors import DataError
from pipeline.runtime.files import fsync_path
from pipeline.runtime.progress import SILENT, Progress
from pipeline.store.output import new_folder

_TARGETS: dict[Split, str] = dict(zip(LISTS, BOXES, strict=True))

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class OccludedDukeFolder:
    """The folder that was created, its images per folder, and how many queries are gallery files too (`double`)."""

    root: Path
    images: Mapping[str, int]
    double: int


def extract_occluded_duke(archive: Path, lists: Path, out: Path, *, progress: Progress = SILENT) -> OccludedDukeFolder:
    """Extract the listed images of the zip file of DukeMTMC-reID into the folders of Occluded-DukeMTMC.

    `lists` is the folder with `train.list`, `query.list` and `gallery.list`, or one around it. The folder `out` is
    published atomically. No path of the archive is used for writing, only names that follow the layout, so an archive
    cannot write outside `out`.

    Raises:
        DataError: `out` exists, the archive is damaged or lacks listed images, or the lists are missing or faulty.
    """
    if out.exists():
        raise DataError("the output folder exists", where=out, expected="a new folder")
    wanted = _wanted(lists)
    try:
        with _opened(archive) as opened:
            members = _members(opened, archive, wanted)
            _check_space(sum(member.file_size for member in members.values()), out)
            with new_folder(out) as folder, progress.task("unpack", total=len(members)) as task:
                for name in BOXES:
                    (folder / name).mkdir()
                for target, member in members.items():
                    (folder / target).write_bytes(_content(opened, member, archive))
                    fsync_path(folder / target)
                    task.advance()
    except OSError as error:
        raise DataError(f"the images cannot be written: {error.strerror or error}", where=out) from error
    double = len(set(wanted["query"]) & set(wanted["gallery"]))
    return OccludedDukeFolder(out, {_TARGETS[split]: len(names) for split, names in wanted.items()}, double)


def _wanted(lists: Path) -> Mapping[Split, list[str]]:
    """The names of each list."""
    found = folders_with(lists, tuple(LISTS.values())) if lists.is_dir() else []
    if not found:
        raise DataError(
            f"the folder does not hold {', '.join(LISTS.values())}"
            if lists.is_dir()
            else "the folder of the lists does not exist",
            where=lists,
            expected="the name lists that the authors of Occluded-DukeMTMC publish",
        )
    log = ReadLog()
    names = {split: [name for _, name, _, _ in read_names(found[0] / file, log)] for split, file in LISTS.items()}
    if log.faults:
        raise as_error(log.faults, f"occluded-duke:{found[0]}")
    return names


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        problem, expected = "not a zip file, or a truncated one", "DukeMTMC-reID.zip"
        raise DataError(problem, where=archive, expected=expected, cause=error) from error
    except OSError as error:
        raise DataError(f"the archive cannot be read: {error.strerror or error}", where=archive) from error


def _members(opened: zipfile.ZipFile, archive: Path, wanted: Mapping[Split, list[str]]) -> dict[str, zipfile.ZipInfo]:
    """The member of the archive for each file to write, `folder/name`."""
    present: dict[str, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        if path.parent.name in BOXES and not {"__MACOSX", ".."} & set(path.parts):
            present.setdefault(f"{path.parent.name}/{path.name}", member)
    found: dict[str, zipfile.ZipInfo] = {}
    missing: list[str] = []
    for split, names in wanted.items():
        for name in names:
            source = next((present[at] for folder in FOLDERS[split] if (at := f"{folder}/{name}") in present), None)
            if source is None:
                missing.append(f"{name} ({split})")
            else:
                found[f"{_TARGETS[split]}/{name}"] = source
    if missing:
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"the archive lacks {len(missing):,} of {len(missing) + len(found):,} listed images: "
            f"{', '.join(missing[:_SHOWN])}{more}",
            where=archive,
            expected=f"DukeMTMC-reID with {', '.join(BOXES)}",
        )
    return found


def _check_space(needed: int, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise DataError(f"the images need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free", where=out.parent)


def _content(opened: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path) -> bytes:
    try:
        return opened.read(member)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise DataError(f"{member.filename} is damaged in the archive: {error}", where=archive) from error
    except (RuntimeError, NotImplementedError) as error:
        # A password, or a compression method that Python does not support.
        raise DataError(f"{member.filename} cannot be unpacked: {error}", where=archive) from error
