"""Ranking figures: the query on the left, its ten nearest on the right, framed green (correct) or red (wrong)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.datasets.images import read_resized, write_image
from pipeline.runtime.text import draw_text

ROWS_PER_FIGURE = 8

_HEIGHT, _WIDTH = 192, 96
_FRAME, _GAP, _TEXT = 4, 10, 34
_SIDE = 170
"""Width of the query's column, which names its visible parts."""

_CORRECT, _WRONG, _QUERY, _INK = (0, 140, 60), (200, 30, 40), (90, 90, 90), (30, 30, 30)


@dataclass(frozen=True, slots=True)
class RankedQuery:
    """A query and its nearest gallery images; names are relative to the data set's root.

    Attributes:
        title: Identity, camera and AP.
        parts: Names of its visible parts, separated by blanks.
        captions: A line for each gallery image.
    """

    name: str
    title: str
    parts: str
    gallery: tuple[str, ...]
    captions: tuple[str, ...]
    distances: tuple[float, ...]
    correct: tuple[bool, ...]


def draw_rankings(out: Path, root: Path, rankings: Sequence[RankedQuery]) -> tuple[str, ...]:
    """Write `ranking-1.png` and so on into `out` and return their names.

    Raises:
        ImageError: An image of the data set cannot be read.
    """
    names = []
    for number, start in enumerate(range(0, len(rankings), ROWS_PER_FIGURE), start=1):
        name = f"ranking-{number}.png"
        write_image(out / name, ranking_figure(root, rankings[start : start + ROWS_PER_FIGURE]))
        names.append(name)
    return tuple(names)


def ranking_figure(root: Path, rankings: Sequence[RankedQuery]) -> npt.NDArray[np.uint8]:
    """Draw rankings as one image (H,W,3) uint8."""
    columns = max(len(ranking.gallery) for ranking in rankings)
    row_height = _HEIGHT + 2 * _FRAME + _TEXT + _GAP
    width = 2 * _GAP + _SIDE + columns * (_WIDTH + 2 * _FRAME + _GAP)
    canvas = Image.new("RGB", (width, _GAP + row_height * len(rankings)), "white")
    draw = ImageDraw.Draw(canvas)
    small, bold = ImageFont.load_default(size=10), ImageFont.load_default(size=12)
    for row, ranking in enumerate(rankings):
        top = _GAP + row * row_height
        _paste(canvas, draw, root / ranking.name, (_GAP, top), _QUERY)
        below = top + _HEIGHT + 2 * _FRAME + 2
        draw.text((_GAP, below), ranking.title, _INK, small)
        name = ranking.name if len(ranking.name) <= 34 else f"...{ranking.name[-31:]}"
        draw_text(canvas, (_GAP, below + 14), name, 10, _INK, width=_SIDE + _GAP)
        for line, part in enumerate(["visible:", *(ranking.parts.split() or ["nothing"])]):
            draw.text((_GAP + _WIDTH + 2 * _FRAME + 6, top + 16 * line), part, _INK, bold if line == 0 else small)
        for column, name in enumerate(ranking.gallery):
            left = 2 * _GAP + _SIDE + column * (_WIDTH + 2 * _FRAME + _GAP)
            # The mark repeats the colour, for readers who cannot distinguish red from green.
            mark, colour = ("correct", _CORRECT) if ranking.correct[column] else ("wrong", _WRONG)
            _paste(canvas, draw, root / name, (left, top), colour)
            text = f"{column + 1}. {mark}  {ranking.distances[column]:.3f}"
            draw.text((left, below), text, colour, small)
            draw.text((left, below + 14), ranking.captions[column], _INK, small)
    return np.asarray(canvas)


def _paste(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, path: Path, corner: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    left, top = corner
    draw.rectangle((left, top, left + _WIDTH + 2 * _FRAME - 1, top + _HEIGHT + 2 * _FRAME - 1), fill=colour)
    canvas.paste(Image.fromarray(read_resized(path, _HEIGHT, _WIDTH)), (left + _FRAME, top + _FRAME))
