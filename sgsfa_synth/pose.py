"""Poses: a few joint angles that a person of any shape can take.

Angles are in degrees and anatomical: flexion moves a thigh or an upper arm forward, a knee bends back, an elbow bends
the forearm up; spread and abduction lead away from the body.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sgsfa_synth.body import BodyModel
from sgsfa_synth.mesh import FloatArray

POSES = ("walk", "stand", "phone", "hold", "pocket", "sit", "carry")

# One gait cycle in steps of 10 %, heel strike first; rounded from the normal curves of Perry & Burnfield, Gait
# Analysis (2nd ed., 2010). Foot pitch is the sole against the ground, toes up positive.
HIP_FLEXION = (28.0, 25.0, 17.0, 8.0, -1.0, -9.0, -6.0, 9.0, 23.0, 30.0)
KNEE_FLEXION = (5.0, 14.0, 17.0, 11.0, 6.0, 11.0, 34.0, 58.0, 48.0, 17.0)
FOOT_PITCH = (18.0, 2.0, 0.0, 0.0, -2.0, -20.0, -48.0, -38.0, -8.0, 14.0)


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm: flexion and spread of the upper arm, turn of it about its own axis (inward positive), and elbow."""

    flexion: float = 0.0
    spread: float = 9.0
    inward: float = 0.0
    elbow: float = 18.0


