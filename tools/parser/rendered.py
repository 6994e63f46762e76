"""Rendered people for the parser's training: true labels, true occlusions, people seen from all sides."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.config import SynthConfig
from sgsfa_synth.dataset import render_dataset
from tools.parser.crops import HEIGHT, WIDTH, Crop


def make_rendered(folder: Path, settings: SynthConfig) -> None:
    """Render the images that are not in the folder yet."""
    render_dataset(folder, settings)


def read_rendered(folder: Path) -> list[Crop]:
    """Return all images of a folder that `sgsfa_synth.dataset.render_dataset` wrote, with their label maps."""
    crops = []
    for path in sorted((folder / "labels").rglob("*.png")):
        photograph = (folder / path.relative_to(folder / "labels")).with_suffix(".jpg")
        image, labels = cv2.imread(str(photograph)), _indices(path)
        if image is None:
            raise ValueError(f"{photograph} cannot be read")
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        crops.append(
            Crop(
                cv2.resize(rgb, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR),
                cv2.resize(labels, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST),
            )
        )
    return crops


def _indices(path: Path) -> np.ndarray:
    # OpenCV would turn the indices of a palette into its colours.
    with Image.open(path) as picture:
        return np.asarray(picture, np.uint8)
