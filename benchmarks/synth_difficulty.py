"""How hard rendered people are, beside a real data set: colour histograms, a colour oracle with true masks, chance.

    python benchmarks/synth_difficulty.py [--ids 200] [--cameras 6] [--shots 3] [--work DIR] [--real KIND:PATH]

Renders the data set (about 8 CPU-minutes at the defaults; an existing one of the same parameters is used again) and
ranks its gallery for its queries by the rules of any result. The aims are those of the data card
(docs/concepts/rendered-data.md): histogram rank-1 12 to 25 % with 55 to 80 % of the first hits from the query's own
camera, the oracle below 60 %, random scores at chance. `--real` measures the histogram on another data set too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.config import SynthConfig
from pipeline.datasets.images import read_image
from pipeline.datasets.records import Dataset, Record
from pipeline.datasets.registry import open_dataset
from pipeline.evaluation.histogram import histogram_baseline
from pipeline.matching.metrics import rank_metrics
from sgsfa_synth.dataset import render_dataset
from sgsfa_synth.mesh import Label

RANDOM_DRAWS = 40

Floats = npt.NDArray[np.float32]

MIN_PIXELS = 12
"""Pixels of a class, at a quarter of 256 x 128, from which its colour counts."""

MISSING = 8.0
"""Distance, in units of CIE L*a*b*, for each class that only one of two images shows."""

_SIZE = (64, 128)


def main() -> None:
    arguments = parse()
    config = SynthConfig(ids=arguments.ids, cameras=arguments.cameras, shots=arguments.shots, jobs=arguments.jobs)
    with tempfile.TemporaryDirectory(prefix="synth-difficulty-") as folder:
        work = arguments.work or Path(folder)
        summary = render_dataset(work, config)
        found = measured(open_dataset(f"synthetic:{work}"))
    result = {"parameters": config.model_dump(), "images": summary.images, "statistics": summary.statistics["splits"]}
    result |= found
    if arguments.real is not None:
        real = histogram_baseline(open_dataset(arguments.real, expect_counts=False))
        result["real"] = {"histogram rank-1": real.rank1, "first hits of the own camera": real.same_camera}
    print(json.dumps(result, indent=2))


def measured(dataset: Dataset) -> dict[str, object]:
    """All figures of a rendered data set, as fractions."""
    queries, gallery = dataset.split("query"), dataset.split("gallery")
    histogram = histogram_baseline(dataset)
    identities = [numbers(records) for records in (queries, gallery)]
    (query_pids, query_cams), (gallery_pids, gallery_cams) = identities
    both = without_cameras(
        class_colours(
            (read_image(dataset.path_of(record)), labels_of(dataset, record)) for record in queries + gallery
        ),
        np.concatenate([query_cams, gallery_cams]),
    )
    count = len(queries)
    distances = oracle_distances(
        ClassColours(both.colours[:count], both.shown[:count]), ClassColours(both.colours[count:], both.shown[count:])
    )
    oracle = rank_metrics(distances, query_pids, gallery_pids, query_cams, gallery_cams)
    # One draw of a few hundred queries has a handful of hits; the mean of many tells whether chance is met.
    rng = np.random.default_rng(0)
    chance = [
        rank_metrics(
            rng.random((count, len(gallery)), np.float32), query_pids, gallery_pids, query_cams, gallery_cams
        ).rank(1)
        for _ in range(RANDOM_DRAWS)
    ]
    same = query_pids[:, None] == gallery_pids[None]
    junk = same & (query_cams[:, None] == gallery_cams[None])
    expected = float(((same & ~junk).sum(1) / (~junk).sum(1)).mean())
    return {
        "queries": count,
        "gallery": len(gallery),
        "histogram": {
            "rank-1": histogram.rank1,
            "mAP": histogram.metrics.mAP,
            "first hits of the own camera": histogram.same_camera,
        },
        "mean colour of each true class": {"rank-1": oracle.rank(1), "mAP": oracle.mAP},
        "random scores": {"rank-1": float(np.mean(chance)), "draws": RANDOM_DRAWS, "expected rank-1": expected},
    }


@dataclass(frozen=True, slots=True)
class ClassColours:
    """Mean colours of images.

    Attributes:
        colours: (N, 20, 3) CIE L*a*b*, 0 where a class is not shown.
        shown: (N, 20) whether at least `MIN_PIXELS` show it; background never counts.
    """

    colours: Floats
    shown: npt.NDArray[np.bool_]


def class_colours(pairs: Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]) -> ClassColours:
    """Mean colours of images (H, W, 3) RGB by their true label maps (H, W)."""
    means, present = [], []
    for image, labels in pairs:
        small = cv2.resize(image, _SIZE, interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
        flat = cv2.resize(labels, _SIZE, interpolation=cv2.INTER_NEAREST).ravel()
        count = np.bincount(flat, minlength=len(Label))
        total = np.stack([np.bincount(flat, lab[:, channel], minlength=len(Label)) for channel in range(3)], 1)
        shown = count >= MIN_PIXELS
        shown[Label.BACKGROUND] = False
        means.append(np.where(shown[:, None], total / np.maximum(count, 1)[:, None], 0.0))
        present.append(shown)
    return ClassColours(np.array(means, np.float32), np.array(present))


def without_cameras(colours: ClassColours, cameras: npt.NDArray[np.int64]) -> ClassColours:
    """The colours less the mean of each class in each camera, so that a camera's cast does not count."""
    centred = colours.colours.copy()
    for camera in np.unique(cameras):
        rows = cameras == camera
        weight = colours.shown[rows, :, None]
        mean = (centred[rows] * weight).sum(0) / np.maximum(weight.sum(0), 1)
        centred[rows] -= mean
    return ClassColours(np.where(colours.shown[..., None], centred, 0).astype(np.float32), colours.shown)


def oracle_distances(queries: ClassColours, gallery: ClassColours) -> Floats:
    """(Q, G) mean colour difference over the classes that both show, plus `MISSING` for each that one lacks."""
    out = np.empty((len(queries.shown), len(gallery.shown)), np.float32)
    for row, (colour, shown) in enumerate(zip(queries.colours, queries.shown, strict=True)):
        both = shown[None] & gallery.shown
        apart = np.linalg.norm(gallery.colours - colour[None], axis=2)
        shared = np.maximum(both.sum(1), 1)
        out[row] = (apart * both).sum(1) / shared + MISSING * (shown[None] ^ gallery.shown).sum(1)
    return out


def labels_of(dataset: Dataset, record: Record) -> np.ndarray:
    assert dataset.label_maps is not None
    with Image.open((dataset.label_maps / record.path).with_suffix(".png")) as picture:
        return np.asarray(picture)


def numbers(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([record.pid for record in records]), np.array([record.camid for record in records])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=200)
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--work", type=Path, help="folder of the data set; default: a temporary one")
    parser.add_argument("--real", help="another data set to measure the histogram on, as KIND:PATH")
    return parser.parse_args()


if __name__ == "__main__":
    main()
