"""Where cloth ends: edge fields over the body's chart, positive where it covers, in metres or limb lengths.

They are functions of a chart, because the same border is needed on the sheet that is cut and, to know which skin it
hides, on the body.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sgsfa_synth.body import Chart, body_model

Field = NDArray[np.floating]
Border = Callable[[Chart], Field]


def off_arms(chart: Chart) -> Field:
    """Return a field that is positive everywhere but on the arms."""
    return np.where(chart.arm_weight > 0.3, -1.0, 1.0)


def above(height: float) -> Border:
    """Return a field that is positive above a height on the trunk, and on the arms."""
    return lambda chart: np.where(chart.arm_weight > 0.3, 1.0, chart.z - height)


def below(height: float) -> Border:
    """Return a field that is positive below a height."""
    return lambda chart: np.asarray(height - chart.z)


def down_to(leg: float) -> Border:
    """Return a field that is positive as far down the legs as a coordinate."""
    return lambda chart: np.asarray((leg - chart.leg) * 0.8)


def from_leg(leg: float) -> Border:
    """Return a field that is positive from a coordinate of the legs downwards."""
    return lambda chart: np.asarray((chart.leg - leg) * 0.8)


def sleeves(end: float) -> Border:
    """Return a field that is positive on the trunk and the arms as far as `end`; negative: arm holes."""
    if end < 0:
        # The skinning weights are the one smooth coordinate over the shoulder.
        return lambda chart: np.asarray((0.40 - chart.arm_weight) * 0.1)
    return lambda chart: np.asarray((end - chart.arm) * 0.5)


NECKLINES = {"round": (0.646, 0.55), "v": (0.644, 0.60), "high": (0.694, 0.20)}


def neckline(neck: str, lower: float = 0.0) -> Border:
    """Return a field that is positive below a plane through the neck; a V reaches the breastbone."""
    height, slope = NECKLINES[neck]

    def field(chart: Chart) -> Field:
        line = height - lower + slope * chart.y + 0.32 * np.abs(chart.x)
        if neck == "v":
            line = line - np.clip(0.062 - 1.15 * np.abs(chart.x), 0, 1) * np.clip(-(chart.y + 0.02) * 30, 0, 1)
        return np.asarray(line - chart.z)

    return field


def open_front(half_width: float, spread: float = 0.0) -> Border:
    """Return a field that is positive beside an open front, `spread` times wider at the hem."""
    hip = float(body_model().head("upperleg01.L")[2])

    def field(chart: Chart) -> Field:
        if half_width < 0:
            return np.ones(len(chart.points))
        width = half_width * (1 + spread * np.clip((hip + 0.1 - chart.z) / 0.6, 0, 1))
        return np.asarray(np.abs(chart.x) - width + 4 * np.clip(chart.y + 0.03, 0, 1))

    return field


def shoe(kind: str) -> Border:
    """Return a field that is positive on the foot up to the opening of a kind of shoe."""
    if kind == "boot":
        return from_leg(0.76)
    ankle = float(body_model().head("foot.L")[2])
    top = ankle + {"trainer": 0.004, "low": -0.004, "pump": -0.014}[kind]
    tilt = {"trainer": 0.10, "low": 0.12, "pump": 0.30}[kind]

    def field(chart: Chart) -> Field:
        # Low in front of the ankle, where the foot comes out; the tongue of a trainer is higher.
        return np.where(chart.leg < 0.5, -1, top - tilt * np.clip(-chart.y - 0.005, 0, 0.06) - chart.z)

    return field
