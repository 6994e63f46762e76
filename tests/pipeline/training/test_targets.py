"""Masks of training images."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.records import Dataset
from pipeline.errors import DataError, FormatError
from pipeline.training.targets import load_masks
from tests.helpers.training import make_masks, small_model


def names_of(people: Dataset) -> list[str]:
    return sorted(record.path for record in people.split("train"))


def test_load_masks__finds_rows_by_name(tmp_path: Path, people: Dataset) -> None:
    masks = make_masks(tmp_path / "masks.h5", people, failed=2)
    names = names_of(people)[::-1]
    targets = load_masks(masks, names, small_model(height=256, width=128))
    assert targets.has_mask.tolist() == [True] * (len(names) - 2) + [False] * 2
    assert targets.parts[0, 1, 5, 3] == 255
    assert not targets.parts[-1].any()
    assert not targets.body[-1].any()
    assert targets.without_mask == 2


def test_load_masks__averages_to_the_maps_of_another_input_size(tmp_path: Path, people: Dataset) -> None:
    masks = make_masks(tmp_path / "masks.h5", people)
    targets = load_masks(masks, names_of(people), small_model(height=384, width=128))
    assert targets.parts.shape[1:] == (4, 24, 8)
    assert targets.body.shape[1:] == (1, 96, 32)
    full = load_masks(masks, names_of(people), small_model(height=256, width=128))
    assert targets.body.float().mean() == pytest.approx(full.body.float().mean().item(), abs=2)


def test_load_masks__other_or_damaged_files_are_refused(tmp_path: Path, people: Dataset) -> None:
    masks = make_masks(tmp_path / "masks.h5", people)
    other = [name.replace("train", "other") for name in names_of(people)]
    with pytest.raises(DataError, match="none of the 18"):
        load_masks(masks, other, small_model(height=256, width=128))
    masks.write_bytes(masks.read_bytes()[:1000])
    with pytest.raises(FormatError):
        load_masks(masks, other, small_model(height=256, width=128))
