"""Text in images: every script leaves ink, nothing leaves its box."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.runtime.text import draw_text

NAMES = ["0002_c1s1.jpg", "Größe.jpg", "Люди.jpg", "行人重识别.jpg"]


def written(text: str, corner: tuple[int, int] = (10, 20), width: int | None = None) -> np.ndarray:
    canvas = Image.new("RGB", (200, 60), "white")
    draw_text(canvas, corner, text, 12, (200, 0, 0), width=width)
    return np.asarray(canvas)


def inked(pixels: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((pixels < 200).any(2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


@pytest.mark.parametrize("name", NAMES)
def test_draw_text__stays_within_its_line(name: str) -> None:
    left, top, right, bottom = inked(written(name))
    assert 10 <= left < 16
    assert top >= 20
    assert bottom < 20 + 2 * 12
    assert right > 40


@pytest.mark.parametrize("name", NAMES)
def test_draw_text__is_cut_at_its_width(name: str) -> None:
    assert inked(written(name, width=25))[2] < 35


def test_draw_text__chinese_characters_differ() -> None:
    if not hasattr(cv2, "FontFace"):
        pytest.skip("OpenCV before release 5 has no Chinese letters")
    one, other = written("行行行"), written("别别别")
    assert (one != other).any()


def test_draw_text__other_alphabets_need_no_opencv_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    assert (written("Люди") != written("Кони")).any()


@pytest.mark.parametrize("corner", [(10, 55), (195, 20), (300, 20), (10, 80)])
def test_draw_text__is_cut_at_the_canvas(corner: tuple[int, int]) -> None:
    assert written("行人 abc", corner).shape == (60, 200, 3)
