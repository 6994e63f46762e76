"""Measure the shift between label maps and photographs: the offset at which colours change most.

`python -m tools.parser.offset --shared SHARED [--split train]`
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.parser.clothing import Photograph, is_person, read_photographs

_FAR = 5


def change_by_offset(image: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Return how much colours change between neighbours in a row, by how many pixels right of the person's outlines.

    Args:
        image: (H, W, 3) uint8.
        person: (H, W) bool.

    Returns:
        (11,) mean change at -5 to 5 pixels, zeros where no outline is far enough from the image's sides.
    """
    change = np.abs(np.diff(image.astype(np.float32), axis=1)).sum(2)
    rows, columns = np.nonzero(person[:, 1:] != person[:, :-1])
    inside = (columns >= _FAR) & (columns < change.shape[1] - _FAR)
    rows, columns = rows[inside], columns[inside]
    offsets = np.arange(-_FAR, _FAR + 1)
    if not rows.size:
        return np.zeros(len(offsets), np.float32)
    return np.asarray(change[rows[:, None], columns[:, None] + offsets].mean(0))


def most_change(photographs: Sequence[Photograph]) -> tuple[Counter[int], Counter[int]]:
    """Return at which offset colours change most, counted over photographs: to the right, and downwards."""
    right: Counter[int] = Counter()
    down: Counter[int] = Counter()
    for photograph in photographs:
        person = is_person(photograph.labels)
        for counts, change in (
            (right, change_by_offset(photograph.image, person)),
            (down, change_by_offset(photograph.image.swapaxes(0, 1), person.T)),
        ):
            if change.any():
                counts[int(change.argmax()) - _FAR] += 1
    return right, down


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--shared", type=Path, required=True, help="folder that holds data/clothing_parsing")
    parse.add_argument("--split", default="train", choices=("holdout", "tuning", "train"))
    arguments = parse.parse_args()
    for aligned in (False, True):
        photographs = read_photographs(arguments.shared / "data" / "clothing_parsing", arguments.split, aligned=aligned)
        print("corrected as for training" if aligned else "as published")
        for name, counts in zip(("right", "down"), most_change(photographs), strict=True):
            print(f"  pixels {name}: " + ", ".join(f"{offset:+d} in {n}" for offset, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
