from __future__ import annotations

import numpy as np
import pytest

from pipeline.runtime import seeds
from sgsfa_synth.cameras import FixedCamera
from sgsfa_synth.garments import wardrobe
from sgsfa_synth.identity import TEAM, sample_identity
from sgsfa_synth.patterns import Pattern
from sgsfa_synth.presets import PRESETS
from sgsfa_synth.randomise import LOOK_ALIKES, MIN_HEIGHT, RandomCamera, any_colour, varied_identity
from sgsfa_synth.scene import SceneSettings, render

KINDS = frozenset({"scene", "quality", "box", "clothes"})


def test_camera__without_kinds_is_fixed() -> None:
    fixed = FixedCamera(0, 0, (256, 128), 0.05, 0.88)
    camera = RandomCamera(seeds.rng(0, "shot", 0), fixed, 0.8, frozenset())
    assert (camera.site, camera.size) == (fixed.site, fixed.size)


def test_camera__varies_between_images() -> None:
    fixed = FixedCamera(0, 0, (256, 128), 0.05, 0.88)
    cameras = [RandomCamera(seeds.rng(0, "shot", number), fixed, 0.8, KINDS) for number in range(40)]
    heights = [camera.size[0] for camera in cameras]
    assert min(heights) >= MIN_HEIGHT
    assert max(heights) <= 256
    assert len(set(heights)) > 20
    assert len({camera.site for camera in cameras}) == 40


@pytest.mark.parametrize("occluded", [False, True])
def test_render__image_labels_and_visible_share_agree(occluded: bool) -> None:
    settings = SceneSettings(height=96, width=48, tone=0.8, randomise=KINDS)
    for shot in range(4):
        made = render(3, 5, shot, 0, occluded=occluded, settings=settings)
        assert made.image.shape[:2] == made.labels.shape
        assert made.image.shape[0] <= 96
        assert made.visible >= 0.2
        assert (made.labels > 0).any()
        assert bool(made.occluder) == occluded


def test_render__repeats_bytes() -> None:
    settings = SceneSettings(height=96, width=48, randomise=KINDS)
    first, second = (render(3, 2, 1, 0, settings=settings).image for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_identity__share_of_look_alikes_and_all_patterns() -> None:
    people = [varied_identity(0, index) for index in range(0, 1200, TEAM)]
    same = sum(person == sample_identity(0, person.index) for person in people)
    assert same / len(people) == pytest.approx(LOOK_ALIKES, abs=0.08)
    assert {person.top.cloth.pattern for person in people} == set(Pattern)
    for person in people[:12]:
        wardrobe(person)


def test_colour__is_an_albedo() -> None:
    colours = np.array([any_colour(np.random.default_rng(number)) for number in range(300)])
    assert colours.min() >= 0
    assert colours.max() < 1


def test_preset__has_an_own_camera_per_image_and_1500_training_identities() -> None:
    preset = PRESETS["transfer"]
    assert set(preset.randomise) == KINDS
    assert preset.ids * preset.train_share >= 1500
