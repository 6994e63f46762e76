"""What the pixels of a person look like before light falls on them: albedo, label and relief.

Everything is a function of a pixel's material and of its canonical coordinates, evaluated for each pixel rather than
at vertices, so that features are as sharp as the picture and labels have smooth borders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgsfa_synth.body import body_model, sheet
from sgsfa_synth.face import face_albedo
from sgsfa_synth.hair import above_hairline
from sgsfa_synth.identity import Identity
from sgsfa_synth.jit import njit
from sgsfa_synth.mesh import FloatArray, IntArray, Label, Material, Mesh
from sgsfa_synth.noise import noise3
from sgsfa_synth.patterns import Cloth, noise_at, paint

_CLOTH = (Material.TOP, Material.BOTTOM, Material.SKIRT, Material.COAT, Material.SCARF)


@dataclass(frozen=True, slots=True)
class Fragments:
    """Pixels of a `raster.GBuffer`.

    Args:
        face: (P,) int32 face numbers in the mesh that is shaded, none of them `NOTHING`.
        weights: (P, 2) float32.
    """

    face: IntArray
    weights: FloatArray


@dataclass(frozen=True, slots=True)
class Surface:
    """What `surface` finds.

    Args:
        albedo: (P, 3) float32 linear, in [0, 1].
        label: (P,) uint8 `Label`.
        bump: (P,) float32 height of the relief in metres, for `bend_normals`.
    """

    albedo: FloatArray
    label: NDArray[np.uint8]
    bump: FloatArray


@dataclass(frozen=True, slots=True)
class _Points:
    """Vertex attributes at the fragments: canonical (P, 3), arm (P,), leg (P,)."""

    canonical: FloatArray
    arm: FloatArray
    leg: FloatArray

    def of(self, chosen: NDArray[np.bool_]) -> _Points:
        return _Points(self.canonical[chosen], self.arm[chosen], self.leg[chosen])


def surface(mesh: Mesh, identity: Identity, fragments: Fragments) -> Surface:
    """Return the colour, label and relief of a person's pixels.

    Args:
        mesh: The person's mesh of `garments.dress`, or a merged one that contains it.
        identity: Whose mesh it is.
        fragments: Pixels whose faces all belong to that person.
    """
    attributes = np.concatenate([mesh.canonical, mesh.arm[:, None], mesh.leg[:, None]], axis=1)
    at = np.empty((len(fragments.face), 5), np.float32)
    _gather(attributes, mesh.faces, fragments.face, fragments.weights, at)
    points = _Points(np.ascontiguousarray(at[:, :3]), at[:, 3].copy(), at[:, 4].copy())
    material = mesh.material[fragments.face]
    plain = mesh.colour[fragments.face]
    label = mesh.label[mesh.faces[fragments.face, 0]].copy()
    albedo = np.empty((len(label), 3), np.float32)
    bump = np.zeros(len(label), np.float32)
    for kind in Material:
        chosen = material == kind
        if chosen.any():
            colour, height = _material(kind, identity, points.of(chosen), plain[chosen])
            albedo[chosen], bump[chosen] = colour, height
            if kind in (Material.SKIN, Material.SHOE):
                label[chosen] = (skin_label if kind is Material.SKIN else _shoe_label)(points.canonical[chosen])
    return Surface(np.clip(albedo, 0.0, 1.0), label, bump)


def skin_label(canonical: FloatArray) -> NDArray[np.uint8]:
    """Return (P,) label of bare skin: head and neck are face, shoulders are arm, from the hips down leg.

    In the rest pose the arms are held out and the legs apart, so that planes tell the parts from one another. The
    person's left is +x.
    """
    x, _, z = canonical.T
    left = x >= 0
    shoulder = body_model().head("upperarm01.L")[2]
    hip = body_model().head("upperleg01.L")[2]
    label = np.full(len(x), Label.FACE, np.uint8)
    arm = (np.abs(x) > 0.115) & (z < shoulder + 0.09)
    # Hands reach below the hips, but far out.
    leg = (z < hip + 0.10) & (np.abs(x) < 0.30)
    label[arm] = np.where(left[arm], Label.LEFT_ARM, Label.RIGHT_ARM)
    label[leg] = np.where(left[leg], Label.LEFT_LEG, Label.RIGHT_LEG)
    return label


def _shoe_label(canonical: FloatArray) -> NDArray[np.uint8]:
    return np.where(canonical[:, 0] >= 0, Label.LEFT_SHOE, Label.RIGHT_SHOE).astype(np.uint8)


def _material(
    kind: Material, identity: Identity, points: _Points, plain: FloatArray
) -> tuple[FloatArray, FloatArray | float]:
    """Return the albedo (P, 3) and relief (P,) of the pixels of one material."""
    texture = identity.texture
    if kind in _CLOTH:
        return _cloth(kind, identity, points)
    if kind is Material.SKIN:
        return face_albedo(points.canonical, identity), 0.0
    if kind is Material.EYE:
        return _eye(points.canonical), 0.0
    if kind in (Material.HAIR, Material.LOCKS):
        return _hair(kind, identity, points.canonical)
    if kind is Material.SHOE:
        return _shoe(identity, points)
    if kind is Material.SOCK:
        sock = np.asarray(identity.shoes.sock or (0.5, 0.5, 0.5), np.float32)
        rib = np.sin(2 * np.pi * np.arctan2(points.canonical[:, 0] - 0.18, points.canonical[:, 1]) * 9)
        return _tint(sock, 0.95 + 0.06 * rib), 0.0004 * rib
    if kind is Material.GLOVE:
        glove = np.asarray(identity.gloves or (0.1, 0.1, 0.1), np.float32)
        return _tint(glove, 0.85 + 0.3 * noise_at(points.canonical, 70, texture)), 0.0
    if kind is Material.HAT:
        return _hat(identity, points.canonical)
    if kind is Material.BAG:
        grain = noise_at(points.canonical, 60, texture)
        return plain * (0.90 + 0.2 * grain)[:, None], 0.004 * noise_at(points.canonical, 16, texture)
    return plain, 0.0


def _tint(colour: FloatArray, factor: NDArray[np.floating]) -> FloatArray:
    """Return one colour times (P,) factors."""
    result: FloatArray = (colour[None, :] * np.asarray(factor)[:, None]).astype(np.float32)
    return result


def _wear(kind: Material, identity: Identity) -> Cloth:
    """Return the cloth of a material on this person."""
    if kind is Material.COAT and identity.coat is not None:
        return identity.coat.cloth
    if kind is Material.SCARF and identity.scarf is not None:
        return identity.scarf
    if kind is Material.BOTTOM:
        return identity.top.cloth if identity.garment == "jumpsuit" else identity.bottom.cloth
    if kind is Material.SKIRT:
        return identity.top.cloth if identity.garment == "dress" else identity.bottom.cloth
    return identity.top.cloth


def _cloth(kind: Material, identity: Identity, points: _Points) -> tuple[FloatArray, FloatArray]:
    model = body_model()
    shoulder, hip = float(model.head("upperarm01.L")[2]), float(model.head("upperleg01.L")[2])
    canonical, texture = points.canonical, identity.texture
    x, y, z = canonical.T
    legs = kind is Material.BOTTOM
    albedo = paint(_wear(kind, identity), canonical, points.arm, shoulder=shoulder, hip=hip, legs=legs)
    bump = np.empty(len(x), np.float32)
    stiff = 0.6 if kind is Material.COAT else 1.25 if kind is Material.SCARF else 1.0
    _folds(canonical, points.arm, points.leg, texture, stiff, kind == Material.BOTTOM, bump)
    weave = 0.96 + 0.08 * noise_at(canonical, 210, texture)
    # Folds gather dust and shade themselves.
    shade = weave + 9.0 * np.minimum(bump - 0.004, 0.0)
    front = y < -0.02
    if kind is Material.BOTTOM and identity.bottom.denim and identity.garment != "jumpsuit":
        worn = np.exp(-(((points.leg - 0.28) / 0.22) ** 2)) * np.clip(-y * 12, 0, 1)
        knee = np.exp(-(((points.leg - 0.52) / 0.06) ** 2)) * np.clip(-y * 12, 0, 1)
        twill = noise_at(canonical * np.array([1, 1, 0.35], np.float32), 150, texture)
        fade = np.clip(0.55 * worn + 0.30 * knee, 0, 0.7) + 0.25 * (twill - 0.5)
        albedo = (albedo * (0.82 + 0.6 * fade)[:, None] + 0.05 * np.clip(fade, 0, 1)[:, None]).astype(np.float32)
        seam = (np.abs(y + 0.005) < 0.0035) & (np.abs(x) > 0.11)
        shade = np.where(seam, shade * 0.72, shade)
    if kind is Material.BOTTOM and identity.bottom.side_stripe:
        stripe = (np.abs(y + 0.005) < 0.014) & (np.abs(x) > 0.115 + 0.05 * np.clip(points.leg, 0, 1))
        albedo[stripe] = identity.bottom.cloth.second
    if kind is Material.COAT and identity.coat is not None:
        if identity.coat.padded:
            quilt = np.where(points.arm >= 0, points.arm * 0.55, shoulder - z)
            bump += 0.010 * np.sqrt(np.abs(np.sin(np.pi * quilt / 0.085)))
            shade = shade * (1 - 0.35 * np.exp(-((np.sin(np.pi * quilt / 0.085) / 0.12) ** 2)))
        if identity.coat.opening < 0:
            closure = front & (np.abs(x) < 0.006) & (points.arm < 0)
            shade = np.where(closure, shade * 0.45, shade)
        pockets = (
            front & (np.abs(np.abs(x) - 0.105) < 0.045) & (np.abs(z - hip - 0.075 - 0.3 * (np.abs(x) - 0.105)) < 0.005)
        )
        shade = np.where(pockets, shade * 0.5, shade)
    if kind is Material.TOP and identity.top.collar:
        button = np.hypot(x, (z % 0.085) - 0.04) < 0.006
        band = front & (np.abs(np.abs(x) - 0.014) < 0.0022)
        shade = np.where(front & (points.arm < 0) & button, shade * 0.55 + 0.25, np.where(band, shade * 0.78, shade))
    if kind is Material.TOP and identity.top.hood:
        cord = front & (np.abs(np.abs(x) - 0.032) < 0.0035) & (z > shoulder - 0.10) & (z < shoulder + 0.05)
        pouch = (
            front
            & (np.abs(np.abs(x) - 0.10 + 0.35 * np.clip(z - hip - 0.10, 0, 0.1)) < 0.005)
            & (np.abs(z - hip - 0.13) < 0.07)
        )
        albedo[cord] = np.array([0.6, 0.6, 0.58], np.float32)
        shade = np.where(pouch, shade * 0.62, shade)
    return (albedo * shade[:, None]).astype(np.float32), bump


@njit
def _folds(
    points: FloatArray, arm: FloatArray, leg: FloatArray, seed: int, strength: float, trousers: bool, out: FloatArray
) -> None:
    """Return the height of the folds of cloth: long soft ones, and rings where elbows, knees and ankles bend it."""
    for i in range(points.shape[0]):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        bent = (noise3(x * 7, y * 7, z * 7, seed + 1) - 0.5) * 0.10
        # Ridges rise to a round back, mostly up and down; the rest is soft.
        ridge = 1.0 - (2.0 * noise3(x * 12 + bent * 22, y * 12, z * 5 + bent * 16, seed) - 1.0) ** 2
        soft = noise3(x * 21, y * 21, z * 12, seed + 2)
        height = 0.0042 * ridge * ridge * ridge + 0.0036 * soft
        if arm[i] >= 0.0:
            near = math.exp(-(((arm[i] - 0.5) / 0.13) ** 2)) + 0.6 * math.exp(-(((arm[i] - 0.93) / 0.07) ** 2))
            ring = math.sin(arm[i] * 62 + 90 * bent + 22 * y + 9 * x)
            height += 0.0022 * near * soft * (ring + 0.4 * math.sin(2.3 * arm[i] * 62 - 60 * bent))
        elif trousers:
            near = math.exp(-(((leg[i] - 0.5) / 0.09) ** 2)) + 1.2 * math.exp(-(((leg[i] - 0.95) / 0.09) ** 2))
            near += 0.8 * math.exp(-(((leg[i] - 0.03) / 0.08) ** 2))
            ring = math.sin(leg[i] * 48 + 100 * bent + 26 * x + 8 * y)
            height += 0.0026 * near * soft * (ring + 0.4 * math.sin(2.3 * leg[i] * 48 - 60 * bent))
        out[i] = strength * height


def _eye(canonical: FloatArray) -> FloatArray:
    centre = body_model().head("eye.L")
    distance = np.hypot(np.abs(canonical[:, 0]) - centre[0], canonical[:, 2] - centre[2] + 0.001)
    white = np.array([0.40, 0.37, 0.355], np.float32)
    iris = np.array([0.060, 0.040, 0.028], np.float32)
    share = np.clip((distance - 0.0068) / 0.0012, 0, 1)[:, None]
    result: FloatArray = (iris + share * (white - iris)).astype(np.float32)
    return result


def _hair(kind: Material, identity: Identity, canonical: FloatArray) -> tuple[FloatArray, FloatArray]:
    style, texture = identity.hair.style, identity.texture
    strands = _strands(canonical, style == "curly", identity.hair.parting, texture)
    factor = 0.62 + 0.75 * strands
    if style in ("long", "bob"):
        # Tips are lighter than roots.
        factor = factor * (1 + 0.25 * np.clip((0.80 - canonical[:, 2]) / 0.3, 0, 1))
    albedo = _tint(np.asarray(identity.hair.colour, np.float32), factor)
    bump = (0.003 if style == "curly" else 0.0012) * strands
    if kind is Material.HAIR:
        # Towards the hairline the scalp shows between the strands.
        height = above_hairline(canonical, identity.hair)
        depth = 0.016 if style == "crop" else 0.010
        dense = np.clip((height + 0.010 * (strands - 0.5)) / depth, 0, 1)[:, None] ** 0.8
        if style == "crop":
            dense = dense * 0.85
        scalp = 0.35 * albedo + 0.65 * np.asarray(identity.skin, np.float32)
        albedo = (albedo * dense + (1 - dense) * scalp).astype(np.float32)
    return albedo, bump.astype(np.float32)


def _strands(canonical: FloatArray, curly: bool, parting: float, seed: int) -> FloatArray:
    """Return (P,) in [0, 1]: noise that is long along the way hair falls, away from the parting and down."""
    if curly:
        return 0.6 * noise_at(canonical, 95, seed) + 0.4 * noise_at(canonical, 210, seed + 1)
    x, y, z = canonical.T
    # Around the head, hair runs down; on the crown, it runs to the side.
    turn = np.arctan2(x, -(y + 0.05))
    crown = np.clip((z - 0.885) / 0.02, 0, 1)
    across = (1 - crown) * turn * 0.085 + crown * y
    along = (1 - crown) * z + crown * np.abs(x - parting)
    flow = np.stack([across, along * 0.10, 0.02 * crown], axis=1).astype(np.float32)
    result: FloatArray = 0.55 * noise_at(flow, 150, seed) + 0.45 * noise_at(flow, 420, seed + 1)
    return result


def _shoe(identity: Identity, points: _Points) -> tuple[FloatArray, FloatArray]:
    shoes = identity.shoes
    x, y, z = points.canonical.T
    model = body_model()
    ground = float(model.template[sheet("feet").vertices, 2].min())
    ankle = model.head("foot.L")
    upper = np.asarray(shoes.colour, np.float32)
    factor = 0.90 + 0.2 * noise_at(points.canonical, 45, identity.texture)
    albedo = _tint(upper, factor)
    middle = np.abs(x) - float(ankle[0]) - 0.03 * np.clip(-y, 0, 0.1)
    high = z - ground
    if shoes.kind == "trainer":
        laced = (np.abs(middle) < 0.022) & (y < -0.045) & (y > -0.125) & (high > 0.045)
        bright = np.asarray([0.45, 0.45, 0.44] if sum(shoes.colour) < 0.9 else [0.12, 0.12, 0.12], np.float32)
        albedo[laced & (np.sin(y * 2 * np.pi / 0.018) > 0.1)] = bright
        side = (np.abs(high - 0.045 - 0.25 * (y + 0.06)) < 0.006) & (np.abs(y + 0.03) < 0.06) & (np.abs(middle) > 0.02)
        albedo[side] = bright * 0.8 + 0.2 * upper
        toe = (y < -0.145) & (high < 0.05)
        albedo[toe] = albedo[toe] * 0.75
    elif shoes.kind in ("low", "pump"):
        cap = np.abs(y + 0.135) < 0.003
        if shoes.kind == "low":
            albedo[cap] *= 0.5
            vamp = (
                (np.abs(np.abs(middle) - 0.028 - 0.2 * (y + 0.10)) < 0.002) & (y > -0.12) & (y < -0.03) & (high > 0.04)
            )
            albedo[vamp] *= 0.5
            laces = (np.abs(middle) < 0.014) & (np.abs(y + 0.065) < 0.025) & (np.sin(y * 2 * np.pi / 0.013) > 0.3)
            albedo[laces & (high > 0.05)] *= 0.45
    else:
        shaft = np.abs(points.leg - 0.93) < 0.006
        albedo[shaft] *= 0.5
    thick = 0.022 if shoes.kind == "trainer" else 0.013
    sole = high < thick + 0.006 * np.clip(y + 0.02, 0, 0.06) / 0.06
    albedo[sole] = np.asarray(shoes.sole, np.float32)
    albedo[np.abs(high - thick) < 0.0018] *= 0.5
    return albedo, (0.0015 * noise_at(points.canonical, 40, identity.texture)).astype(np.float32)


def _hat(identity: Identity, canonical: FloatArray) -> tuple[FloatArray, FloatArray]:
    hat = identity.hat
    if hat is None:
        raise ValueError("a face of material HAT on a person without a hat")
    x, y, z = canonical.T
    turn = np.arctan2(x, -(y + 0.05))
    factor = 0.92 + 0.16 * noise_at(canonical, 80, identity.texture)
    bump = np.zeros(len(x), np.float32)
    if hat.kind == "beanie":
        rib = np.sin(turn * 44)
        factor = factor * (0.93 + 0.09 * rib)
        fold = np.abs(z - 0.878 + 0.028 * (1 - np.cos(turn)) / 2) < 0.003
        factor = np.where(fold, factor * 0.55, factor)
        bump = 0.0012 * rib
    elif hat.kind == "cap":
        seam = np.abs(np.sin(turn * 3)) < 0.035
        factor = np.where(seam & (z > 0.86), factor * 0.7, factor)
    else:
        factor = np.where((z < 0.873) & (z > 0.850), factor * 0.45, factor)
    return _tint(np.asarray(hat.colour, np.float32), factor), np.asarray(bump, np.float32)


def bend_normals(
    normals: FloatArray, positions: FloatArray, height: FloatArray, *, strength: float = 1.0
) -> FloatArray:
    """Return the normals of the surface raised by a height map, from differences between neighbouring pixels.

    Mikkelsen, Bump mapping unparametrized surfaces on the GPU, 2010, eq. 4: with surface derivatives s, t along the
    two screen axes, the gradient is (h_s (t x n) + h_t (n x s)) / det and the new normal n - gradient. Where the
    neighbour is on another surface (farther than 5 cm or steeper than 45 degrees in height) the derivative is zero.

    Args:
        normals: (H, W, 3) unit vectors, zero where nothing is.
        positions: (H, W, 3) metres.
        height: (H, W) metres.
        strength: Factor on the height.

    Returns:
        (H, W, 3) float32 unit vectors, zero where nothing is.
    """
    out = np.zeros_like(normals, dtype=np.float32)
    _bend(
        np.ascontiguousarray(normals, np.float32),
        np.ascontiguousarray(positions, np.float32),
        np.ascontiguousarray(height, np.float32),
        strength,
        out,
    )
    return out


@njit
def _bend(normals: FloatArray, positions: FloatArray, height: FloatArray, strength: float, out: FloatArray) -> None:
    rows, columns = height.shape
    s, t, change = np.zeros(3), np.zeros(3), np.zeros(2)
    for row in range(rows):
        for column in range(columns):
            nx, ny, nz = normals[row, column, 0], normals[row, column, 1], normals[row, column, 2]
            if nx == 0.0 and ny == 0.0 and nz == 0.0:
                continue
            for axis in range(2):
                step = s if axis == 0 else t
                change[axis] = 0.0
                step[:] = 0.0
                for sign in (1, -1):
                    r, c = row + sign * axis, column + sign * (1 - axis)
                    if r < 0 or c < 0 or r >= rows or c >= columns:
                        continue
                    if normals[r, c, 0] == 0.0 and normals[r, c, 1] == 0.0 and normals[r, c, 2] == 0.0:
                        continue
                    dx = (positions[r, c, 0] - positions[row, column, 0]) * sign
                    dy = (positions[r, c, 1] - positions[row, column, 1]) * sign
                    dz = (positions[r, c, 2] - positions[row, column, 2]) * sign
                    far = dx * dx + dy * dy + dz * dz
                    rise = (height[r, c] - height[row, column]) * sign
                    if far > 0.0025 or rise * rise > far:
                        continue
                    step[0], step[1], step[2] = dx, dy, dz
                    change[axis] = rise * strength
                    break
            # t x n and n x s
            ax, ay, az = t[1] * nz - t[2] * ny, t[2] * nx - t[0] * nz, t[0] * ny - t[1] * nx
            bx, by, bz = ny * s[2] - nz * s[1], nz * s[0] - nx * s[2], nx * s[1] - ny * s[0]
            det = s[0] * ax + s[1] * ay + s[2] * az
            if abs(det) > 1e-12:
                nx -= (change[0] * ax + change[1] * bx) / det
                ny -= (change[0] * ay + change[1] * by) / det
                nz -= (change[0] * az + change[1] * bz) / det
            length = math.sqrt(nx * nx + ny * ny + nz * nz)
            out[row, column, 0] = nx / length
            out[row, column, 1] = ny / length
            out[row, column, 2] = nz / length


@njit
def _gather(attributes: FloatArray, faces: IntArray, face: IntArray, weights: FloatArray, out: FloatArray) -> None:
    for i in range(face.shape[0]):
        a, b, c = faces[face[i], 0], faces[face[i], 1], faces[face[i], 2]
        pa, pb = weights[i, 0], weights[i, 1]
        pc = np.float32(1.0) - pa - pb
        for k in range(attributes.shape[1]):
            out[i, k] = pa * attributes[a, k] + pb * attributes[b, k] + pc * attributes[c, k]
