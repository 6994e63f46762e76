"""Garment labels as LIP labels, on maps small enough to draw by hand."""

from __future__ import annotations

import numpy as np
import pytest

clothing = pytest.importorskip("tools.parser.clothing", reason="run from the repository, where tools/ lies")

NAMES = ["null", "skin", "hair", "shirt", "pants", "shoes", "bag", "suit", "stockings"]
NULL, SKIN, HAIR, SHIRT, PANTS, SHOES, BAG, SUIT, STOCKINGS = range(9)


def standing() -> np.ndarray:
    """Hair, a face, a shirt, bare arms that touch nothing, trousers, two shoes: 100 rows, 40 columns."""
    garments = np.zeros((100, 40), np.uint8)
    garments[0:6, 16:24] = HAIR
    garments[6:14, 16:24] = SKIN
    garments[14:50, 14:26] = SHIRT
    garments[20:45, 8:12] = SKIN
    garments[20:45, 28:32] = SKIN
    garments[50:94, 14:26] = PANTS
    garments[94:100, 12:19] = SHOES
    garments[94:100, 21:28] = SHOES
    return garments


def test_skin_becomes_face_and_arms() -> None:
    lip = clothing.to_lip(standing(), NAMES)
    assert set(lip[6:14, 16:24].ravel()) == {clothing.FACE}
    assert set(lip[20:45, 8:12].ravel()) == {clothing.RIGHT_ARM}
    assert set(lip[20:45, 28:32].ravel()) == {clothing.LEFT_ARM}


def test_the_persons_left_is_at_the_images_right() -> None:
    lip = clothing.to_lip(standing(), NAMES)
    assert set(lip[94:100, 12:19].ravel()) == {clothing.RIGHT_SHOE}
    assert set(lip[94:100, 21:28].ravel()) == {clothing.LEFT_SHOE}


def test_bare_legs_and_stockings_are_legs() -> None:
    garments = standing()
    garments[66:94, 14:19] = SKIN
    garments[66:94, 19:21] = NULL
    garments[66:94, 21:26] = STOCKINGS
    lip = clothing.to_lip(garments, NAMES)
    assert set(lip[66:94, 14:19].ravel()) == {clothing.RIGHT_LEG}
    assert set(lip[66:94, 21:26].ravel()) == {clothing.LEFT_LEG}


def test_a_face_that_runs_into_the_chest_is_cut() -> None:
    garments = standing()
    garments[14:35, 18:22] = SKIN
    lip = clothing.to_lip(garments, NAMES)
    assert set(lip[6:17, 18:22].ravel()) == {clothing.FACE}
    assert set(lip[18:35, 18:22].ravel()) <= {clothing.LEFT_ARM, clothing.RIGHT_ARM}


def test_a_bag_is_no_part_of_the_person() -> None:
    garments = standing()
    garments[40:60, 32:40] = BAG
    lip = clothing.to_lip(garments, NAMES)
    assert (lip[40:60, 32:40] == clothing.BAG).all()
    assert clothing.is_person(lip).sum() == clothing.is_person(clothing.to_lip(standing(), NAMES)).sum()


def test_a_suit_is_a_coat_above_and_trousers_below() -> None:
    garments = standing()
    garments[14:94, 14:26] = SUIT
    lip = clothing.to_lip(garments, NAMES)
    assert set(lip[14:54, 14:26].ravel()) == {clothing.COAT}
    assert set(lip[56:94, 14:26].ravel()) == {clothing.PANTS}


@pytest.mark.parametrize("fill", [NULL, BAG])
def test_a_map_without_a_person_stays_background(fill: int) -> None:
    assert not clothing.is_person(clothing.to_lip(np.full((20, 10), fill, np.uint8), NAMES)).any()


def test_splits_are_disjoint_and_fixed() -> None:
    splits = [clothing.split_of(f"{number:04d}") for number in range(1000)]
    assert set(splits) == {"train", "tuning", "holdout"}
    assert 130 < splits.count("holdout") < 210
    assert [clothing.split_of(name) for name in ("0001", "0002", "0003")] == splits[1:4]


def test_labels_move_left_by_one_pixel() -> None:
    labels = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.uint8)
    assert clothing.moved_left(labels).tolist() == [[1, 2, 3, 3], [5, 6, 7, 7]]


@pytest.mark.parametrize("moved", [-2, 0, 1])
def test_an_offset_of_the_labels_is_found(moved: int) -> None:
    offset = pytest.importorskip("tools.parser.offset")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 20, (60, 50, 3)).astype(np.uint8)
    image[10:50, 15:35] += 200
    labels = np.zeros((60, 50), np.uint8)
    labels[10:50, 15 + moved : 35 + moved] = clothing.UPPER
    photograph = clothing.Photograph("a", image, labels, clothing.bounding_box(labels > 0))
    right, down = offset.most_change([photograph])
    assert right == {-moved: 1}
    assert down == {0: 1}
