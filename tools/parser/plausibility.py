"""Check a parser on pedestrian crops without labels: are its masks of the size and in the order of people's parts?

`python -m tools.parser.plausibility FOLDER [--sample 2000] [--weights FILE] [--sheet FILE.png]`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.datasets.images import read_resized
from pipeline.parsing.builtin import load_builtin, load_builtin_from
from pipeline.parsing.parser import Parser
from tools.parser.losses import PARTS

_BATCH = 32
_COLOURS = np.array([(0, 0, 0), (230, 60, 60), (70, 130, 250), (60, 190, 80), (250, 200, 40)], np.float32)


@dataclass(frozen=True, slots=True)
class Plausibility:
    """Shares of the images looked at.

    Attributes:
        images: How many were looked at.
        area_plausible: The whole body takes 12 to 75 % of the image.
        all_parts: All four parts have a mask (at 16 x 8, threshold one half).
        ordered: Of those, the centres of head, upper body, lower body and shoes lie one below the other.
    """

    images: int
    area_plausible: float
    all_parts: float
    ordered: float


def part_probabilities(parser: Parser, paths: Sequence[Path]) -> np.ndarray:
    """Return (N, 5, 64, 32) float32: background, head, upper body, lower body, shoes."""
    height, width = parser.input_size
    rows = []
    for start in range(0, len(paths), _BATCH):
        images = np.stack([read_resized(path, height, width) for path in paths[start : start + _BATCH]])
        soft = parser.parse(images).cpu().numpy()
        rows.append(np.stack([soft[:, 0], *(soft[:, list(ids)].sum(1) for ids in PARTS)], 1))
    return np.concatenate(rows)


def plausibility(parts: np.ndarray) -> tuple[Plausibility, np.ndarray]:
    """Return the figures, and for each image the area of the whole body as a share of the image: (N,)."""
    area = (1 - parts[:, 0] >= 0.5).mean((1, 2))
    masks = parts[:, 1:].reshape(len(parts), 4, 16, 4, 8, 4).mean((3, 5)) >= 0.5
    sizes = masks.sum((2, 3))
    shown = (sizes > 0).all(1)
    centres = (masks * np.arange(16)[:, None]).sum((2, 3)) / np.maximum(sizes, 1)
    ordered = (np.diff(centres, axis=1) > 0).all(1)
    figures = Plausibility(
        images=len(parts),
        area_plausible=round(float(((area >= 0.12) & (area <= 0.75)).mean()), 4),
        all_parts=round(float(shown.mean()), 4),
        ordered=round(float(ordered[shown].mean()), 4) if shown.any() else 0.0,
    )
    return figures, area


def contact_sheet(paths: Sequence[Path], parts: np.ndarray, *, columns: int = 20) -> np.ndarray:
    """Return images beside their parts in colours: (H, W, 3) uint8, RGB."""
    tiles = []
    for path, soft in zip(paths, parts, strict=True):
        image = read_resized(path, 128, 64).astype(np.float32)
        label = cv2.resize(soft.transpose(1, 2, 0), (64, 128), interpolation=cv2.INTER_LINEAR).argmax(2)
        overlay = np.where(label[..., None] > 0, 0.35 * image + 0.65 * _COLOURS[label], 0.7 * image)
        tiles.append(np.hstack([image, overlay]).astype(np.uint8))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("folder", type=Path)
    parse.add_argument("--sample", type=int, default=2000)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--weights", type=Path, help="default: those of the package")
    parse.add_argument("--sheet", type=Path, help="PNG of the first 100 images of the sample; WORST beside it")
    arguments = parse.parse_args()
    parser = load_builtin_from(arguments.weights) if arguments.weights else load_builtin()
    paths = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    order = np.random.default_rng(arguments.seed).permutation(len(paths))[: arguments.sample]
    chosen = [paths[index] for index in order]
    parts = part_probabilities(parser, chosen)
    figures, area = plausibility(parts)
    print(json.dumps(asdict(figures), indent=2))
    if arguments.sheet:
        worst = np.argsort(-np.abs(area - np.median(area)))[:60]
        for path, indices in (
            (arguments.sheet, np.arange(min(100, len(chosen)))),
            (arguments.sheet.with_stem(arguments.sheet.stem + "-worst"), worst),
        ):
            sheet = contact_sheet([chosen[index] for index in indices], parts[indices])
            cv2.imwrite(str(path), sheet[..., ::-1])


if __name__ == "__main__":
    main()
