from __future__ import annotations

import numpy as np
import pytest

from sgsfa_synth.body import Chart, body_model, sheet
from sgsfa_synth.hems import above, below, down_to, from_leg, neckline, off_arms, open_front, shoe, sleeves

TORSO = sheet("torso").chart


def place(x: float, y: float, z: float, arm: float = -1.0, arm_weight: float = 0.0) -> Chart:
    """One place on the body."""
    column = np.array
    return Chart(
        column([[x, y, z]], np.float32),
        column([arm], np.float32),
        column([0.0], np.float32),
        column([arm_weight], np.float32),
    )


def test_heights_cut_the_trunk_and_spare_the_arms() -> None:
    assert above(0.1)(place(0, 0, 0.2))[0] > 0 > above(0.3)(place(0, 0, 0.2))[0]
    assert above(0.3)(place(0.4, -0.1, 0.2, arm=0.9, arm_weight=1.0))[0] > 0
    assert below(0.3)(place(0, 0, 0.2))[0] > 0 > below(0.1)(place(0, 0, 0.2))[0]
    assert off_arms(place(0.4, 0, 0.2, arm_weight=1.0))[0] < 0 < off_arms(place(0, 0, 0.2))[0]


def test_sleeves_end_at_their_coordinate() -> None:
    field = sleeves(0.5)(TORSO)
    on_arm = TORSO.arm >= 0
    np.testing.assert_array_equal(field[on_arm] > 0, TORSO.arm[on_arm] < 0.5)
    assert (field[~on_arm] > 0).all()
    assert (sleeves(-0.1)(TORSO)[TORSO.arm_weight > 0.6] < 0).all(), "without sleeves the arm is bare"


def test_legs_are_cut_across() -> None:
    legs = sheet("legs").chart
    np.testing.assert_array_equal(down_to(0.5)(legs) > 0, legs.leg < 0.5)
    np.testing.assert_array_equal(from_leg(0.5)(legs) > 0, legs.leg > 0.5)


def test_necklines_go_deeper_in_front_and_in_a_v() -> None:
    front, back = place(0.0, -0.09, 0.62), place(0.0, 0.05, 0.62)
    for neck in ("round", "v", "high"):
        assert neckline(neck)(front)[0] < neckline(neck)(back)[0]
    assert neckline("v")(front)[0] < neckline("round")(front)[0] < neckline("high")(front)[0]
    assert neckline("round", lower=0.02)(front)[0] == pytest.approx(neckline("round")(front)[0] - 0.02, abs=1e-6)


def test_an_open_front_is_open_in_front_only() -> None:
    assert open_front(0.05)(place(0.02, -0.12, 0.3))[0] < 0 < open_front(0.05)(place(0.08, -0.12, 0.3))[0]
    assert open_front(0.05)(place(0.0, 0.09, 0.3))[0] > 0
    assert open_front(-1.0)(place(0.0, -0.12, 0.3))[0] > 0
    hip = float(body_model().head("upperleg01.L")[2])
    low = place(0.06, -0.12, hip - 0.5)
    assert open_front(0.05, spread=1.2)(low)[0] < 0 < open_front(0.05)(low)[0]


@pytest.mark.parametrize("kind", ["low", "pump", "trainer", "boot"])
def test_shoes_cover_the_sole_and_leave_the_knee(kind: str) -> None:
    feet = sheet("feet").chart
    field = shoe(kind)(feet)
    assert (field[feet.z < feet.z.min() + 0.02] > 0).all()
    assert (field[feet.leg < 0.7] < 0).all()
