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
    """Thumbnails and masks of a page; an image is read once.

    Attributes:
        images: Thumbnails as data URLs.
        masks: Part masks in base64.
        mask_size: Rows and columns of a mask.
        unreadable: Images that cannot be read.
    """

    def __init__(self) -> None:
        self.images: list[str] = []
        self.masks: list[str] = []
        self.mask_size = (0, 0)
        self.unreadable: list[Path] = []
        self._image_places: dict[Path, int | None] = {}
        self._mask_places: dict[Path, int] = {}

    @property
    def size(self) -> int:
        """Bytes of all thumbnails and masks."""
        return sum(map(len, self.images)) + sum(map(len, self.masks))

    def image(self, path: Path) -> int | None:
        """Return the place of an image's thumbnail in `images`; None if it cannot be read."""
        if path not in self._image_places:
            try:
                self.images.append(thumbnail(path))
                self._image_places[path] = len(self.images) - 1
            except ImageError:
                self.unreadable.append(path)
                self._image_places[path] = None
        return self._image_places[path]

    def mask(self, path: Path) -> int | None:
        """Return the place of an image's part masks in `masks`; None without any."""
        return self._mask_places.get(path)

    def add_masks(self, paths: Sequence[Path], compute: MaskFunction) -> None:
        """Compute the part masks of the readable ones of some images."""
        missing = [
            path for path in dict.fromkeys(paths) if path not in self._mask_places and self.image(path) is not None
        ]
        if not missing:
            return
        masks = compute(missing)
        rows, columns = masks.shape[2:]
        self.mask_size = (rows, columns)
        for path, each in zip(missing, masks, strict=True):
            self._mask_places[path] = len(self.masks)
            self.masks.append(base64.b64encode(each.tobytes()).decode("ascii"))


def thumbnail(path: Path) -> str:
    """Return an image as the data URL of a small JPEG.

    Raises:
        ImageError: The image cannot be read.
    """
    pixels = cv2.cvtColor(read_resized(path, HEIGHT, WIDTH), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
