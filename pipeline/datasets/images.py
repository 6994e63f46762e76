"""Decode, resize and write images: one set of rules for the whole program.

Images are uint8 RGB. Rules for unusual files:

* The EXIF orientation is applied.
* Grey and palette images become RGB. CMYK is converted without its colour profile.
* Transparent pixels become white.
* 16 bits per channel are reduced to the upper 8; 32-bit and floating-point images are rejected.
* The first page of a TIFF or MPO file is used; animations (GIF, WebP, PNG) are rejected.
* Truncated files, files that are not images, and implausible sizes are rejected.

A JPEG whose compressed data are damaged in the middle can still be decoded to its end; decoders do not detect that.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import ImageError
from pipeline.formats.foreign import DESCRIPTIONS, sniff_stream
from pipeline.runtime.files import atomic_write

RgbImage = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""

Area = tuple[float, float, float, float]
"""Top, left, bottom and right of an image on its canvas, as fractions of the canvas."""

WHOLE_AREA: Area = (0.0, 0.0, 1.0, 1.0)

Fit = Literal["stretch", "pad", "square"]
"""How an image is fitted to a frame: resized to it; resized if its height is 1.6 to 3 times its width, else padded
(`padded_area`); or centred on a black square that is resized."""

PERSON_RATIO = 2.0
"""Height over width of the usual crop of a whole standing person, which fills a frame of any shape."""

PERSON_RATIOS = (1.6, 3.0)
"""Range of the same ratio in which an image is taken for a crop of a whole person. Tight boxes reach 2.7 (VIPeR)."""

PADDING = (124, 116, 104)
"""ImageNet's mean colour, RGB; normalised, it is close to zero."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"})
"""Suffixes of image files, in lower case."""

MIN_SIDE = 8
"""Pixels; less shows nothing of a person."""

MAX_SIDE_RATIO = 20.0
"""The longer side over the shorter one."""

MAX_SIDE = 12_000
"""Pixels. On the black square that some parsers need, a longer side would take gigabytes."""

MAX_PIXELS = 64_000_000
"""More than any crop has; protects, from the header alone, against decompression bombs."""

_LIMITS = (
    f"{MIN_SIDE} to {MAX_SIDE:,} pixels per side, at most {MAX_PIXELS:,} pixels, sides at most 1:{MAX_SIDE_RATIO:g}"
)
# Pillow guesses among dozens of formats, some of which start other programs; data sets need these.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
_SEVERAL_PAGES = frozenset({"TIFF", "MPO"})
_CHUNK = 8

# What Pillow's readers raise on damaged files, found by damaging files.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)

# Pillow warns on stderr about sizes, which are checked here, and about metadata, which is not used.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(path: Path) -> RgbImage:
    """Read an image by the rules above: uint8 RGB of shape (H, W, 3).

    Raises:
        ImageError: The file cannot be read, is truncated, not an image, or of a rejected kind.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return the content of an image file; raises `ImageError` if the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror or error}", where=path) from error


def decode_image(data: bytes, where: Path) -> RgbImage:
    """Decode the bytes of an image file; `where` is its path in errors; raises `ImageError` as in `read_image`."""
    if not data:
        raise ImageError("the file is empty (0 bytes)", where=where)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _refuse_unusable(image, where)
            image.load()
            _turn_upright(image)
    except UnidentifiedImageError:
        raise ImageError(f"not an image: {_describe(data)}", where=where, expected=", ".join(_FORMATS)) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"implausible size: {error}", where=where, expected=_LIMITS) from None
    except _DAMAGE as error:
        raise ImageError(f"the image is truncated or damaged: {error}", where=where) from error
    return pillow_to_rgb(image, where)


def read_resized(path: Path, height: int, width: int) -> RgbImage:
    """Read an image and resize it to (height, width, 3) whatever its proportions.

    Raises:
        ImageError: As in `read_image`.
    """
    return resize(read_image(path), height, width)


def resize(image: RgbImage, height: int, width: int) -> RgbImage:
    """Resize by area averaging if neither side grows, else bilinearly."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def fitted(image: RgbImage, height: int, width: int, fit: Fit) -> tuple[RgbImage, Area]:
    """Fit an image to a frame: return uint8 RGB (height, width, 3), and the area of the image in it."""
    if fit == "square":
        image, area = on_square(image)
        return resize(image, height, width), area
    area = padded_area(image.shape[0], image.shape[1], height, width) if fit == "pad" else WHOLE_AREA
    if area == WHOLE_AREA:
        return resize(image, height, width), area
    top, left, bottom, right = (round(edge * size) for edge, size in zip(area, (height, width) * 2, strict=True))
    frame = np.full((height, width, 3), PADDING, dtype=np.uint8)
    frame[top:bottom, left:right] = resize(image, bottom - top, right - left)
    return frame, area


