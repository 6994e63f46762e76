"""A contact sheet of a data set: one row per identity, with label maps under the images if there are any."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.config import suggestion
from pipeline.datasets.images import RgbImage, read_image, resize
from pipeline.datasets.records import DISTRACTOR_PID, UNKNOWN, Dataset, Record, Split
from pipeline.errors import DataError, ImageError

_T = TypeVar("_T")

HEIGHT, WIDTH = 192, 96
_GAP, _CAPTION, _MARGIN = 6, 16, 76
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_FRAMES: dict[Split, tuple[int, int, int]] = {
    "train": (150, 150, 150),
    "query": (214, 90, 20),
    "gallery": (30, 100, 190),
    "all": (150, 150, 150),
}


def contact_sheet(dataset: Dataset, *, ids: int = 8, columns: int = 10, splits: Sequence[Split] = ()) -> RgbImage:
    """Draw `ids` identities, evenly spread over the ids, with at most `columns` images spread over the cameras.

    Raises:
        DataError: No image is in `splits` (empty: all).
    """
    records = dataset.split(*splits) if splits else dataset.records
    if not records:
        existing = sorted({record.split for record in dataset.records})
        raise DataError(f"no images in {', '.join(splits) or 'the data set'}", expected=" | ".join(existing) or None)
    rows = _rows(records, ids, columns)
    bands = 2 if dataset.label_maps else 1
    row_height = bands * HEIGHT + _CAPTION + 2 * _GAP
    width = _MARGIN + max(len(row) for row in rows) * (WIDTH + _GAP) + _GAP
    sheet = Image.new("RGB", (width, len(rows) * row_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = _GAP + number * row_height
        if row[0].pid != UNKNOWN:
            draw.text((_GAP, top), f"id {row[0].pid}", fill=_INK, font=ImageFont.load_default(15))
        for column, record in enumerate(row):
            left = _MARGIN + column * (WIDTH + _GAP)
            _draw_cell(sheet, draw, dataset, record, left, top)
    return np.array(sheet, dtype=np.uint8)


def parse_splits(names: Sequence[str]) -> tuple[Split, ...]:
    """Return names of splits, checked; raises `DataError` if one is not a valid split."""
    splits: list[Split] = []
    for name in names:
        split = next((known for known in _FRAMES if known == name), None)
        if split is None:
            raise DataError(
                f"{name!r} is not a valid split", expected=" | ".join(_FRAMES), hint=suggestion(name, _FRAMES)
            )
        splits.append(split)
    return tuple(splits)


def _rows(records: Sequence[Record], ids: int, columns: int) -> list[list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record.pid, []).append(record)
    if set(groups) == {UNKNOWN}:
        some = _spread(groups[UNKNOWN], ids * columns)
        return [some[start : start + columns] for start in range(0, len(some), columns)]
    # Distractors are many identities under one id.
    chosen = _spread(sorted(groups.keys() - {DISTRACTOR_PID}) or sorted(groups), ids)
    return [_spread(sorted(groups[pid], key=lambda record: (record.camid, record.path)), columns) for pid in chosen]


def _spread(items: Sequence[_T], count: int) -> list[_T]:
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, dataset: Dataset, record: Record, left: int, top: int
) -> None:
    small = ImageFont.load_default(11)
    try:
        sheet.paste(Image.fromarray(resize(read_image(dataset.path_of(record)), HEIGHT, WIDTH)), (left, top))
    except ImageError:
        draw.text((left + 8, top + HEIGHT // 2), "unreadable", fill=_INK, font=small)
    frame = _FRAMES[record.split]
    draw.rectangle((left - 1, top - 1, left + WIDTH, top + HEIGHT), outline=frame, width=1)
    bottom = top + HEIGHT
    if dataset.label_maps is not None:
        path = dataset.label_maps / PurePosixPath(record.path).with_suffix(".png")
        try:
            with Image.open(path) as labels:
                # A palette has the colours that the author of the map chose.
                own = labels.mode == "P"
                shown = labels.convert("RGB") if own else Image.fromarray(_colours()[np.array(labels, dtype=np.uint8)])
            sheet.paste(shown.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST), (left, bottom + 2))
        except (OSError, ValueError, IndexError):
            draw.text((left + 8, bottom + HEIGHT // 2), "no label map", fill=_INK, font=small)
        bottom += HEIGHT
    caption = record.split if record.camid == UNKNOWN else f"cam {record.camid}  {record.split}"
    draw.text((left, bottom + 3), caption, fill=frame if record.split != "all" else _FAINT, font=small)


def _colours() -> RgbImage:
    """A colour for each label: 0 nearly black, then alternating hues, so that neighbouring ids differ."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for label in range(256):
        hue, light = (label * 0.381966) % 1.0, 0.62 if label % 2 else 0.48
        colours[label] = [round(255 * value) for value in colorsys.hls_to_rgb(hue, light, 0.75)]
    colours[0] = (32, 32, 36)
    return colours
