"""Measure a parser on photographs it was not trained on: by part, and with things pasted in front.

`python -m tools.parser.evaluate --shared SHARED [--weights FILE] [--split holdout] [--out FILE.json]`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.parsing.builtin import load_builtin, load_builtin_from
from pipeline.parsing.labels import PART_NAMES
from pipeline.parsing.parser import Parser
from tools.parser import occluders, textures
from tools.parser.clothing import Photograph, is_person, read_photographs
from tools.parser.crops import HEIGHT, WIDTH, Crop, background_piece, behind, cut, lit
from tools.parser.losses import PARTS
from tools.parser.occluders import Occluder

_BATCH = 32


def measure(parser: Parser, photographs: Sequence[Photograph]) -> dict[str, float]:
    """Return the IoU of body (64 x 32) and parts (16 x 8) at threshold one half, by pixel and by image.

    Boxes are those of the labels, brought to 128 x 64 before they reach the parser.
    """
    names = ("body", *PART_NAMES)
    both, either = np.zeros((len(photographs), 5)), np.zeros((len(photographs), 5))
    crops = (_box_of(photograph) for photograph in photographs)
    for row, (soft, labels) in enumerate(_parsed(parser, crops)):
        for column, (found, truth) in enumerate(zip(_masks_of_soft(soft), _masks_of_labels(labels), strict=True)):
            both[row, column] = (found & truth).sum()
            either[row, column] = (found | truth).sum()
    pooled = both.sum(0) / either.sum(0)
    by_image = np.nanmean(np.where(either > 0, both / np.maximum(either, 1), np.nan), 0)
    return {
        **{name: round(float(value), 4) for name, value in zip(names, pooled, strict=True)},
        **{f"{name}_by_image": round(float(value), 4) for name, value in zip(names, by_image, strict=True)},
    }


def measure_occluded(
    parser: Parser,
    photographs: Sequence[Photograph],
    *,
    kinds: Sequence[occluders.Kind] = occluders.RESERVED,
    paints: Sequence[textures.Texture] = textures.RESERVED,
    repeats: int = 3,
    seed: int = 11,
) -> dict[str, float]:
    """Return with pasted occluders: IoU of what is left of the person, and the share of the occluder called person.

    Half of the occluders are covered with a texture, half with a piece of these photographs' own backgrounds. Those
    that cover less than 8 % or more than 60 % of the person are drawn again.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        _occlude(rng, photograph, photographs, kinds, paints) for photograph in photographs for _ in range(repeats)
    ]
    both = either = called = area = called_on_body = area_on_body = 0
    parsed = _parsed(parser, ((covered.image, covered.labels) for covered, _, _ in drawn))
    for (soft, labels), (_, opacity, body) in zip(parsed, drawn, strict=True):
        found, truth = _masks_of_soft(soft)[0], _masks_of_labels(labels)[0]
        front = _area(opacity, 64, 32) >= 0.5
        on_body = front & (_area(body.astype(np.float32), 64, 32) >= 0.5)
        both += int((found & truth).sum())
        either += int((found | truth).sum())
        called += int((found & front).sum())
        area += int(front.sum())
        called_on_body += int((found & on_body).sum())
        area_on_body += int(on_body.sum())
    return {
        "body": round(both / either, 4),
        "occluder_called_person": round(called / area, 4),
        "occluder_called_person_where_it_hides_the_person": round(called_on_body / area_on_body, 4),
        "images": len(drawn),
    }


def _occlude(
    rng: np.random.Generator,
    photograph: Photograph,
    photographs: Sequence[Photograph],
    kinds: Sequence[occluders.Kind],
    paints: Sequence[textures.Texture],
) -> tuple[Crop, np.ndarray, np.ndarray]:
    crop = cut(photograph, photograph.box)
    person = is_person(crop.labels)
    while True:
        texture = paints[int(rng.integers(len(paints)))]
        piece = rng.random() < 0.5

        def paint(height: int, width: int, texture: textures.Texture = texture, piece: bool = piece) -> np.ndarray:
            if piece:
                return background_piece(rng, photographs, height, width)
            return texture(rng, height, width)

        kind = kinds[int(rng.integers(len(kinds)))]
        occluder: Occluder = lit(rng, kind(rng, HEIGHT, WIDTH, paint))
        hidden = ((occluder.opacity >= 0.5) & person).sum() / person.sum()
        if 0.08 <= hidden <= 0.6:
            return behind(crop, occluder), (occluder.opacity >= 0.5).astype(np.float32), person


def _box_of(photograph: Photograph) -> tuple[np.ndarray, np.ndarray]:
    left, top, right, bottom = photograph.box
    return photograph.image[top:bottom, left:right], photograph.labels[top:bottom, left:right]


def _parsed(parser: Parser, crops: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    height, width = parser.input_size
    images, labels = [], []
    for image, label in crops:
        small = cv2.resize(image, (64, 128), interpolation=cv2.INTER_AREA)
        images.append(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
        labels.append(label)
    for start in range(0, len(images), _BATCH):
        soft = parser.parse(np.stack(images[start : start + _BATCH])).cpu().numpy()
        yield from zip(soft, labels[start : start + _BATCH], strict=True)


def _masks_of_soft(soft: np.ndarray) -> list[np.ndarray]:
    masks = [1 - soft[0] >= 0.5]
    for ids in PARTS:
        occupancy = soft[list(ids)].sum(0).reshape(16, 4, 8, 4).mean((1, 3))
        masks.append(occupancy >= 0.5)
    return masks


def _masks_of_labels(labels: np.ndarray) -> list[np.ndarray]:
    masks = [_area(is_person(labels).astype(np.float32), 64, 32) >= 0.5]
    masks += [_area(np.isin(labels, ids).astype(np.float32), 16, 8) >= 0.5 for ids in PARTS]
    return masks


def _area(values: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--shared", type=Path, required=True, help="folder that holds data/clothing_parsing")
    parse.add_argument("--weights", type=Path, help="default: those of the package")
    parse.add_argument("--split", default="holdout", choices=("holdout", "tuning", "train"))
    parse.add_argument("--fp32", action="store_true", help="not bfloat16")
    parse.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parse.parse_args()
    half = False if arguments.fp32 else None
    parser = load_builtin_from(arguments.weights, half=half) if arguments.weights else load_builtin(half=half)
    folder = arguments.shared / "data" / "clothing_parsing"
    photographs = read_photographs(folder, arguments.split)
    figures = {
        "split": arguments.split,
        "photographs": len(photographs),
        "precision": parser.info.precision,
        "weights_sha256": parser.info.weights_sha256,
        "plain": measure(parser, photographs),
        "plain_labels_as_published": measure(parser, read_photographs(folder, arguments.split, aligned=False)),
        "occluded": measure_occluded(parser, photographs),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
