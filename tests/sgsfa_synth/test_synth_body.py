from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsfa_synth.body import (
    body_model,
    bone_transforms,
    nearest_skin,
    of_stature,
    shaped,
    sheet,
    skin,
)
from sgsfa_synth.pose import about

MODEL = body_model()
SHEETS = ("skin", "torso", "legs", "feet", "skirt", "scalp", "hands", "collar")


def test_weights_are_a_partition_of_one() -> None:
    np.testing.assert_allclose(MODEL.weights.sum(axis=1), 1, atol=1e-5)
    assert (MODEL.weights >= 0).all()
    assert all(parent < number for number, parent in enumerate(MODEL.parents))


def test_shape_is_linear_in_its_coefficients() -> None:
    a, b = MODEL.samples[3], MODEL.samples[40]
    middle = shaped(MODEL, (a + b) / 2)
    np.testing.assert_allclose(middle.vertices, (shaped(MODEL, a).vertices + shaped(MODEL, b).vertices) / 2, atol=1e-4)
    np.testing.assert_allclose(shaped(MODEL, np.zeros(24)).heads, MODEL.heads)


def test_stature_is_the_height_from_sole_to_crown() -> None:
    rest = of_stature(shaped(MODEL, MODEL.samples[7]), 1.71)
    assert np.ptp(rest.vertices[:, 2]) == pytest.approx(1.71, abs=1e-4)


def test_the_rest_pose_moves_nothing() -> None:
    transforms = bone_transforms(MODEL, MODEL.heads, {})
    moved = skin(MODEL.template, MODEL.influences, MODEL.weights, transforms)
    np.testing.assert_allclose(moved, MODEL.template, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_skinning_and_kinematics_equal_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = rng.choice(list(MODEL.bone), 12, replace=False)
    turns = {str(name): about(rng.normal(size=3), rng.uniform(-90, 90)) for name in names}
    transforms = bone_transforms(MODEL, MODEL.heads, turns)

    def literal(bone: int, point: np.ndarray) -> np.ndarray:
        """Turn about the bone's head, then hand on to its parent."""
        name = next(name for name, number in MODEL.bone.items() if number == bone)
        head = MODEL.heads[bone].astype(float)
        point = head + turns.get(name, np.eye(3)) @ (point - head)
        return point if MODEL.parents[bone] < 0 else literal(MODEL.parents[bone], point)

    for i in rng.integers(0, len(MODEL.template), 20):
        wanted = sum(
            w * literal(int(b), MODEL.template[i].astype(float))
            for b, w in zip(MODEL.influences[i], MODEL.weights[i], strict=True)
        )
        got = skin(MODEL.template[i : i + 1], MODEL.influences[i : i + 1], MODEL.weights[i : i + 1], transforms)
        np.testing.assert_allclose(got[0], wanted, atol=1e-5)


def test_limb_coordinates_run_from_shoulder_to_wrist_and_hip_to_ankle() -> None:
    def nearest(bone: str) -> int:
        return int(np.linalg.norm(MODEL.template[:13380] - MODEL.head(bone), axis=1).argmin())

    for side in "LR":
        assert MODEL.arm[nearest(f"lowerarm01.{side}")] == pytest.approx(0.5, abs=0.12)
        assert MODEL.arm[nearest(f"wrist.{side}")] == pytest.approx(1.0, abs=0.12)
        assert MODEL.leg[nearest(f"foot.{side}")] == pytest.approx(1.0, abs=0.1)
    assert MODEL.arm[nearest("head")] == -1
    assert MODEL.leg[nearest("head")] < 0


@pytest.mark.parametrize("name", SHEETS)
def test_sheets_are_surfaces_of_the_body(name: str) -> None:
    part = sheet(name)
    assert part.faces.max() == len(part.vertices) - 1
    assert len(part.chart.points) == len(part.vertices)
    if part.smooth is not None:
        np.testing.assert_allclose(part.smooth.sum(axis=1), 1, atol=1e-4)
        np.testing.assert_allclose(part.chart.points, part.smooth @ MODEL.template[part.vertices], atol=1e-4)
    assert sheet(name) is part, "made once a process"


def test_an_unknown_sheet_is_refused() -> None:
    with pytest.raises(KeyError):
        sheet("cape")


def test_nearest_skin_of_a_vertex_is_mostly_that_vertex() -> None:
    numbers, weights = nearest_skin(MODEL.template[:50])
    assert (numbers[:, 0] == np.arange(50)).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert (np.diff(weights, axis=1) <= 1e-7).all()
