"""Hair: a cap over the scalp with a hairline, and for longer styles a curtain, a tail or a knot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sgsfa_synth.body import BodyModel, Rest, sheet
from sgsfa_synth.identity import Hair
from sgsfa_synth.mesh import FloatArray, Label, Material
from sgsfa_synth.patterns import noise_at
from sgsfa_synth.pieces import Piece, draped, follow, lifted, rigid, thing
from sgsfa_synth.solids import Finish, Solid, ellipsoid, tube
from sgsfa_synth.solids import sheet as surface_of

HEAD_AXIS_Y = -0.05
"""Canonical y of the vertical axis through the middle of the head (x = 0)."""

# Canonical height of the hairline by azimuth from the middle of the forehead to the nape: temples, sideburns in front
# of the ear, over the ear, and down behind it.
_AZIMUTH = np.radians([0, 25, 42, 55, 64, 70, 78, 84, 96, 106, 118, 140, 180])
_LINE = np.array([0.874, 0.873, 0.866, 0.845, 0.812, 0.782, 0.780, 0.808, 0.812, 0.790, 0.752, 0.728, 0.716])

# Parted long hair opens over the forehead and falls past the temples; a fringe hangs to the brows.
_FRAMING = np.array([0.886, 0.877, 0.858, 0.826, 0.792, 0.775, 0.775, 0.800, 0.806, 0.785, 0.750, 0.728, 0.716])
_FRINGE = np.array([0.829, 0.829, 0.829, 0.826, 0.800, 0.780, 0.778, 0.802, 0.808, 0.788, 0.752, 0.728, 0.716])

_THICKNESS = {
    "crop": 0.005,
    "short": 0.015,
    "curly": 0.026,
    "bob": 0.017,
    "long": 0.014,
    "ponytail": 0.009,
    "bun": 0.009,
}


def azimuth(points: FloatArray) -> NDArray[np.floating]:
    """Return the angle about the head's axis, 0 at the forehead, pi at the back; equal on both sides."""
    angle: NDArray[np.floating] = np.abs(np.arctan2(points[:, 0], -(points[:, 1] - HEAD_AXIS_Y)))
    return angle


def above_hairline(points: FloatArray, hair: Hair) -> FloatArray:
    """Return (P,) metres above the hairline at canonical points of the head; negative where no hair covers it."""
    lines = _FRINGE if hair.fringe else _FRAMING if hair.style in ("long", "bob") else _LINE
    if lines is _FRAMING:
        # The opening is at the parting.
        points = points - np.array([0.6 * hair.parting, 0, 0], np.float32) * (points[:, 1:2] < -0.08)
    line = np.interp(azimuth(points), _AZIMUTH, lines)
    height: FloatArray = (points[:, 2] - line).astype(np.float32)
    return height


def covered_scalp(model: BodyModel, hair: Hair) -> FloatArray:
    """Return (V,) how far inside the hair a vertex of the head is, in metres; negative elsewhere."""
    height = above_hairline(model.template, hair)
    below_head = model.template[:, 2] < model.head("head")[2] - 0.06
    return np.where(below_head | (model.arm_weight > 0.1), -1, height).astype(np.float32)


def hair_pieces(
    model: BodyModel, rest: Rest, hair: Hair, *, under_hat: bool, clearance: float, texture: int
) -> list[Piece]:
    """Return the hair of a person.

    Args:
        model: Of `body.body_model`.
        rest: The person's body.
        hair: Style, parting, volume, length.
        under_hat: Flat on the crown.
        clearance: How far clothes stand off the back, in metres.
        texture: Seed.
    """
    if hair.style == "bald":
        return []
    pieces = [_cap(model, rest, hair, under_hat, texture)]
    if hair.style in ("long", "bob"):
        pieces.append(_curtain(model, rest, hair, clearance, texture))
    elif hair.style == "ponytail":
        pieces.append(_tail(model, rest, hair, clearance))
    elif hair.style == "bun":
        pieces.append(_knot(model, rest, hair, under_hat))
    return pieces


def _cap(model: BodyModel, rest: Rest, hair: Hair, under_hat: bool, texture: int) -> Piece:
    points = sheet("scalp").chart.points
    height = above_hairline(points, hair)
    turn = azimuth(points)
    crown = np.clip((points[:, 2] - 0.83) / 0.06, 0, 1)
    body = np.clip(height / 0.035, 0, 1) ** 0.7
    thick = _THICKNESS[hair.style] * hair.volume
    if hair.style == "short":
        # Short at the sides and the neck, full on top, a little higher over the forehead.
        lift = (0.35 + 0.75 * crown) * (1 + 0.35 * np.exp(-((turn / 0.9) ** 2)) * crown)
    elif hair.style == "curly":
        lift = 0.75 + 0.45 * crown
    else:
        lift = 0.8 + 0.25 * crown
    coarse = 0.6 * noise_at(points, 26.0, texture) + 0.4 * noise_at(points, 70.0, texture + 2)
    rough = {"curly": 0.9, "short": 0.8, "crop": 0.2}.get(hair.style, 0.25)
    offset = thick * body * lift * (1 - rough / 2 + rough * coarse)
    if hair.style not in ("crop", "curly", "ponytail", "bun"):
        groove = np.exp(-(((points[:, 0] - hair.parting) / 0.007) ** 2)) * np.clip(1.9 - turn, 0, 1) * crown
        offset -= 0.35 * thick * groove
    if under_hat:
        offset = np.minimum(offset, 0.005)
    # Strands over the forehead lie off it.
    over = np.clip(above_hairline(points, replace(hair, style="short", fringe=False)) / -0.02, 0, 1)
    offset += 0.005 * over * (height > 0)
    # The line itself is uneven: strands start a little higher or lower.
    ragged = height + 0.004 * (noise_at(points, 60.0, texture + 1) - 0.5)
    return draped(model, "scalp", lifted(rest, "scalp", 0.0015 + offset), [ragged], Material.HAIR, Label.HAIR)


