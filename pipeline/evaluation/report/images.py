"""The images of a page: thumbnails and part masks, each stored once, within a size that a browser opens at once."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.datasets.images import read_resized
from pipeline.errors import ImageError

HEIGHT, WIDTH = 128, 64
"""Size of a thumbnail in pixels."""

MAX_BYTES = 13_000_000
"""Most bytes of thumbnails and masks together; the whole page stays below 15 MB."""

_QUALITY = 80

MaskFunction = Callable[[Sequence[Path]], npt.NDArray[np.uint8]]
"""Part masks (N, 4, h, w) of image files, 255 where the network is certain of the part."""


class ImageStore:
    """Thumbnails and masks of a page, each image once.

    Attributes:
        images: Thumbnails as data URLs.
        masks: Part masks of the same images in base64; empty without a network.
        mask_size: Rows and columns of a mask.
        unreadable: Images that cannot be read.
    """

    def __init__(self, compute: MaskFunction | None = None) -> None:
        self.images: list[str] = []
        self.masks: list[str] = []
        self.mask_size = (0, 0)
        self.unreadable: list[Path] = []
        self._compute = compute
        self._places: dict[Path, int | None] = {}

    @property
    def size(self) -> int:
        """Bytes of all thumbnails and masks."""
        return sum(map(len, self.images)) + sum(map(len, self.masks))

    def add(self, paths: Sequence[Path]) -> list[int | None]:
        """Return the places of images in `images` and `masks`; None for those that cannot be read."""
        new = []
        for path in dict.fromkeys(paths):
            if path not in self._places:
                self._places[path] = None
                try:
                    self.images.append(thumbnail(path))
                except ImageError:
                    self.unreadable.append(path)
                else:
                    self._places[path] = len(self.images) - 1
                    new.append(path)
        if new and self._compute is not None:
            masks = self._compute(new)
            self.mask_size = (masks.shape[2], masks.shape[3])
            self.masks += [base64.b64encode(each.tobytes()).decode("ascii") for each in masks]
        return [self._places[path] for path in paths]


def thumbnail(path: Path) -> str:
    """Return an image as the data URL of a small JPEG.

    Raises:
        ImageError: The image cannot be read.
    """
    pixels = cv2.cvtColor(read_resized(path, HEIGHT, WIDTH), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
