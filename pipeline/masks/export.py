"""Export masks for other programs: grey PNGs, one NumPy archive, or the folders that BPBreID reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
from PIL import Image

from pipeline.config import suggestion
from pipeline.errors import ConfigError, FormatError
from pipeline.formats.masks import OK, PART_NAMES, MaskFile
from pipeline.runtime.files import atomic_write
from pipeline.runtime.progress import SILENT, Progress
from pipeline.store.output import new_folder

Layout = Literal["png", "npz", "bpbreid"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

BPBREID_FOLDER = "pifpaf_maskrcnn_filtering"
"""The folder of masks that BPBreID's data sets know and read as `<parent folder>/<stem>.npy`."""

BPBREID_CHANNELS: dict[str, tuple[int, ...]] = {
    "head": (0, 1, 2, 3, 4, 29, 30, 31, 32, 33, 34, 35),
    "upper": (5, 6, 7, 8, 9, 10, 21, 22, 23, 24, 25, 26, 27, 28),
    "lower": (13, 14, 17, 18, 19, 20),
    "shoes": (15, 16),
}
"""Which of BPBreID's 36 fields hold each part, so that its grouping `four_v` (maximum over fields) returns them.
The two hip fields, 11 and 12, belong to both its upper body and its legs; they stay empty."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: the layout, the file or folder, images exported, images left out because they have no masks."""

    layout: str
    out: Path
    images: int
    left_out: int


def export_masks(masks: MaskFile, out: Path, layout: str, *, progress: Progress = SILENT) -> ExportReport:
    """Write the masks of a file for another program.

    Args:
        masks: The mask file.
        out: A folder that is new or empty; for `npz` the file to write.
        layout: `png`: folders `head`, `upper`, `lower`, `shoes` (16 x 8) and `body` (64 x 32) below `out`, in each the
            images' names with `.png` added, grey 0..255; parts that the labels do not have have no folder. `npz`: the
            arrays of the file. `bpbreid`: `pifpaf_maskrcnn_filtering/<parent folder>/<stem>.npy` below
            `out`, float32 (36, 16, 8); `out` is then the `masks` folder of BPBreID's data set.
        progress: Receives progress.

    Raises:
        ConfigError: The layout is unknown, or `out` exists.
        FormatError: Two images would be written to one file.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            f"unknown export layout {layout!r}", expected=" | ".join(LAYOUTS), hint=suggestion(layout, LAYOUTS)
        )
    good = np.flatnonzero(masks.status == OK).tolist()
    if layout == "npz":
        _write_npz(masks, out)
    else:
        target = (out / BPBREID_FOLDER if layout == "bpbreid" else out).absolute()
        if target == Path.cwd():
            raise ConfigError("the current folder cannot be replaced", where=out, expected="a new folder")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            problem = "the folder is not empty" if target.is_dir() else "a file of this name exists"
            raise ConfigError(problem, where=target, expected="a new or empty folder")
        with new_folder(target) as folder:
            write = _bpbreid(masks, folder) if layout == "bpbreid" else _png(masks, folder)
            with progress.task("export", total=len(good)) as task:
                for row in good:
                    write(row)
                    task.advance()
    return ExportReport(layout, out, len(good), len(masks) - len(good))


def _write_npz(masks: MaskFile, out: Path) -> None:
    if out.suffix != ".npz":
        raise ConfigError(
            f"the name of the archive ends in {out.suffix or 'no suffix'!r}",
            where=out,
            expected="a name such as masks.npz",
        )
    if out.exists():
        raise ConfigError("the file exists", where=out, expected="a new file")
    with atomic_write(out) as temporary:
        np.savez_compressed(
            temporary,
            names=np.array(masks.names),
            part_names=np.array(PART_NAMES),
            parts=masks.parts,
            body=masks.body,
            quality=masks.quality,
            status=masks.status,
        )


def _png(masks: MaskFile, folder: Path) -> Callable[[int], None]:
    present = [part for part, name in enumerate(PART_NAMES) if name not in masks.absent_parts]

    def write(row: int) -> None:
        name = f"{masks.names[row]}.png"
        grey = {"body": masks.body[row]} | {PART_NAMES[part]: masks.parts[row, part] for part in present}
        for kind, mask in grey.items():
            path = folder / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)

    return write


def _bpbreid(masks: MaskFile, folder: Path) -> Callable[[int], None]:
    taken: dict[Path, str] = {}

    def write(row: int) -> None:
        name = PurePosixPath(masks.names[row])
        path = folder / name.parent.name / f"{name.stem}.npy"
        if path in taken:
            raise FormatError(
                f"BPBreID would read one file for two images, {taken[path]!r} and {str(name)!r}", where=path
            )
        taken[path] = str(name)
        fields = np.zeros((36, *masks.parts.shape[2:]), np.float32)
        for part, part_name in enumerate(PART_NAMES):
            fields[list(BPBREID_CHANNELS[part_name])] = masks.parts[row, part] / np.float32(255)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, fields)

    return write
