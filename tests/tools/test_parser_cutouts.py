"""Pictures of things that the parser's training pastes in front of people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("tools.parser.cutouts", reason="run from the repository, where tools/ lies")

from tools.parser.cutouts import is_wanted, pasted, read_cutouts

HAMBURGER, OWL, CAR = "1f354", "1f989", "1f697"


def write(folder: Path, name: str, picture: np.ndarray) -> None:
    cv2.imwrite(str(folder / f"{name}.webp"), picture, [cv2.IMWRITE_WEBP_QUALITY, 101])


def disc() -> np.ndarray:
    """BGRA: a red disc on nothing, 60 wide and 40 high, in a picture of 100 x 100."""
    picture = np.zeros((100, 100, 4), np.uint8)
    cv2.ellipse(picture, (50, 50), (30, 20), 0, 0, 360, (0, 0, 255, 255), -1)
    return picture


@pytest.mark.parametrize("name", [HAMBURGER, OWL, CAR, "1f5a8-fe0f"])
def test_things_are_wanted(name: str) -> None:
    assert is_wanted(name)


@pytest.mark.parametrize(
    "name",
    [
        "1f468",  # man
        "1f9d1-200d-1f680",  # astronaut
        "1f44b-1f3fd",  # waving hand of a skin colour
        "1f600",  # grinning face
        "1f6a3",  # a person rowing
        "1f6c0",  # a person in a bath
        "1f6cc",  # a person in bed
        "1f931",  # a person with a child
        "1f455",  # T-shirt
        "1f170-fe0f",  # a letter
        "1f6d1",  # stop sign: a board, kept for the test
        "1fa9c",  # ladder: kept for the test
        "1f6e2-fe0f",  # oil drum: kept for the test
        "1fab5",  # wood: kept for the test
        "e50a",  # no character
        "notes",
    ],
)
def test_people_clothes_signs_and_what_the_test_keeps_are_not(name: str) -> None:
    assert not is_wanted(name)


def test_pictures_are_cut_to_their_outline_in_rgb(tmp_path: Path) -> None:
    write(tmp_path, OWL, disc())
    write(tmp_path, "1f600", disc())
    (thing,) = read_cutouts(tmp_path)
    assert thing.dtype == np.uint8
    assert thing.shape[2] == 4
    assert max(thing.shape[:2]) == 160
    assert thing.shape[1] / thing.shape[0] == pytest.approx(61 / 41, rel=0.02)
    middle = thing[thing.shape[0] // 2, 80]
    assert middle.tolist() == [255, 0, 0, 255]
    assert thing[0, 0, 3] == 0


def test_translucent_things_keep_their_colour(tmp_path: Path) -> None:
    picture = np.zeros((200, 200, 4), np.uint8)
    picture[20:180, 20:180] = (40, 120, 200, 128)
    picture[90:110, 90:110, 3] = 255
    write(tmp_path, OWL, picture)
    kind = pasted(read_cutouts(tmp_path))
    rng = np.random.default_rng(1)
    own = []
    for _ in range(30):
        made = kind(rng, 128, 64, lambda height, width: np.zeros((height, width, 3), np.uint8))
        seen = made.picture[(made.opacity > 0.4) & (made.opacity < 0.6)]
        if len(seen) > 50 and seen.any():
            own.append(np.median(seen, axis=0))
    assert own
    for colour in own:
        np.testing.assert_allclose(colour, (200, 120, 40), atol=6)


def test_a_folder_without_things_or_without_transparency_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture of a thing"):
        read_cutouts(tmp_path)
    write(tmp_path, OWL, disc()[..., :3])
    with pytest.raises(ValueError, match=f"{OWL}.webp is no picture with transparency"):
        read_cutouts(tmp_path)


def test_a_pasted_thing_has_its_own_look_or_its_light_on_another(tmp_path: Path) -> None:
    write(tmp_path, OWL, disc())
    kind = pasted(read_cutouts(tmp_path))
    rng = np.random.default_rng(0)
    looks = set()
    for _ in range(40):
        made = kind(rng, 128, 64, lambda height, width: np.full((height, width, 3), (0, 200, 0), np.uint8))
        assert made.opacity.shape == (128, 64)
        assert 0 <= made.opacity.min() <= made.opacity.max() <= 1
        solid = made.picture[made.opacity > 0.99]
        if len(solid) > 10:
            looks.add("red" if np.median(solid[:, 0]) > 100 else "green")
    assert looks == {"red", "green"}