def is_padded(image_height: int, image_width: int) -> bool:
    """Whether an image is padded: its height over width is outside `PERSON_RATIOS`."""
    return not PERSON_RATIOS[0] <= image_height / image_width <= PERSON_RATIOS[1]


def padded_area(image_height: int, image_width: int, height: int, width: int) -> Area:
    """Return the area of an image in a padded frame of height x width pixels; `WHOLE_AREA` if it fills the frame.

    A crop that ends at the waist and is resized to the whole frame shows a person twice as tall. Crops with a ratio of
    1.6 to 3 fill the frame, because crops of whole people vary by that much. Others get the scale that a crop of
    `PERSON_RATIO` has in the frame, whatever its own shape, and lie at its top, centred.

    Examples:
        >>> padded_area(160, 100, 256, 128)
        (0.0, 0.0, 1.0, 1.0)
        >>> padded_area(100, 100, 256, 128)
        (0.0, 0.0, 0.5, 1.0)
        >>> padded_area(400, 100, 256, 128)
        (0.0, 0.25, 1.0, 0.75)
    """
    if not is_padded(image_height, image_width):
        return WHOLE_AREA
    ratio = image_height / image_width / PERSON_RATIO
    rows = max(round(height * min(ratio, 1.0)), 1)
    columns = max(round(width * min(1.0 / ratio, 1.0)), 1)
    left = (width - columns) // 2
    return 0.0, left / width, rows / height, (left + columns) / width


def on_square(image: RgbImage) -> tuple[RgbImage, Area]:
    """Centre an image on a black square of its longer side, for networks that need its proportions.

    Returns uint8 RGB (L, L, 3) with L = max(H, W), and the area of the image on it.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    canvas = np.zeros((side, side, 3), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = image
    return canvas, (top / side, left / side, (top + height) / side, (left + width) / side)


@dataclass(frozen=True)
class DecodedBatch:
    """Decoded and resized images.

    Attributes:
        start: Position of the first one in the list of paths.
        images: uint8 RGB (B, height, width, 3); black where an image could not be used.
        areas: float64 (B, 4); the `Area` of each image in its frame. With `fit="stretch"` all are `WHOLE_AREA`.
        failed: Why images could not be used, by row.
    """

    start: int
    images: npt.NDArray[np.uint8]
    areas: npt.NDArray[np.float64]
    failed: Mapping[int, str]

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """(B,) which images could be used."""
        good = np.ones(len(self.images), dtype=bool)
        good[list(self.failed)] = False
        return good

    def readable_images(self) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Return the images that could be used, and their positions in the list of paths."""
        good = self.readable
        return self.images if good.all() else self.images[good], (self.start + np.flatnonzero(good)).tolist()


