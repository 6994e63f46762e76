"""Draw the README's picture from a finished demo: `python -m tools.overview --masks DIR --synth DIR --eval DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.formats.masks import MaskFile
from pipeline.masks.preview import mask_sheet, spread_names

WIDTH = 1400
ROWS = 4  # queries shown
ROW_HEIGHT = 244  # of a row in the ranking sheets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--masks", type=Path, required=True, help="artifact of the masks stage")
    parser.add_argument("--synth", type=Path, required=True, help="artifact of the synth stage")
    parser.add_argument("--eval", type=Path, required=True, help="artifact of the eval stage")
    parser.add_argument("--out", type=Path, default=Path("docs/images/overview.png"))
    arguments = parser.parse_args()

    file = MaskFile.open(arguments.masks / "masks.h5")
    root = next(path.parent for path in arguments.synth.rglob("dataset.csv"))
    masks = Image.fromarray(mask_sheet(file, root, spread_names(file, 10, seed=3), columns=5))
    rankings = Image.open(next(arguments.eval.rglob("ranking-1.png"))).convert("RGB")
    rankings = rankings.crop((0, 0, rankings.width, ROWS * ROW_HEIGHT))
    picture = np.concatenate([np.asarray(fit(part)) for part in (masks, rankings)])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # 256 colours are enough for a README and a third of the bytes.
    Image.fromarray(picture).quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(arguments.out, optimize=True)


def fit(image: Image.Image) -> Image.Image:
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