@dataclass(frozen=True, slots=True)
class Leg:
    """One leg: flexion and abduction of the thigh, its turn outward, the knee, and the sole against the ground."""

    flexion: float = 0.0
    abduction: float = 2.0
    outward: float = 4.0
    knee: float = 3.0
    pitch: float = 0.0


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the joints are.

    Args:
        kind: One of `POSES`.
        left_arm, right_arm, left_leg, right_leg: The person's own sides.
        lean: Trunk forward.
        twist: Shoulders against the pelvis, left shoulder forward positive.
        roll: Pelvis to the person's left, balanced by the spine.
        nod: Head down.
        turn: Head to the left.
        tilt: Head towards the left shoulder.
        curl: Bend of the fingers.
        holds: What the hands hold besides a bag: "", "phone" (at the ear or before the eyes) or "box".
        hand: The hand that holds the phone, L or R.
    """

    kind: str
    left_arm: Arm = field(default_factory=Arm)
    right_arm: Arm = field(default_factory=Arm)
    left_leg: Leg = field(default_factory=Leg)
    right_leg: Leg = field(default_factory=Leg)
    lean: float = 2.0
    twist: float = 0.0
    roll: float = 0.0
    nod: float = 4.0
    turn: float = 0.0
    tilt: float = 0.0
    curl: float = 28.0
    holds: str = ""
    hand: str = "R"


_SHARE = {"walk": 0.60, "stand": 0.14, "phone": 0.07, "hold": 0.05, "pocket": 0.06, "sit": 0.04, "carry": 0.04}


def sample_pose(rng: np.random.Generator, kind: str | None = None) -> Pose:
    """Draw a pose.

    Args:
        rng: Of the image.
        kind: One of `POSES`; None draws the kind too (mostly walking).

    Raises:
        KeyError: For an unknown kind.
    """
    if kind is None:
        kind = str(rng.choice(POSES, p=[_SHARE[name] for name in POSES]))
    makers = {
        "walk": _walk,
        "stand": _stand,
        "phone": _phone,
        "hold": _hold,
        "pocket": _pocket,
        "sit": _sit,
        "carry": _carry,
    }
    return makers[kind](rng)


def _jitter(rng: np.random.Generator, spread: float) -> float:
    return float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))


def _cycle(curve: tuple[float, ...], phase: float) -> float:
    """Return a periodic curve at `phase` (1 is one cycle), smooth between its samples (Catmull-Rom)."""
    position = (phase % 1.0) * len(curve)
    i, t = int(position), position % 1.0
    a, b, c, d = (curve[(i + k) % len(curve)] for k in (-1, 0, 1, 2))
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _stride(phase: float, reach: float) -> Leg:
    return Leg(
        flexion=4 + reach * (_cycle(HIP_FLEXION, phase) - 4),
        abduction=0.5,
        outward=6,
        knee=4 + reach * (_cycle(KNEE_FLEXION, phase) - 4),
        pitch=reach * _cycle(FOOT_PITCH, phase),
    )


def _swing(phase: float, reach: float, rng: np.random.Generator) -> Arm:
    # The arm goes with the opposite leg: forward while its own leg is back.
    forward = -math.cos(2 * math.pi * phase) * reach
    return Arm(
        flexion=2 + 16 * forward + _jitter(rng, 2),
        spread=8 + _jitter(rng, 2),
        inward=6 + _jitter(rng, 4),
        elbow=14 + 12 * max(0.0, forward) + _jitter(rng, 3),
    )


def _walk(rng: np.random.Generator) -> Pose:
    phase, reach = rng.random(), rng.uniform(0.7, 1.1)
    swing = rng.uniform(0.5, 1.3)
    left, right = _stride(phase, reach), _stride(phase + 0.5, reach)
    return Pose(
        "walk",
        left_arm=_swing(phase, swing, rng),
        right_arm=_swing(phase + 0.5, swing, rng),
        left_leg=left,
        right_leg=right,
        lean=rng.uniform(1, 6),
        twist=-6 * math.cos(2 * math.pi * phase),
        nod=6 + _jitter(rng, 6),
        turn=_jitter(rng, 13),
        tilt=_jitter(rng, 3),
        curl=rng.uniform(18, 45),
    )


def _relaxed_legs(rng: np.random.Generator) -> tuple[Leg, Leg, float]:
    """Return legs with the weight on one of them, the other bent and set out."""
    shift = rng.uniform(0.3, 1.0)
    bearing = Leg(flexion=-1, abduction=-1 - 2 * shift, outward=rng.uniform(3, 9), knee=2)
    knee = 6 + 16 * shift + _jitter(rng, 3)
    free = Leg(
        flexion=knee * 0.62,
        abduction=5 + 4 * shift + _jitter(rng, 2),
        outward=rng.uniform(8, 20),
        knee=knee,
        pitch=0.0,
    )
    roll = 4.0 * shift
    return (bearing, free, roll) if rng.random() < 0.5 else (free, bearing, -roll)


def _hanging(rng: np.random.Generator) -> Arm:
    return Arm(
        flexion=4 + _jitter(rng, 6), spread=8 + _jitter(rng, 3), inward=10 + _jitter(rng, 9), elbow=18 + _jitter(rng, 9)
    )


def _standing(rng: np.random.Generator, kind: str, **changes: object) -> Pose:
    left, right, roll = _relaxed_legs(rng)
    settings: dict[str, object] = {
        "left_arm": _hanging(rng),
        "right_arm": _hanging(rng),
        "left_leg": left,
        "right_leg": right,
        "roll": roll,
        "lean": 1 + _jitter(rng, 2),
        "twist": _jitter(rng, 6),
        "nod": 6 + _jitter(rng, 7),
        "turn": _jitter(rng, 20),
        "tilt": _jitter(rng, 4),
        "curl": rng.uniform(20, 45),
    }
    return Pose(kind, **(settings | changes))  # type: ignore[arg-type]


def _stand(rng: np.random.Generator) -> Pose:
    if rng.random() < 0.25:  # hands together in front
        arm = Arm(flexion=8 + _jitter(rng, 3), spread=9, inward=52 + _jitter(rng, 5), elbow=52 + _jitter(rng, 6))
        return _standing(rng, "stand", left_arm=arm, right_arm=arm)
    return _standing(rng, "stand")


def _one_arm(rng: np.random.Generator, raised: Arm) -> dict[str, object]:
    hand = "L" if rng.random() < 0.4 else "R"
    return {"left_arm" if hand == "L" else "right_arm": raised, "hand": hand}


def _phone(rng: np.random.Generator) -> Pose:
    """Return the pose of a phone call, the phone at the ear."""
    raised = Arm(flexion=66 + _jitter(rng, 4), spread=40 + _jitter(rng, 5), inward=4 + _jitter(rng, 2), elbow=150)
    changes = _one_arm(rng, raised)
    lean = 7.0 if changes["hand"] == "L" else -7.0
    return _standing(rng, "phone", **changes, holds="phone", tilt=lean, nod=5.0, turn=_jitter(rng, 8), curl=55.0)


def _hold(rng: np.random.Generator) -> Pose:
    """Return the pose of looking at a phone before the chest."""
    raised = Arm(flexion=30 + _jitter(rng, 5), spread=9, inward=30 + _jitter(rng, 5), elbow=98 + _jitter(rng, 7))
    changes = _one_arm(rng, raised)
    turn = 6.0 if changes["hand"] == "L" else -6.0
    return _standing(rng, "hold", **changes, holds="phone", nod=26 + _jitter(rng, 5), turn=turn, curl=50.0)


def _pocket(rng: np.random.Generator) -> Pose:
    arm = Arm(flexion=-14 + _jitter(rng, 3), spread=17 + _jitter(rng, 3), inward=24 + _jitter(rng, 4), elbow=44)
    changes = {"left_arm": arm, "right_arm": arm} if rng.random() < 0.6 else _one_arm(rng, arm)
    return _standing(rng, "pocket", **changes)


def _sit(rng: np.random.Generator) -> Pose:
    """Return the pose of sitting on a bench, hands in the lap or on the thighs."""
    gap, tuck = rng.uniform(4, 11), rng.uniform(-8, 10)
    lap = Arm(flexion=24 + _jitter(rng, 4), spread=9, inward=28 + _jitter(rng, 8), elbow=52 + _jitter(rng, 7))
    legs = [Leg(flexion=84, abduction=gap + _jitter(rng, 2), outward=5, knee=84 + tuck + _jitter(rng, 5)) for _ in "LR"]
    return Pose(
        "sit",
        left_arm=lap,
        right_arm=Arm(lap.flexion + _jitter(rng, 3), lap.spread, lap.inward + _jitter(rng, 4), lap.elbow),
        left_leg=legs[0],
        right_leg=legs[1],
        lean=rng.uniform(2, 12),
        twist=_jitter(rng, 4),
        nod=8 + _jitter(rng, 9),
        turn=_jitter(rng, 16),
        tilt=_jitter(rng, 3),
        curl=35.0,
    )


def _carry(rng: np.random.Generator) -> Pose:
    """Return the pose of carrying a box in both arms, standing or in a short step."""
    arm = Arm(flexion=16 + _jitter(rng, 2), spread=15, inward=14, elbow=86 + _jitter(rng, 3))
    if rng.random() < 0.5:
        return _standing(rng, "carry", left_arm=arm, right_arm=arm, holds="box", lean=-2.0, twist=0.0, curl=20.0)
    phase, reach = rng.random(), rng.uniform(0.5, 0.8)
    return Pose(
        "carry",
        left_arm=arm,
        right_arm=arm,
        left_leg=_stride(phase, reach),
        right_leg=_stride(phase + 0.5, reach),
        lean=-2.0,
        nod=6 + _jitter(rng, 4),
        turn=_jitter(rng, 10),
        curl=20.0,
        holds="box",
    )


def about(axis: NDArray[np.floating] | tuple[float, float, float], degrees: float) -> NDArray[np.float64]:
    """Return (3, 3) rotation about an axis by the right-hand rule (Rodrigues)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def rotations(pose: Pose, model: BodyModel, heads: FloatArray) -> Mapping[str, NDArray[np.float64]]:
    """Return the pose as bone rotations for `body.bone_transforms`.

    The source's rest pose holds the arms out and the elbows bent, by amounts that depend on the person; both are
    measured on `heads` and taken off, so that an angle means the same on every person.

    Args:
        pose: Angles.
        model: Of `body.body_model`.
        heads: (B, 3) bone heads of the person.
    """
    turns = {
        "root": about(_Y, -pose.roll),
        "spine04": about(_Z, 0.4 * pose.twist) @ about(_Y, 0.8 * pose.roll) @ about(_X, 0.5 * pose.lean),
        "spine02": about(_Z, 0.6 * pose.twist) @ about(_Y, 0.5 * pose.roll) @ about(_X, 0.5 * pose.lean),
        "neck01": about(_Z, 0.4 * pose.turn) @ about(_X, 0.35 * pose.nod) @ about(_Y, 0.4 * pose.tilt),
        "head": about(_Z, 0.6 * pose.turn) @ about(_X, 0.65 * pose.nod) @ about(_Y, 0.6 * pose.tilt),
    }
    for side, sign, arm, leg in (("L", 1, pose.left_arm, pose.left_leg), ("R", -1, pose.right_arm, pose.right_leg)):
        turns |= _arm_turns(arm, pose, side, sign, {name: heads[i] for name, i in model.bone.items()})
        hip, ankle = heads[model.bone[f"upperleg01.{side}"]], heads[model.bone[f"foot.{side}"]]
        rest = math.degrees(math.atan2(sign * (ankle[0] - hip[0]), hip[2] - ankle[2]))
        turns[f"upperleg01.{side}"] = (
            about(_Y, pose.roll)
            @ about(_Y, -sign * leg.abduction)
            @ about(_X, -leg.flexion)
            @ about(_Y, sign * rest)
            @ about(_Z, sign * leg.outward)
        )
        turns[f"lowerleg01.{side}"] = about(_X, leg.knee)
        turns[f"foot.{side}"] = about(_X, leg.flexion - leg.knee - leg.pitch)
    return turns


def _arm_turns(
    arm: Arm, pose: Pose, side: str, sign: int, heads: Mapping[str, FloatArray]
) -> dict[str, NDArray[np.float64]]:
    shoulder, elbow, wrist = (heads[f"{name}.{side}"] for name in ("upperarm01", "lowerarm01", "wrist"))
    upper, lower = elbow - shoulder, wrist - elbow
    rest_spread = math.degrees(math.atan2(sign * upper[0], -upper[2]))
    cosine = float(upper @ lower / (np.linalg.norm(upper) * np.linalg.norm(lower)))
    rest_elbow = math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
    turns = {
        f"upperarm01.{side}": about(_X, -arm.flexion)
        @ about(_Y, sign * (rest_spread - arm.spread))
        @ about(upper, sign * arm.inward),
        f"lowerarm01.{side}": about(np.cross(upper, lower), arm.elbow - rest_elbow),
    }
    # Fingers bend about the axis that is across both the hand and the palm's normal (the palms face inward).
    across = np.cross(lower, (-float(sign), 0.0, 0.0))
    for finger in range(2, 6):
        turns[f"finger{finger}-1.{side}"] = about(across, pose.curl)
        turns[f"finger{finger}-2.{side}"] = about(across, pose.curl)
    return turns
