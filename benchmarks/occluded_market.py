"""Build "occluded Market" and "truncated Market" from a development split.

`python -m benchmarks.occluded_market --data csv:dev_split.csv --out DIR` writes two data sets of the kind `csv`, each
with the gallery as it is. Everything is decided by a fixed seed. The images are of real people: for measurements only.

`DIR/dataset.csv`: a third of the queries is truncated and resized to the whole frame, the others have an object or a
person in front (`tools/occluders.py`: kinds and people that are not in the training sheet), or another person of the
test set. `DIR/truth.npz` holds the part masks that the built-in parser found on the clean queries, moved and covered
with their pixels.

`DIR/truncated/dataset.csv`: all queries are cropped to their upper part or to one side, and keep their proportions.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.config import MasksConfig, TrainConfig
from pipeline.datasets.images import RgbImage, decode_batches, read_image
from pipeline.datasets.records import Dataset, Record
from pipeline.datasets.registry import open_dataset
from pipeline.formats.masks import MaskFile
from pipeline.masks.build import build_masks
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.normalise import IMAGENET_MEAN, IMAGENET_STD
from pipeline.runtime.seeds import generator, rng
from pipeline.training.augment import AugmentParams, Rectangles, augment, draw_params
from pipeline.training.occluders import read_tiles

HEIGHT, WIDTH = 256, 128
Box = tuple[float, float, float, float]
"""Top, bottom, left and right as shares of the image."""

TILES = Path(__file__).with_name("occluders.webp")
SETTINGS = TrainConfig(flip=0, pad=0, erase=0, colour_jitter=0, occlude=1, occlude_people=0.3, truncate=1)
SEED = 17
CHUNK = 64

PLACES = {"below": 0.5, "side": 0.25, "above": 0.15, "front": 0.1}
"""Where occluders stand, and how often."""

TRUNCATED_HEIGHT = (0.3, 0.75)
TRUNCATED_WIDTH = (0.5, 0.8)
CUT_BELOW = 0.75
"""Share of truncated queries that are cut below; the others lose a side."""


def draw(count: int, tiles: int) -> AugmentParams:
    """Parameters of all queries: every third is truncated, the others are occluded; both harder than in training."""
    params = draw_params(generator(SEED, "occluded market"), count, HEIGHT, WIDTH, SETTINGS, tiles=tiles)
    random = rng(SEED, "occluded market")
    boxes = np.array([_kept(random) if i % 3 == 0 else (0.0, 1.0, 0.0, 1.0) for i in range(count)])
    occluders = np.array([(0.0,) * 4 if i % 3 == 0 else _occluder(random) for i in range(count)])
    return replace(params, kept=_rectangles(boxes), occluder=_rectangles(occluders))


def _rectangles(shares: np.ndarray) -> Rectangles:
    """(N, 4) top, bottom, left and right as shares of the image."""
    edges = torch.from_numpy(shares * (HEIGHT, HEIGHT, WIDTH, WIDTH)).float()
    return Rectangles(*edges.unbind(1))


def _kept(random: np.random.Generator) -> Box:
    """What a truncated query keeps: the upper part, or one side."""
    if random.random() < CUT_BELOW:
        return 0.0, random.uniform(*TRUNCATED_HEIGHT), 0.0, 1.0
    left = random.integers(2) * (1 - (width := random.uniform(*TRUNCATED_WIDTH)))
    return 0.0, 1.0, left, left + width


def _occluder(random: np.random.Generator) -> Box:
    """Where an occluder stands."""
    place = random.choice(list(PLACES), p=list(PLACES.values()))
    middle = random.uniform(0.35, 0.65)
    if place == "side":
        width, covered, top = random.uniform(0.5, 0.9), random.uniform(0.35, 0.65), random.uniform(-0.1, 0.3)
        left = covered - width if random.random() < 0.5 else 1 - covered
        return top, random.uniform(1.0, 1.2), left, left + width
    half = random.uniform(0.3 if place == "front" else 0.45, 0.8) * (0.75 if place == "front" else 1.0)
    if place == "below":
        return 1 - random.uniform(0.3, 0.75), random.uniform(1.0, 1.2), middle - half, middle + half
    if place == "above":
        return random.uniform(-0.3, 0.0), random.uniform(0.2, 0.45), middle - half, middle + half
    top = random.uniform(0.0, 0.6)
    return top, top + random.uniform(0.25, 0.45), middle - half, middle + half


def occlude(images: Tensor, parts: Tensor, body: Tensor) -> tuple[Tensor, Tensor]:
    """Occlude or truncate images.

    Args:
        images: (N, 256, 128, 3) uint8.
        parts: (N, 4, 16, 8) uint8 part masks.
        body: (N, 1, 64, 32) uint8 body masks.

    Returns:
        Images and part masks of the same shapes and types.
    """
    tiles = read_tiles(TILES)
    params = draw(len(images), len(tiles))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    found = []
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        donors = params.donor[rows].clamp_min(0)
        sources, *targets = (torch.cat([each[rows], each[donors]]) for each in (images, parts, body))
        masks = MaskTargets(*targets, torch.ones(len(sources), dtype=torch.bool), torch.ones(4, dtype=torch.bool))
        normal, left = augment(sources, masks, params.take(rows), tiles)
        pixels = ((normal * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        found.append((pixels.permute(0, 2, 3, 1), (left.parts * 255).round().to(torch.uint8)))
    return torch.cat([pixels for pixels, _ in found]), torch.cat([left for _, left in found])


def build(dataset: Dataset, out: Path, device: str) -> None:
    """Write both data sets; `device` is where the parser works."""
    out.mkdir(parents=True, exist_ok=True)
    masks, names = out / "masks.h5", [record.path for record in dataset.split("query")]
    build_masks(masks, root=dataset.root, names=names, config=MasksConfig(device=device))
    stored = MaskFile.open(masks)
    row_of = {name: row for row, name in enumerate(stored.names)}
    queries = sorted(dataset.split("query"), key=lambda record: record.path)
    rows = np.array([row_of[record.path] for record in queries])
    paths = [dataset.path_of(record) for record in queries]
    images = np.concatenate([batch.images for batch in decode_batches(paths, HEIGHT, WIDTH, batch=256, threads=4)])
    parts, body = torch.from_numpy(stored.parts[rows]), torch.from_numpy(stored.body[rows])[:, None]
    occluded, left = occlude(torch.from_numpy(images), parts, body)
    names = write(dataset, out, queries, list(occluded.numpy()))
    truncated = np.arange(len(names)) % 3 == 0
    np.savez_compressed(out / "truth.npz", names=np.array(names), parts=left.numpy(), truncated=truncated)
    random = rng(SEED, "truncated market")
    write(dataset, out / "truncated", queries, [cropped(read_image(path), _kept(random)) for path in paths])


def cropped(image: RgbImage, box: Box) -> RgbImage:
    """Return what a box keeps of an image, in whole pixels."""
    height, width = image.shape[:2]
    top, bottom, left, right = (
        round(share * side) for share, side in zip(box, (height,) * 2 + (width,) * 2, strict=True)
    )
    return image[top:bottom, left:right]


def write(dataset: Dataset, out: Path, queries: Sequence[Record], images: Sequence[RgbImage]) -> list[str]:
    """Write a data set of queries with new images and of the gallery as it is; return the names of the queries."""
    lines = []
    (out / "query").mkdir(exist_ok=True, parents=True)
    for record, pixels in zip(queries, images, strict=True):
        name = f"query/{Path(record.path).stem}.jpg"
        Image.fromarray(pixels).save(out / name, quality=95)
        lines.append((name, record.pid, record.camid, "query"))
    (out / "gallery").mkdir(exist_ok=True)
    for record in dataset.split("gallery"):
        name = f"gallery/{Path(record.path).name}"
        shutil.copyfile(dataset.path_of(record), out / name)
        lines.append((name, record.pid, record.camid, "gallery"))
    with (out / "dataset.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "pid", "camid", "split"), *lines])
    print(f"{out}: {len(queries):,} queries, {len(lines) - len(queries):,} gallery images")
    return [line[0] for line in lines if line[3] == "query"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="the split whose queries are occluded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    build(open_dataset(arguments.data), arguments.out, arguments.device)


if __name__ == "__main__":
    main()
