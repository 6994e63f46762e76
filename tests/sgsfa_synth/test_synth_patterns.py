from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsfa_synth.body import body_model, sheet
from sgsfa_synth.identity import _WEAVES
from sgsfa_synth.patterns import Cloth, Pattern, noise_at, of_mean, paint, sample_cloth

MAIN, SECOND, THIRD = (0.6, 0.1, 0.1), (0.05, 0.1, 0.5), (0.7, 0.7, 0.2)
SHOULDER = float(body_model().head("upperarm01.L")[2])
HIP = float(body_model().head("upperleg01.L")[2])


def painted(cloth: Cloth) -> np.ndarray:
    chart = sheet("torso").chart
    return paint(cloth, chart.points, chart.arm, shoulder=SHOULDER, hip=HIP)


@pytest.mark.parametrize("pattern", list(Pattern))
def test_patterns_mix_their_colours(pattern: Pattern) -> None:
    colours = painted(Cloth(pattern, MAIN, SECOND, THIRD, 1.0, 12, 3 if pattern is Pattern.LOGO else 0))
    assert np.isfinite(colours).all()
    low, high = np.min([MAIN, SECOND, THIRD], axis=0), np.max([MAIN, SECOND, THIRD], axis=0)
    assert (colours > low - 1e-5).all()
    assert (colours < high + 1e-5).all()
    if pattern is Pattern.PLAIN:
        np.testing.assert_allclose(colours, np.broadcast_to(MAIN, colours.shape), atol=1e-6)
    else:
        assert colours.std(axis=0).max() > 0.01, "the pattern shows"


def test_stripes_are_level_on_the_trunk() -> None:
    points = np.array([[x, -0.1, z] for z in (0.3, 0.33, 0.36) for x in (-0.1, 0.0, 0.1)], np.float32)
    cloth = Cloth(Pattern.STRIPES, MAIN, SECOND, THIRD, 1.0, 0, 0)
    colours = paint(cloth, points, np.full(9, -1, np.float32), shoulder=SHOULDER, hip=HIP).reshape(3, 3, 3)
    assert np.ptp(colours, axis=1).max() < 1e-5
    assert np.ptp(colours, axis=0).max() > 0.1


def test_equal_designs_look_equal_and_faint_contrast_is_raised() -> None:
    assert sample_cloth(("plaid", 5), MAIN, SECOND, THIRD) == sample_cloth(("plaid", 5), MAIN, SECOND, THIRD)
    faint = sample_cloth(("stripes", 5), MAIN, (0.6, 0.1, 0.11), THIRD)
    assert sum(abs(a - b) for a, b in zip(faint.main, faint.second, strict=True)) > 0.3
    assert sample_cloth(("plain", 5), MAIN, SECOND, THIRD, trim=True).pattern is Pattern.BLOCKS


@given(
    st.sampled_from(_WEAVES),
    st.tuples(*[st.floats(0.006, 0.75)] * 3),
    st.tuples(*[st.floats(0.0, 0.8)] * 3),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_cloth_of_a_mean_has_it_at_every_exposure(
    pattern: Pattern, mean: tuple[float, float, float], figure: tuple[float, float, float], seed: int
) -> None:
    cloth = of_mean(Cloth(pattern, MAIN, figure, figure, 1.0, seed, 0), mean)
    assert all(0 <= c <= 0.81 for colour in (cloth.main, cloth.second, cloth.third) for c in colour)
    # Other points than those by which the ground was found.
    chest = np.random.default_rng(3).uniform([-0.15, -0.1, 0.0], [0.15, -0.1, 0.45], (4000, 3)).astype(np.float32)
    colours = paint(cloth, chest, np.full(len(chest), -1, np.float32), shoulder=0.45, hip=0.0).astype(float)
    for exposure in (0.3, 1.0, 2.0):
        seen, wanted = np.cbrt(exposure * colours).mean(0), np.cbrt(exposure * np.asarray(mean))
        np.testing.assert_allclose(seen, wanted, atol=0.03)


def test_a_balanced_pattern_still_shows() -> None:
    grey = (0.2, 0.2, 0.2)
    cloth = of_mean(Cloth(Pattern.STRIPES, grey, (0.6, 0.5, 0.3), MAIN, 1.0, 0, 0), grey)
    assert cloth.second == pytest.approx((0.6, 0.5, 0.3), abs=1e-6)
    assert max(cloth.main) < 0.15
    assert of_mean(Cloth(Pattern.PLAIN, MAIN, SECOND, THIRD, 1.0, 0, 0), grey).main == grey


def test_noise_is_smooth_seeded_and_bounded() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3)).astype(np.float32)
    here = noise_at(points, 20, 1)
    assert 0 <= here.min() < 0.2
    assert 0.8 < here.max() < 1
    np.testing.assert_array_equal(here, noise_at(points, 20, 1))
    assert np.abs(here - noise_at(points, 20, 2)).mean() > 0.1
    assert np.abs(here - noise_at(points + np.float32(1e-4), 20, 1)).max() < 0.02