def _curtain(model: BodyModel, rest: Rest, hair: Hair, clearance: float, texture: int) -> Piece:
    """Return the hair that falls from the sides and the back of the head, open at the face."""
    start, columns, rows = np.radians(66), 44, 18
    turn = np.linspace(start, 2 * np.pi - start, columns)
    back = np.clip((np.minimum(turn, 2 * np.pi - turn) - start) / (np.radians(120) - start), 0, 1)
    if hair.style == "bob":
        end = 0.690 - 0.012 * back + 0.01 * np.cos(2 * turn)
    else:
        end = (0.655 - 0.05 * hair.length / 0.36) * (1 - back) + (0.655 - hair.length) * back
    wobble = noise_at(np.stack([np.cos(turn), np.sin(turn), turn], 1).astype(np.float32), 5.0, texture)
    end = end + 0.03 * (wobble - 0.5)
    t = np.linspace(0, 1, rows)[:, None]
    z = 0.872 + (end - 0.872) * t
    # Cross-section by height: over the skull, past the ears, in at the neck, over shoulders and back.
    knots = [0.30, 0.50, 0.60, 0.66, 0.71, 0.76, 0.80, 0.84, 0.872]
    full = hair.volume - 1
    half_width = np.interp(z, knots, [0.120, 0.122, 0.116, 0.104, 0.100, 0.102, 0.100, 0.094, 0.072]) + 0.012 * full
    half_depth = np.interp(z, knots, [0.118, 0.128, 0.124, 0.110, 0.104, 0.112, 0.114, 0.110, 0.090]) + 0.012 * full
    if hair.style == "bob":
        half_width = half_width - 0.018 * np.clip((0.72 - z) / 0.04, 0, 1)
    stand_off = (clearance + 0.004) * np.clip((0.70 - z) / 0.1, 0, 1)
    wave = 1 + 0.05 * (
        noise_at(
            np.stack(np.broadcast_arrays(8 * np.cos(turn) + 0 * z, 8 * np.sin(turn) + 0 * z, 9 * z), -1)
            .reshape(-1, 3)
            .astype(np.float32),
            1.0,
            texture + 2,
        ).reshape(z.shape)
        - 0.5
    ) * np.clip(t * 3, 0, 1)
    x = half_width * np.sin(turn) * wave
    y = (
        HEAD_AXIS_Y
        - half_depth * np.cos(turn) * wave
        + stand_off * np.clip(-np.cos(turn), 0, 1)
        - 0.012 * np.clip(-np.cos(turn), 0, 1) * np.clip((z - 0.80) / 0.07, 0, 1)
    )
    shape = surface_of(np.stack([x, y, z], -1), hair.colour, Finish.HAIR)
    points = shape.vertices.astype(np.float32)
    share = np.clip((points[:, 2] - 0.50) / 0.14, 0, 1)
    skinning = rigid(model, len(points), ("head", "spine01"), np.stack([share, 1 - share], 1))
    placed = follow(model, rest, points)
    # Locks end at different heights, and the front edge is not a ruler.
    column = np.tile(turn, rows)
    ends = noise_at(
        np.stack([9 * np.cos(column), 9 * np.sin(column), 0 * column], 1).astype(np.float32), 1.6, texture + 3
    )
    tips = np.repeat(1 - np.linspace(0, 1, rows), columns) - 0.16 * ends
    return thing(shape, placed, skinning, material=Material.LOCKS, label=Label.HAIR, fields=[tips])


def _tail(model: BodyModel, rest: Rest, hair: Hair, clearance: float) -> Piece:
    root = np.array([0.0, 0.050, 0.845])
    reach = 0.14 + 0.5 * hair.length
    steps = np.linspace(0, 1, 9)[:, None]
    hang = np.array([0.0, 0.046 + 0.6 * clearance, 0.0]) * np.sin(np.pi * np.clip(steps * 0.75, 0, 1)) ** 0.8
    path = root + hang + np.array([0.0, 0.0, -reach]) * steps**1.25
    width = np.interp(steps[:, 0], [0, 0.12, 0.3, 0.7, 1], [0.013, 0.016, 0.026, 0.022, 0.004]) * hair.volume
    return _on_head(model, rest, tube(path, width, hair.colour, Finish.HAIR, sides=12))


def _knot(model: BodyModel, rest: Rest, hair: Hair, under_hat: bool) -> Piece:
    size = 0.036 * hair.volume
    centre = (0.0, 0.062, 0.775) if under_hat else (0.0, 0.041, 0.862)
    return _on_head(model, rest, ellipsoid((size, size * 0.9, size), hair.colour, Finish.HAIR, rows=12).moved(*centre))


def _on_head(model: BodyModel, rest: Rest, shape: Solid) -> Piece:
    points = shape.vertices.astype(np.float32)
    skinning = rigid(model, len(points), ("head",))
    # As a whole: neighbours on different sides of the neck would tear a tail apart.
    shift = follow(model, rest, points[:1])[0] - points[0]
    return thing(shape, points + shift, skinning, material=Material.LOCKS, label=Label.HAIR)
