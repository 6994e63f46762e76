"""Contact sheets of masks: the image, its body mask, and its four parts as an overlay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.datasets.images import RgbImage, read_image, resize
from pipeline.errors import DataError, ImageError
from pipeline.formats.masks import OK, PART_NAMES, MaskFile
from pipeline.runtime.text import draw_text

HEIGHT, WIDTH = 192, 96
PART_COLOURS: dict[str, tuple[int, int, int]] = {
    "head": (230, 60, 60),
    "upper": (60, 170, 70),
    "lower": (50, 110, 230),
    "shoes": (240, 190, 40),
}

_GAP, _CAPTION, _LEGEND = 8, 30, 24
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_OPACITY = 0.65
# Larger sheets cannot be opened by many viewers.
_MOST_IMAGES = 400


def mask_sheet(masks: MaskFile, root: Path, names: Sequence[str], *, columns: int = 5) -> RgbImage:
    """Draw some images in this order, `columns` per row: the image below `root`, its body mask, its parts over it.

    Raises:
        DataError: There are no images to draw or too many, or none of them exists below `root`.
        FormatError: One is not in the file.
    """
    if not 0 < len(names) <= _MOST_IMAGES:
        raise DataError(f"{len(names)} images to draw", expected=f"1 to {_MOST_IMAGES}")
    if not any((root / name).is_file() for name in names):
        raise DataError(
            f"none of the {len(names)} images exists, first {names[0]!r}",
            where=root,
            expected="the data set or folder that the masks were built from",
        )
    cell_width, cell_height = 3 * WIDTH + 2 * _GAP, HEIGHT + _CAPTION + _GAP
    rows = -(-len(names) // columns)
    used = min(columns, len(names))
    size = (_GAP + used * (cell_width + _GAP), _LEGEND + rows * cell_height + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_legend(draw, masks)
    for number, name in enumerate(names):
        left = _GAP + number % columns * (cell_width + _GAP)
        top = _LEGEND + number // columns * cell_height + _GAP
        _draw_cell(sheet, draw, masks, masks.index(name), root / name, (left, top))
    return np.array(sheet, dtype=np.uint8)


def spread_names(masks: MaskFile, count: int, *, seed: int | None = None) -> tuple[str, ...]:
    """Return some images with masks, evenly spread or drawn at random with a seed; in file order."""
    good = np.flatnonzero(masks.status == OK)
    if len(good) > count:
        if seed is None:
            good = good[np.arange(count) * len(good) // count]
        else:
            good = np.sort(np.random.default_rng(seed).choice(good, count, replace=False))
    return tuple(masks.names[row] for row in good.tolist())


def overlay(image: RgbImage, parts: NDArray[np.uint8]) -> RgbImage:
    """Draw part masks (4, h, w) over an image (H, W, 3), all uint8.

    Each cell is tinted in its parts' colours, in proportion to their occupancy.
    """
    colours = np.array([PART_COLOURS[name] for name in PART_NAMES], np.float32)
    weights = np.stack([_enlarge(part, image.shape[:2]) for part in parts]).astype(np.float32) / 255
    # Parts of one label set add up to at most 1; overlapping fields may not.
    weights /= np.maximum(weights.sum(axis=0), 1)
    tint = np.tensordot(weights, colours, axes=(0, 0))
    strength = weights.sum(axis=0)[:, :, None]
    mixed = image * (1 - _OPACITY * strength) + _OPACITY * tint
    return np.asarray(np.clip(np.rint(mixed), 0, 255), dtype=np.uint8)


def _draw_legend(draw: ImageDraw.ImageDraw, masks: MaskFile) -> None:
    left = _GAP
    font = ImageFont.load_default(13)
    for name in PART_NAMES:
        draw.rectangle((left, 7, left + 12, 19), fill=PART_COLOURS[name])
        label = f"{name} (not in the labels)" if name in masks.absent_parts else name
        draw.text((left + 17, 4), label, fill=_INK, font=font)
        left += 34 + int(draw.textlength(label, font=font))


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, masks: MaskFile, row: int, path: Path, corner: tuple[int, int]
) -> None:
    left, top = corner
    small = ImageFont.load_default(11)
    try:
        image = resize(read_image(path), HEIGHT, WIDTH)
    except ImageError:
        image = np.full((HEIGHT, WIDTH, 3), 235, np.uint8)
        draw_note = "unreadable"
    else:
        draw_note = "" if masks.status[row] == OK else "no masks"
    body = np.repeat(_enlarge(masks.body[row], (HEIGHT, WIDTH))[:, :, None], 3, axis=2)
    for panel, pixels in enumerate((image, body, overlay(image, masks.parts[row]))):
        sheet.paste(Image.fromarray(pixels), (left + panel * (WIDTH + _GAP), top))
    if draw_note:
        draw.text((left + 8, top + HEIGHT // 2), draw_note, fill=_INK, font=small)
    name = PurePosixPath(masks.names[row]).name
    shown = name if len(name) <= 44 else f"{name[:20]}...{name[-21:]}"
    draw_text(sheet, (left, top + HEIGHT + 1), shown, 11, _INK, width=3 * WIDTH + 2 * _GAP)
    area = masks.body[row].mean() / 255
    draw.text((left, top + HEIGHT + 14), f"quality {masks.quality[row]:.2f}  area {area:.0%}", fill=_FAINT, font=small)


def _enlarge(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    enlarged = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.array(enlarged, dtype=np.uint8)
