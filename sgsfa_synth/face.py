"""Colour of skin, above all of the face: eyes' surroundings, brows, nose, lips, beard.

Features are drawn in canonical coordinates, where every face has them at the same place; lengths are metres.
"""

from __future__ import annotations

import math

import numpy as np

from sgsfa_synth.body import body_model
from sgsfa_synth.hair import above_hairline
from sgsfa_synth.identity import Identity
from sgsfa_synth.jit import njit
from sgsfa_synth.mesh import FloatArray
from sgsfa_synth.noise import noise3

MOUTH_BELOW_EYES = 0.070
NOSTRILS_BELOW_EYES = 0.046


def face_albedo(canonical: FloatArray, identity: Identity) -> FloatArray:
    """Return (P, 3) float32 linear albedo of skin at canonical points (P, 3)."""
    eye = body_model().head("eye.L")
    out = np.empty((len(canonical), 3), np.float32)
    hairy = identity.hair.style != "bald"
    _skin(
        canonical,
        above_hairline(canonical, identity.hair),
        np.asarray(identity.skin, np.float32),
        np.asarray(identity.hair.colour, np.float32),
        float(eye[0]),
        float(eye[2]),
        identity.hair.brow,
        identity.hair.beard,
        identity.female,
        hairy,
        identity.texture,
        out,
    )
    return out


@njit
def _bell(value: float, width: float) -> float:
    return math.exp(-((value / width) ** 2))


@njit
def _ramp(value: float, low: float, high: float) -> float:
    """Return 0 at `low`, 1 at `high` (either order), smooth between."""
    t = min(1.0, max(0.0, (value - low) / (high - low)))
    return t * t * (3.0 - 2.0 * t)


@njit
def _skin(
    points: FloatArray,
    scalp: FloatArray,
    skin: FloatArray,
    hair: FloatArray,
    eye_x: float,
    eye_z: float,
    brow: float,
    beard: float,
    female: bool,
    hairy: bool,
    seed: int,
    out: FloatArray,
) -> None:
    for i in range(points.shape[0]):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        side = abs(x)
        dark = 0.93 + 0.14 * noise3(x * 34, y * 34, z * 34, seed)
        red = 0.0
        cover = 0.0
        up = z - eye_z
        out_of_eye = side - eye_x
        if z > 0.64 and y < -0.03:
            front = _ramp(y, -0.060, -0.085)
            # Eyes: the socket's shade, the crease, and lashes along the lids.
            dark *= 1 - 0.22 * front * _bell(out_of_eye + 0.003, 0.020) * _bell(up - 0.006, 0.012)
            ring = (out_of_eye / 0.0165) ** 2 + ((up + 0.0005) / 0.0078) ** 2
            lash = _bell(ring - 1.0, 0.42) * (0.85 if up > -0.001 else 0.35)
            dark *= 1 - front * lash
            dark *= 1 - 0.18 * front * _bell(up + 0.013, 0.004) * _bell(out_of_eye, 0.014)
            # Brows: an arch that thins outwards.
            along = (side - 0.0135) / 0.039
            arch = 0.0175 + 0.0055 * math.sin(min(max(along, 0.0), 1.0) * 2.4)
            thick = 0.0042 * (1.0 - 0.45 * along) * (0.8 if female else 1.15)
            if -0.1 < along < 1.05:
                hairs = 0.75 + 0.5 * noise3(x * 420, y * 100, z * 160, seed + 4)
                ends = _ramp(along, -0.1, 0.06) * _ramp(along, 1.05, 0.85)
                cover = max(cover, min(1.0, brow * hairs * _bell(up - arch, thick) * ends * front))
            # Nose: nostrils, the shade under the tip, wings.
            below = up + 0.046
            dark *= 1 - 0.55 * front * _bell(side - 0.0085, 0.0042) * _bell(below + 0.001, 0.0030)
            dark *= 1 - 0.22 * front * _bell(side, 0.013) * _bell(below + 0.007, 0.005)
            dark *= 1 - 0.14 * front * _bell(side - 0.0175, 0.004) * _bell(below - 0.006, 0.009)
            red += 0.10 * front * _bell(side, 0.012) * _bell(below - 0.006, 0.010)
            # Cheeks.
            red += (0.16 if female else 0.10) * front * _bell(side - 0.044, 0.020) * _bell(up + 0.038, 0.018)
            # Mouth.
            mouth = up + 0.070 - 1.6 * side * side
            width = 0.0245 if not female else 0.0225
            if side < width * 1.15:
                taper = max(0.0, 1.0 - (side / width) ** 2)
                bow = 0.0012 * _bell(side, 0.004)
                upper = (0.0072 * taper**0.7 - bow) if taper > 0 else 0.0
                lower = 0.0098 * taper**0.6 if taper > 0 else 0.0
                inside = _ramp(mouth, upper + 0.0012, upper - 0.0008) * _ramp(mouth, -lower - 0.0012, -lower + 0.0008)
                red += (0.62 if female else 0.42) * inside * front
                dark *= 1 - (0.16 if mouth > 0 else 0.04) * inside * front
                dark *= 1 - 0.62 * front * _bell(mouth, 0.0015) * _ramp(side, width * 1.05, width * 0.85)
            dark *= 1 - 0.14 * front * _bell(side, 0.016) * _bell(mouth + 0.0165, 0.004)
            # The shade of the chin on the neck and of the jaw under it.
            dark *= 1 - 0.20 * _ramp(z, 0.695, 0.683) * _ramp(y, -0.02, -0.06)
            if beard > 0:
                lip = (side / 0.027) ** 2 + ((mouth + 0.001) / 0.0105) ** 2
                cheek = -0.058 + 1.10 * max(side - 0.034, 0.0)
                jaw = _ramp(up, cheek + 0.006, cheek - 0.006) * _ramp(up, -0.130, -0.116) * _ramp(y, -0.034, -0.046)
                upper_lip = _bell(mouth - 0.0125, 0.0065) * _ramp(side, 0.034, 0.024)
                hairs = 0.6 + 0.6 * noise3(x * 330, y * 330, z * 130, seed + 5)
                cover = max(cover, min(0.92, beard * hairs * max(jaw, upper_lip)) * _ramp(lip, 0.8, 1.2))
        # Ears are redder; so are knuckles, elbows and knees, a little everywhere by noise.
        if z > 0.74 and z < 0.81 and side > 0.072:
            red += 0.10
            dark *= 0.93
        red += 0.06 * (noise3(x * 19, y * 19, z * 19, seed + 7) - 0.5)
        if z > 0.70:
            edge = scalp[i]
            if hairy:
                cover = max(cover, 0.85 * _ramp(edge, -0.008, 0.006))
            else:
                cover = max(cover, 0.16 * _ramp(edge, -0.01, 0.01))
        # Brows and beard are darker than the hair, and fair ones not quite white.
        shade = 0.6 if z < 0.86 and y < -0.06 else 0.9
        out[i, 0] = (skin[0] * (1 + 0.10 * red) * dark) * (1 - cover) + shade * hair[0] * cover
        out[i, 1] = (skin[1] * (1 - 0.62 * red) * dark) * (1 - cover) + shade * hair[1] * cover
        out[i, 2] = (skin[2] * (1 - 0.55 * red) * dark) * (1 - cover) + shade * hair[2] * cover
