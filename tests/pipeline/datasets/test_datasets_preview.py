from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import preview
from pipeline.datasets.preview import contact_sheet, parse_splits
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import DataError


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    records = []
    for pid in range(1, 6):
        for camid in range(1, 4):
            path = f"{pid}_{camid}.png"
            Image.new("RGB", (32, 64), (40 * pid, 0, 60 * camid)).save(tmp_path / path)
            records.append(Record(path, pid, camid, "query" if camid == 1 else "gallery"))
    return Dataset("csv", "people", tmp_path, tuple(records))


def cell(sheet: np.ndarray, row: int, column: int, *, bands: int = 1, band: int = 0) -> np.ndarray:
    top = preview._GAP + row * (bands * preview.HEIGHT + preview._CAPTION + 2 * preview._GAP) + band * preview.HEIGHT
    left = preview._MARGIN + column * (preview.WIDTH + preview._GAP)
    return sheet[top + 4 : top + preview.HEIGHT - 4, left + 4 : left + preview.WIDTH - 4]


def test_a_row_is_an_identity_with_its_cameras_in_order(dataset: Dataset) -> None:
    sheet = contact_sheet(dataset, ids=5)
    for row in range(5):
        for column in range(3):
            assert (cell(sheet, row, column) == (40 * (row + 1), 0, 60 * (column + 1))).all()


def test_identities_are_spread_and_splits_chosen(dataset: Dataset) -> None:
    sheet = contact_sheet(dataset, ids=2, splits=("gallery",))
    assert (cell(sheet, 0, 0) == (40, 0, 120)).all()
    assert (cell(sheet, 1, 1) == (120, 0, 180)).all()
    with pytest.raises(DataError, match="no images in train"):
        contact_sheet(dataset, splits=("train",))


def test_label_maps_are_drawn_below(dataset: Dataset, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for record in dataset.records[1:]:
        Image.fromarray(np.full((64, 32), 5, np.uint8)).save(labels / record.path)
    shown = contact_sheet(Dataset("csv", "people", tmp_path, dataset.records, label_maps=labels), ids=5)
    colour = cell(shown, 0, 1, bands=2, band=1)[10, 10]
    assert colour.max() > 60
    assert (cell(shown, 3, 2, bands=2, band=1) == colour).all()
    # The first one has no label map: blank but for the words that say so.
    assert (cell(shown, 0, 0, bands=2, band=1) == 255).mean() > 0.9


def test_an_unreadable_image_has_an_empty_cell(dataset: Dataset) -> None:
    dataset.path_of(dataset.records[0]).write_bytes(b"text")
    blank = cell(contact_sheet(dataset), 0, 0)
    assert 0.9 < (blank == 255).mean() < 1


def test_images_without_identities_fill_rows(tmp_path: Path) -> None:
    for number in range(7):
        Image.new("RGB", (32, 64), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    records = tuple(Record(f"{number}.png", -1, -1, "all") for number in range(7))
    sheet = contact_sheet(Dataset("folder", "x", tmp_path, records), ids=3, columns=3)
    assert (cell(sheet, 2, 0) == (180, 0, 0)).all()


def test_names_of_splits_are_checked() -> None:
    assert parse_splits(["train", "all"]) == ("train", "all")
    with pytest.raises(DataError, match="did you mean 'query'"):
        parse_splits(["querry"])