def decode_batches(
    paths: Sequence[Path],
    height: int,
    width: int,
    *,
    batch: int,
    threads: int,
    fit: Fit = "stretch",
) -> Iterator[DecodedBatch]:
    """Decode images in the background, in order, fitted to (height, width) pixels.

    At most three batches exist at a time: the one that the caller uses and two that are being decoded. Decoding
    releases Python's lock, so `threads` (at least 1) run in parallel. The last batch may be smaller.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        pending: deque[_Pending] = deque()
        try:
            for start in range(0, len(paths), batch):
                some = paths[start : start + batch]
                pending.append(_Pending(pool, some, start, (height, width), fit))
                if len(pending) > 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write_image(path: Path, rgb: RgbImage) -> None:
    """Write uint8 (H, W, 3), or (H, W) for grey, atomically in the format of the suffix; `.png` is lossless.

    Raises:
        ImageError: The suffix is not that of an image format.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(
            f"{path.suffix!r} is not the suffix of an image format" if path.suffix else "the name has no suffix",
            where=path,
            expected=" | ".join(sorted(SUFFIXES)),
        )
    image = Image.fromarray(np.ascontiguousarray(rgb))
    with atomic_write(path) as temporary:
        # Colour at full resolution: at the size of a person crop, subsampling is visible.
        image.save(temporary, quality=95, subsampling=0)


class _Pending:
    """A batch in progress: its images are decoded in chunks, directly into their rows."""

    def __init__(
        self, pool: ThreadPoolExecutor, paths: Sequence[Path], start: int, size: tuple[int, int], fit: Fit
    ) -> None:
        self._paths, self._fit = paths, fit
        images = np.empty((len(paths), *size, 3), dtype=np.uint8)
        self._batch = DecodedBatch(start, images, np.tile(np.array(WHOLE_AREA), (len(paths), 1)), {})
        rows = range(len(paths))
        self._chunks: list[Future[dict[int, str]]] = [
            pool.submit(self._decode, rows[first : first + _CHUNK]) for first in range(0, len(rows), _CHUNK)
        ]

    def _decode(self, rows: range) -> dict[int, str]:
        failed, images = {}, self._batch.images
        for row in rows:
            try:
                image = read_image(self._paths[row])
                images[row], self._batch.areas[row] = fitted(image, images.shape[1], images.shape[2], self._fit)
            except ImageError as error:
                failed[row] = error.message
                images[row] = 0
        return failed

    def result(self) -> DecodedBatch:
        failed = {row: reason for chunk in self._chunks for row, reason in chunk.result().items()}
        return replace(self._batch, failed=failed)


def _refuse_unusable(image: Image.Image, where: Path) -> None:
    width, height = image.size
    shorter, longer = sorted((width, height))
    limits = (
        (width * height > MAX_PIXELS, f"at most {MAX_PIXELS:,} pixels"),
        (shorter < MIN_SIDE, f"at least {MIN_SIDE} pixels per side"),
        (longer > MAX_SIDE, f"at most {MAX_SIDE:,} pixels per side"),
        (longer > MAX_SIDE_RATIO * shorter, f"one side at most {MAX_SIDE_RATIO:g} times the other"),
    )
    for passed, limit in limits:
        if passed:
            raise ImageError(f"implausible size: {width}x{height} pixels ({limit})", where=where, expected=_LIMITS)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _SEVERAL_PAGES:
        raise ImageError(f"an animation of {frames} frames", where=where, expected="a still image")


def _turn_upright(image: Image.Image) -> None:
    # With damaged metadata, the image is used without rotation.
    with contextlib.suppress(*_DAMAGE):
        ImageOps.exif_transpose(image, in_place=True)


def pillow_to_rgb(image: Image.Image, where: Path) -> RgbImage:
    """Convert a Pillow image by the rules above; `where` names it in errors.

    Raises:
        ImageError: Its pixels are of a kind that is refused.
    """
    if image.mode == "RGB":
        return np.array(image, dtype=np.uint8)
    # Pillow gives the 16 bits of a PGM file in 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(upper[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ImageError(f"{image.mode!r}-mode pixels of 32 bits", where=where, expected="8 or 16 bits per channel")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _describe(data: bytes) -> str:
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes"
    if data[4:8] == b"ftyp":
        return f"an ISO media file of brand {data[8:12].decode('latin-1')!r} (HEIC, AVIF or a video)"
    content = sniff_stream(io.BytesIO(data))
    return "unknown format" if content == "unknown" else DESCRIPTIONS[content]
