"""How hard a rendered data set is for somebody who knows where every garment is, but only its mean colour.

Such an oracle has perfect masks and no texture, shape or learning. If it found most people, the data set would be a
test of colours; look-alikes are drawn so that it does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from sgsfa_synth.mesh import Label

Floats = npt.NDArray[np.float32]

MIN_PIXELS = 12
"""Pixels of a class, at a quarter of 256 x 128, from which its colour counts."""

MISSING = 8.0
"""Distance, in units of CIE L*a*b*, for each class that only one of two images shows."""

_SIZE = (64, 128)


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
