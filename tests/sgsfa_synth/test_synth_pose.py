from __future__ import annotations

import numpy as np
import pytest

from sgsfa_synth.body import body_model, bone_transforms, shaped
from sgsfa_synth.garments import mirrored
from sgsfa_synth.pose import POSES, Arm, Leg, Pose, about, rotations, sample_pose

MODEL = body_model()


def joints(pose: Pose) -> dict[str, np.ndarray]:
    rest = shaped(MODEL, MODEL.samples[5])
    transforms = bone_transforms(MODEL, rest.heads, rotations(pose, MODEL, rest.heads))
    return {name: transforms[i, :, :3] @ rest.heads[i] + transforms[i, :, 3] for name, i in MODEL.bone.items()}


def test_about_is_the_right_hand_rule() -> None:
    np.testing.assert_allclose(about((0, 0, 2), 90) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    turn = about((1, 2, 3), 77)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)


def test_angles_mean_what_they_say() -> None:
    straight = Pose("stand", lean=0, nod=0)
    for side, sign in (("L", 1), ("R", -1)):
        arm = {"left_arm" if side == "L" else "right_arm": Arm(flexion=90, spread=0, elbow=0)}
        raised = joints(Pose("stand", lean=0, nod=0, **arm))
        forward = raised[f"wrist.{side}"] - raised[f"upperarm01.{side}"]
        assert forward[1] / np.linalg.norm(forward) < -0.97, "a raised arm points to -y"
        leg = {"left_leg" if side == "L" else "right_leg": Leg(flexion=0, abduction=25, knee=0)}
        apart = joints(Pose("stand", lean=0, nod=0, **leg))
        assert sign * (apart[f"foot.{side}"] - joints(straight)[f"foot.{side}"])[0] > 0.2
        kneel = {"left_leg" if side == "L" else "right_leg": Leg(flexion=0, knee=90)}
        bent = joints(Pose("stand", lean=0, nod=0, **kneel))
        assert bent[f"foot.{side}"][1] > bent[f"lowerleg01.{side}"][1] + 0.2, "a knee bends back"


def test_elbow_angle_is_reached_by_all() -> None:
    for sample in (0, 100, 300):
        rest = shaped(MODEL, MODEL.samples[sample])
        pose = Pose("stand", left_arm=Arm(elbow=70), right_arm=Arm(elbow=20))
        transforms = bone_transforms(MODEL, rest.heads, rotations(pose, MODEL, rest.heads))
        for side, wanted in (("L", 70), ("R", 20)):
            shoulder, elbow, wrist = (
                transforms[MODEL.bone[f"{b}.{side}"], :, :3] @ rest.heads[MODEL.bone[f"{b}.{side}"]]
                + transforms[MODEL.bone[f"{b}.{side}"], :, 3]
                for b in ("upperarm01", "lowerarm01", "wrist")
            )
            u, f = elbow - shoulder, wrist - elbow
            angle = np.degrees(np.arccos(u @ f / np.linalg.norm(u) / np.linalg.norm(f)))
            assert angle == pytest.approx(wanted, abs=2)


@pytest.mark.parametrize("kind", POSES)
def test_poses_keep_their_kind_and_are_repeatable(kind: str) -> None:
    first, again = (sample_pose(np.random.default_rng(3), kind) for _ in range(2))
    assert first == again
    assert first.kind == kind
    assert sample_pose(np.random.default_rng(4), kind) != first


def test_kinds_are_drawn_mostly_walking() -> None:
    rng = np.random.default_rng(0)
    kinds = [sample_pose(rng).kind for _ in range(300)]
    assert set(kinds) == set(POSES)
    assert 0.5 < kinds.count("walk") / 300 < 0.7


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        sample_pose(np.random.default_rng(0), "fly")


def test_mirrored_twice_is_the_same() -> None:
    pose = sample_pose(np.random.default_rng(1), "phone")
    assert mirrored(mirrored(pose)) == pose
    assert mirrored(pose).hand != pose.hand


def test_standing_is_relaxed() -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        pose = sample_pose(rng, "stand")
        assert abs(pose.left_leg.knee - pose.right_leg.knee) > 4, "weight on one leg"
