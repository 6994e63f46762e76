"""What cloth looks like: stripes, plaid, prints and emblems, drawn in the canonical coordinates of the body.

A pattern is a share of a second and of a third colour at each point; both are soft-edged, so that fine patterns fade
instead of flickering when they are small.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sgsfa_synth.jit import njit
from sgsfa_synth.mesh import FloatArray
from sgsfa_synth.noise import noise3


class Pattern(IntEnum):
    """Kinds of pattern."""

    PLAIN = 0
    STRIPES = 1
    PINSTRIPES = 2
    PLAID = 3
    BLOCKS = 4
    FLORAL = 5
    LOGO = 6
    YOKE = 7
    CAMO = 8
    DOTS = 9
    MELANGE = 10
    RAGLAN = 11
    CHECKS = 12
    BARS = 13
    GRADIENT = 14
    SASH = 15
    BAND = 16
    HALVES = 17
    MARBLE = 18
    ZIGZAG = 19
    PANELS = 20


@dataclass(frozen=True, slots=True)
class Cloth:
    """A woven or printed material.

    Args:
        pattern: Its kind.
        main, second, third: Linear albedos.
        scale: Coarseness, 1 usual.
        seed: Of the details.
        emblem: Sum of 1 (a print on the chest), 2 (on the back) and 4 (prints are large).
    """

    pattern: Pattern
    main: tuple[float, float, float]
    second: tuple[float, float, float]
    third: tuple[float, float, float]
    scale: float
    seed: int
    emblem: int


def sample_cloth(
    design: tuple[str, int],
    main: tuple[float, float, float],
    second: tuple[float, float, float],
    third: tuple[float, float, float],
    *,
    trim: bool = False,
) -> Cloth:
    """Return the cloth of a design in given colours.

    Args:
        design: Name of the pattern in lower case and the seed of its details; equal designs look equal.
        main: Albedo of the ground.
        second: Albedo of the pattern.
        third: Albedo of accents.
        trim: Make sure that the second colour shows: plain cloth becomes colour blocks.
    """
    name, seed = design
    rng = np.random.default_rng([seed, 5])
    pattern = Pattern[name.upper()]
    if pattern is Pattern.BLOCKS and rng.random() < 0.4:
        pattern = Pattern.RAGLAN
    emblem = int(rng.choice([1, 2, 3], p=[0.7, 0.1, 0.2])) if pattern is Pattern.LOGO or rng.random() < 0.12 else 0
    scale = float(np.exp(rng.normal(0, 0.3)))
    if trim and pattern in (Pattern.PLAIN, Pattern.LOGO, Pattern.MELANGE):
        pattern = Pattern.BLOCKS
    contrast = sum(abs(a - b) for a, b in zip(main, second, strict=True))
    if pattern is not Pattern.PLAIN and contrast < 0.12:
        # A pattern of nearly the same shade could not be seen.
        second = (0.68, 0.67, 0.64) if sum(main) < 0.6 else (0.03, 0.035, 0.05)
    return Cloth(pattern, main, second, third, scale, seed & 0x7FFF, emblem)


def of_mean(cloth: Cloth, mean: tuple[float, float, float]) -> Cloth:
    """Return the cloth in colours that, from afar, are `mean`: two cloths of one mean differ in pattern only.

    The mean is that of cube roots of linear light, so that it holds for L*a*b*, and at any exposure. The ground is
    found by halving; where no ground can balance the pattern, the pattern's own colours come nearer to the mean.

    Args:
        cloth: Pattern and wanted colours; `main` is replaced. An emblem would not be counted.
        mean: Linear albedo.
    """
    if cloth.pattern is Pattern.PLAIN:
        return replace(cloth, main=mean)
    shares = _sampled_shares(cloth.pattern, cloth.scale, cloth.seed)
    wanted, darkest, lightest = np.cbrt(mean), 0.004, 0.80
    figures = [np.cbrt(colour) for colour in (cloth.second, cloth.third)]

    def seen(ground: NDArray[np.float64], second: NDArray[np.float64], third: NDArray[np.float64]) -> NDArray[Any]:
        mixed = ground + shares[:, :1] * (second - ground) + shares[:, 1:] * (third - ground)
        return np.asarray(np.cbrt(mixed).mean(0))

    nearer = np.ones(3)
    for _ in range(24):
        second, third = ((wanted + nearer * (figure - wanted)) ** 3 for figure in figures)
        possible = (seen(np.full(3, darkest), second, third) <= wanted) & (
            seen(np.full(3, lightest), second, third) >= wanted
        )
        if possible.all():
            break
        nearer = np.where(possible, nearer, 0.85 * nearer)
    low, high = np.full(3, darkest), np.full(3, lightest)
    for _ in range(24):
        middle = (low + high) / 2
        above = seen(middle, second, third) > wanted
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return replace(cloth, main=_colour((low + high) / 2), second=_colour(second), third=_colour(third))


def _colour(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _sampled_shares(pattern: Pattern, scale: float, seed: int) -> FloatArray:
    """Return (2000, 2) shares of the second and third colour all over a chest."""
    points = np.random.default_rng(8).uniform([-0.15, -0.10, 0.0], [0.15, -0.10, 0.45], (2000, 3)).astype(np.float32)
    shares = np.zeros((len(points), 2), np.float32)
    _shares(int(pattern), points, np.full(len(points), -1, np.float32), scale, seed, 0.45, 0.0, False, shares)
    return shares


def paint(
    cloth: Cloth, points: FloatArray, arm: FloatArray, *, shoulder: float, hip: float, legs: bool = False
) -> FloatArray:
    """Return the colour of cloth at points of the body.

    Args:
        cloth: Its look.
        points: (P, 3) canonical coordinates, metres.
        arm: (P,) coordinate along the arm, -1 off the arms.
        shoulder: Canonical height of the shoulder joints.
        hip: Canonical height of the hip joints.
        legs: Trousers, of which each leg has its own pattern; other cloth continues below the hips.

    Returns:
        (P, 3) float32 linear albedo.
    """
    shares = np.zeros((len(points), 2), np.float32)
    _shares(int(cloth.pattern), points, arm, cloth.scale, cloth.seed, shoulder, hip, legs, shares)
    if cloth.emblem:
        _print(cloth, points, arm, shoulder, shares)
    main, second, third = (np.asarray(c, np.float32) for c in (cloth.main, cloth.second, cloth.third))
    result: FloatArray = main + shares[:, :1] * (second - main) + shares[:, 1:] * (third - main)
    return result


@njit
def _step(value: float, width: float) -> float:
    """Return 0 below -width, 1 above width, linear between."""
    return min(1.0, max(0.0, 0.5 + 0.5 * value / width))


@njit
def _shares(
    pattern: int,
    points: FloatArray,
    arm: FloatArray,
    scale: float,
    seed: int,
    shoulder: float,
    hip: float,
    legs: bool,
    out: FloatArray,
) -> None:
    phase = (seed % 97) / 97.0
    for i in range(points.shape[0]):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        # Metres along (s) and around (t) the trunk or the sleeve.
        if arm[i] > 0.03:
            s = arm[i] * 0.55
            # The forearm leads forward in the rest pose.
            t = math.atan2(y + 0.025 + 0.35 * max(arm[i] - 0.5, 0.0), abs(x) * 0.74 + z * 0.67 - 0.505) * 0.055
        elif legs and z < hip - 0.10:
            # Each leg by itself: its axis leads from the hip joint out to the ankle.
            s = shoulder - z
            t = math.atan2(abs(x) - 0.11 - 0.09 * (hip - z), -(y + 0.01)) * 0.075
        else:
            # Lines run straight up chest and back; towards the sides the cloth turns with the body, up to a seam.
            s = shoulder - z
            t = abs(x) + max(0.0, 0.07 - abs(y + 0.015))
        second, third = 0.0, 0.0
        if pattern == 1:
            second = _step(math.sin(2 * math.pi * (s / (0.075 * scale) + phase)) - 0.1, 0.25)
        elif pattern == 2:
            second = _step(math.cos(2 * math.pi * t / (0.034 * scale)) - 0.72, 0.2)
        elif pattern == 3:
            across = _step(math.sin(2 * math.pi * (s / (0.11 * scale) + phase)) - 0.1, 0.15)
            down = _step(math.sin(2 * math.pi * t / (0.105 * scale)) - 0.1, 0.15)
            second = 0.5 * (across + down)
            third = (
                _step(
                    max(math.cos(2 * math.pi * s / (0.055 * scale)), math.cos(2 * math.pi * t / (0.0525 * scale)))
                    - 0.95,
                    0.04,
                )
                * 0.7
            )
            second *= 1.0 - third
        elif pattern == 4:
            line = 0.10 + 0.22 * phase
            if arm[i] < 0.1:
                second = _step(shoulder - z - line, 0.004)
                if seed & 1:
                    third = _step(0.022 - abs(shoulder - z - line), 0.004)
                    second *= 1.0 - third
            elif seed & 2:
                second = 1.0
        elif pattern == 5:
            petals = noise3(x * 42 / scale, y * 42 / scale, z * 42 / scale, seed)
            leaves = noise3(x * 30 / scale, y * 30 / scale, z * 30 / scale, seed + 9)
            second = _step(petals - 0.66, 0.05)
            third = _step(leaves - 0.70, 0.05) * (1.0 - second)
        elif pattern == 7:
            second = _step(z - (shoulder - 0.06 - 0.05 * phase), 0.004)
        elif pattern == 8:
            blotch = 0.6 * noise3(x * 13, y * 13, z * 10, seed) + 0.4 * noise3(x * 29, y * 29, z * 22, seed + 3)
            second = _step(blotch - 0.55, 0.02)
            third = _step(0.40 - blotch, 0.02)
        elif pattern == 9:
            dots = math.cos(2 * math.pi * s / (0.045 * scale)) * math.cos(2 * math.pi * t / (0.045 * scale))
            second = _step(dots - 0.45, 0.12)
        elif pattern == 10:
            second = 0.45 * noise3(x * 160, y * 160, z * 60, seed)
        elif pattern == 11:
            # Sleeves of another colour; the seam runs from the neck to the armpit.
            second = _step(abs(x) - 0.085 - 0.55 * (shoulder + 0.07 - z), 0.006) if arm[i] < 0.1 else 1.0
            if z < shoulder - 0.16 and arm[i] < 0.1:
                second = 0.0
        elif pattern == 12:
            cells = math.sin(math.pi * (s / (0.062 * scale) + phase)) * math.sin(math.pi * t / (0.062 * scale))
            second = _step(cells, 0.10)
        elif pattern == 13:
            second = _step(math.cos(2 * math.pi * t / (0.070 * scale)) - 0.1, 0.20)
        elif pattern == 14:
            second = min(max((s - 0.05) / 0.50 + 0.6 * (phase - 0.5), 0.0), 1.0)
        elif pattern == 15:
            lean = x if seed & 1 else -x
            second = _step(0.055 * scale - abs(s - 0.22 - 0.9 * lean), 0.006)
        elif pattern == 16:
            line = abs(s - 0.12 - 0.18 * phase)
            second = _step(0.045 * scale - line, 0.004)
            third = _step(0.012 - abs(line - 0.045 * scale), 0.003)
            second *= 1.0 - third
        elif pattern == 17:
            second = _step(x if seed & 1 else -x, 0.004)
        elif pattern == 18:
            swirl = noise3(x * 9 / scale, y * 9 / scale, z * 9 / scale, seed)
            veins = 0.5 + 0.5 * math.sin(22 * swirl + 14 * s / scale)
            second = _step(veins - 0.45, 0.25)
            third = _step(noise3(x * 14, y * 14, z * 14, seed + 5) - 0.62, 0.08) * (1.0 - second)
        elif pattern == 19:
            tooth = abs((t / (0.09 * scale)) % 1.0 - 0.5)
            wave = (s / (0.10 * scale) + 0.7 * tooth + phase) % 1.0
            second = _step(abs(wave - 0.5) - 0.26, 0.04)
            third = _step(0.06 - abs(wave - 0.5), 0.03)
        elif pattern == 20:
            second = _step(abs(x) - 0.095, 0.005) if arm[i] < 0.1 else 1.0
            third = _step(0.010 - abs(abs(x) - 0.095), 0.003) if arm[i] < 0.1 else 0.0
            second *= 1.0 - third
        if z < hip and pattern in (4, 7, 11):
            # Below the waist of a dress these would run on: keep the block, not the seams.
            third = 0.0
        out[i, 0] = second
        out[i, 1] = third


_EMBLEM = (64, 96)
_LARGE = 4


@functools.lru_cache(maxsize=256)
def _emblem(seed: int) -> NDArray[np.uint8]:
    """Return (64, 96) uint8 picture: letters, or a few shapes; 0 nothing, 1 second colour, 2 third."""
    rng = np.random.default_rng([seed, 6])
    picture = np.zeros(_EMBLEM, np.uint8)
    if rng.random() < 0.5:
        letters = "".join(chr(65 + int(k)) for k in rng.integers(0, 26, int(rng.integers(2, 6))))
        size = cv2.getTextSize(letters, cv2.FONT_HERSHEY_DUPLEX, 1.0, 3)[0]
        scale = min(90 / size[0], 1.6)
        place = (int(48 - size[0] * scale / 2), int(32 + size[1] * scale / 2))
        cv2.putText(picture, letters, place, cv2.FONT_HERSHEY_DUPLEX, scale, 1, 5 if scale > 1 else 3)
        if rng.random() < 0.4:
            cv2.line(picture, (8, 58), (88, 58), 2, 4)
    else:
        for number in range(int(rng.integers(2, 5))):
            centre = (int(rng.integers(28, 68)), int(rng.integers(20, 44)))
            axes = (int(rng.integers(8, 26)), int(rng.integers(6, 20)))
            filled = -1 if rng.random() < 0.5 else 5
            cv2.ellipse(picture, centre, axes, float(rng.integers(180)), 0, 360, 1 + number % 2, filled)
    return picture


def _print(cloth: Cloth, points: FloatArray, arm: FloatArray, shoulder: float, shares: FloatArray) -> None:
    """Put the emblem on chest and back, in place."""
    rng = np.random.default_rng([cloth.seed, 7])
    width, height = rng.uniform(0.10, 0.26), rng.uniform(0.07, 0.20)
    if cloth.emblem & _LARGE:
        width, height = rng.uniform(0.24, 0.32), rng.uniform(0.22, 0.38)
    picture = _emblem(cloth.seed)
    x, y, z = points.T
    for bit, facing in ((1, -1.0), (2, 1.0)):
        if not cloth.emblem & bit:
            continue
        # Letters must read from outside: the person's left is on the right of who looks at the chest.
        u = (-facing * x / width + 0.5) * _EMBLEM[1]
        v = ((shoulder - 0.07 - z) / height) * _EMBLEM[0]
        on = (u >= 0) & (u < _EMBLEM[1]) & (v >= 0) & (v < _EMBLEM[0]) & (y * facing > -0.02) & (arm < 0.15)
        ink = picture[v[on].astype(np.int32), u[on].astype(np.int32)]
        rows = np.flatnonzero(on)
        shares[rows[ink > 0]] = 0.0
        shares[rows[ink == 1], 0] = 1.0
        shares[rows[ink == 2], 1] = 1.0


def noise_at(points: FloatArray, frequency: float, seed: int) -> FloatArray:
    """Return (P,) float32 value noise in [0, 1) at points (P, 3), `frequency` features a metre."""
    out = np.empty(len(points), np.float32)
    _noise_at(np.ascontiguousarray(points, np.float32), frequency, seed, out)
    return out


@njit
def _noise_at(points: FloatArray, frequency: float, seed: int, out: FloatArray) -> None:
    for i in range(points.shape[0]):
        out[i] = noise3(points[i, 0] * frequency, points[i, 1] * frequency, points[i, 2] * frequency, seed)
