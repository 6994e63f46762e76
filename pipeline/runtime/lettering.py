"""Names of files in pictures, in whatever script they are written."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int] | str


def write_text(
    canvas: Image.Image, corner: tuple[int, int], text: str, size: int, colour: Colour, width: int | None = None
) -> None:
    """Write a line with its upper left corner at `corner`, cut off at `width` pixels or where the canvas ends.

    Pillow's own font has the letters of Western languages. Others come from OpenCV, whose release 5 brings a font with
    Greek, Cyrillic, Chinese, Japanese and Korean, and before that release from Matplotlib's DejaVu Sans, which has the
    alphabets but no Chinese.
    """
    left, top = corner
    right = canvas.width if width is None else min(canvas.width, left + width)
    bottom = min(canvas.height, top + 2 * size)
    if left >= right or top >= bottom:
        return
    line = canvas.crop((left, top, right, bottom))
    if not text.isascii() and hasattr(cv2, "FontFace"):
        line = _with_opencv(line, text, size, colour)
    else:
        font = ImageFont.load_default(size) if text.isascii() else ImageFont.truetype(str(_dejavu()), size)
        ImageDraw.Draw(line).text((0, 0), text, colour, font)
    canvas.paste(line, corner)


def _with_opencv(line: Image.Image, text: str, size: int, colour: Colour) -> Image.Image:
    pixels = np.array(line)
    ink = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    # The stubs know only the call of release 4, with one of Hershey's fonts.
    put = cast(Callable[..., Any], cv2.putText)
    put(pixels, text, (0, size), ink, cast(Any, cv2).FontFace("sans"), size)
    return Image.fromarray(pixels)


@cache
def _dejavu() -> Path:
    import matplotlib  # Heavy, and rarely needed.

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
