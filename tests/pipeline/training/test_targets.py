"""Masks of training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

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


def test_load_masks__places_masks_in_padded_frames(tmp_path: Path, people: Dataset) -> None:
    masks, names = make_masks(tmp_path / "masks.h5", people), names_of(people)
    areas = np.tile((0.0, 0.0, 1.0, 1.0), (len(names), 1))
    areas[1], areas[2] = (0.0, 0.0, 0.5, 1.0), (0.0, 0.125, 1.0, 0.875)
    model = small_model(height=256, width=128)
    whole, moved = load_masks(masks, names, model), load_masks(masks, names, model, areas)
    for before, after in ((whole.parts, moved.parts), (whole.body, moved.body)):
        assert torch.equal(before[0], after[0])
        rows = before.shape[2]
        halved = before[1].float().unflatten(1, (rows // 2, 2)).mean(2)
        torch.testing.assert_close(after[1, :, : rows // 2].float(), halved, atol=0.51, rtol=0)
        assert not after[1, :, rows // 2 :].any()
        # The same area of the part, as a share of the frame.
        assert after[2].float().mean().item() == pytest.approx(0.75 * before[2].float().mean().item(), abs=0.6)
        edge = after.shape[3] // 8
        assert not after[2, :, :, :edge].any()
        assert not after[2, :, :, -edge:].any()


def test_load_masks__other_or_damaged_files_are_refused(tmp_path: Path, people: Dataset) -> None:
    masks = make_masks(tmp_path / "masks.h5", people)
    other = [name.replace("train", "other") for name in names_of(people)]
    with pytest.raises(DataError, match="none of the 18"):
        load_masks(masks, other, small_model(height=256, width=128))
    masks.write_bytes(masks.read_bytes()[:1000])
    with pytest.raises(FormatError):
        load_masks(masks, other, small_model(height=256, width=128))
