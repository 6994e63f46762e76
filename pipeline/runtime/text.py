"""Text in images, in any script."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int] | str


def draw_text(
    canvas: Image.Image, corner: tuple[int, int], text: str, size: int, colour: Colour, *, width: int | None = None
) -> None:
    """Draw one line of text with its upper left corner at `corner`, cut off at `width` pixels or at the canvas.

    Pillow's built-in font covers Western languages. Other scripts are drawn by OpenCV 5, whose font covers Greek,
    Cyrillic, Chinese, Japanese and Korean, or in older releases with Matplotlib's DejaVu Sans (alphabets only).
    """
    left, top = corner
    right = canvas.width if width is None else min(canvas.width, left + width)
    bottom = min(canvas.height, top + 2 * size)
    if left >= right or top >= bottom:
        return
    line = canvas.crop((left, top, right, bottom))
    if not text.isascii() and hasattr(cv2, "FontFace"):
        line = _draw_with_opencv(line, text, size, colour)
    else:
        font = ImageFont.load_default(size) if text.isascii() else ImageFont.truetype(str(_dejavu()), size)
        ImageDraw.Draw(line).text((0, 0), text, colour, font)
    canvas.paste(line, corner)


def _draw_with_opencv(line: Image.Image, text: str, size: int, colour: Colour) -> Image.Image:
    pixels = np.array(line)
    ink = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    # The stubs know only the signature of OpenCV 4, with its Hershey fonts.
    put_text = cast(Callable[..., Any], cv2.putText)
    put_text(pixels, text, (0, size), ink, cast(Any, cv2).FontFace("sans"), size)
    return Image.fromarray(pixels)


@cache
def _dejavu() -> Path:
    import matplotlib  # slow to import, and rarely needed

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
