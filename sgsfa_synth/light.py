"""Light of a scene: sun, sky, shadows, and what a surface makes of them. All in linear light.

A surface of albedo a and normal n gets a (sky (1 + n_z)/2 + ground bounce (1 - n_z)/2 + sun max(0, n.l) shadow),
plus a highlight (Blinn-Phong) and, on paint, metal and glass, a mirrored sky weighted after Schlick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.runtime import seeds
from sgsfa_synth.jit import njit
from sgsfa_synth.mesh import Mesh
from sgsfa_synth.noise import cell_index, noise3
from sgsfa_synth.raster import rasterise

Array = npt.NDArray[np.float64]
Array32 = npt.NDArray[np.float32]

SHADOW_SIZE = 352
"""Pixels a side of the sun's depth map."""

CONTACT_EXTENT = 3.0
"""Metres; `contact` covers the ground as far as this from the person, along each axis."""

_SHADOW_BIAS = 0.035
_FAR_SUN = 1000.0
"""Metres; offsets the sun's depths so that they are all large against their differences."""

# Rows are `solids.Finish`: highlight, its exponent, mirror at right angles, grain, grain a metre across, upright.
FINISHES = np.array(
    [
        (0.02, 12, 0.00, 0.10, 30, 30),  # MATT
        (0.30, 90, 0.05, 0.03, 6, 6),  # PAINT
        (0.35, 40, 0.22, 0.07, 40, 40),  # METAL
        (0.60, 160, 0.05, 0.00, 1, 1),  # GLASS
        (0.01, 8, 0.00, 0.75, 34, 5),  # BARK
        (0.08, 16, 0.00, 0.25, 25, 25),  # LEAF
        (0.04, 20, 0.00, 0.35, 45, 4),  # WOOD
        (0.02, 10, 0.00, 0.08, 14, 14),  # CARD
        (0.05, 12, 0.00, 0.10, 50, 50),  # RUBBER
        (0.01, 8, 0.00, 0.22, 28, 28),  # CONCRETE
        (0.00, 8, 0.00, 0.10, 110, 110),  # FABRIC
        (0.07, 16, 0.00, 0.00, 1, 1),  # SKIN
        (0.10, 26, 0.00, 0.00, 1, 1),  # HAIR
        (0.35, 60, 0.08, 0.05, 12, 12),  # LAMP
    ],
    np.float64,
)


@dataclass(frozen=True, slots=True)
class Light:
    """What lights a scene.

    Attributes:
        direction: (3,) unit vector to the sun, in the scene frame.
        sun: (3,) linear colour and strength of the sun.
        sky: (3,) of the sky above.
        bounce: (3,) of what the ground throws back.
    """

    direction: Array
    sun: Array
    sky: Array
    bounce: Array


def scene_light(random: np.random.Generator, azimuth: float, elevation: float, strength: float, warmth: float) -> Light:
    """Return the light at one moment: clouds change the sun's strength, and with it how even the light is.

    Args:
        random: Of the image.
        azimuth: Radians, of the sun in the scene frame.
        elevation: Radians above the horizon.
        strength: Sun of the place, 0 (indoors) to 1 (open).
        warmth: -1 (cold) to 1 (warm) colour of the sun.
    """
    sun = strength * random.uniform(0.45, 1.15)
    flat = math.cos(elevation)
    direction = np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])
    tint = np.array([1 + 0.10 * warmth, 1.0, 1 - 0.16 * warmth])
    sky = random.uniform(0.49, 0.59) * np.array([1 - 0.03 * warmth, 1.0, 1 + 0.06 * warmth])
    return Light(direction, 1.9 * sun * tint, sky, 0.40 * sky + 0.22 * sun)


@dataclass(frozen=True, slots=True)
class ShadowMap:
    """Depths seen from the sun.

    Attributes:
        depth: (N, N) nearness to the sun, 0 where nothing is.
        axes: (3, 3) rows: the map's x and y axes and the direction to the sun.
        frame: (3,) x and y of the map's first corner along the axes, and pixels a metre.
    """

    depth: Array
    axes: Array
    frame: Array


def cast_shadows(mesh: Mesh, direction: Array, reach: float = 5.2) -> ShadowMap:
    """Draw the scene as the sun sees it, at most `reach` metres wide about the origin."""
    across = np.cross(direction, [0.0, 0.0, 1.0])
    across /= np.linalg.norm(across)
    axes = np.stack([across, np.cross(direction, across), direction])
    seen = mesh.vertices.astype(np.float64) @ axes.T
    low, high = np.maximum(seen[:, :2].min(0), -reach / 2 - 1), np.minimum(seen[:, :2].max(0), reach / 2 + 1)
    span = float(min(max(high - low), reach)) + 0.1
    corner = (low + high) / 2 - span / 2
    scale = SHADOW_SIZE / span
    buffer = rasterise(
        (seen[:, :2] - corner) * scale, seen[:, 2] + _FAR_SUN, mesh.faces, mesh.edges, SHADOW_SIZE, SHADOW_SIZE
    )
    return ShadowMap(buffer.inverse_depth, axes, np.array([corner[0], corner[1], scale]))


@njit
def sunlit(depth: Array, axes: Array, frame: Array, x: float, y: float, z: float, spread: float) -> float:
    """Return the share of the sun, 0 to 1, that reaches a point; `spread` is the half-shadow in map pixels."""
    u = (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z - frame[0]) * frame[2]
    v = (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z - frame[1]) * frame[2]
    size = depth.shape[0]
    if u < -3 or v < -3 or u > size + 3 or v > size + 3:
        return 1.0
    near = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z + _FAR_SUN
    lit = 0.0
    for j in range(-1, 2):
        for i in range(-1, 2):
            a = cell_index(u + i * spread)
            b = cell_index(v + j * spread)
            if a < 0 or b < 0 or a >= size or b >= size or depth[b, a] - _SHADOW_BIAS <= near:
                lit += 1.0
    return lit / 9.0


def contact(mesh: Mesh, extent: float = CONTACT_EXTENT, cells: int = 96) -> Array32:
    """Return how much of the sky the ground near things cannot see: (cells, cells) in [0, 1] over +-`extent` metres."""
    import cv2

    low = mesh.vertices[mesh.vertices[:, 2] < 0.35]
    place = ((low[:, :2] + extent) * (cells / (2 * extent))).astype(np.int64)
    inside = ((place >= 0) & (place < cells)).all(1)
    place, height = place[inside], low[inside, 2]
    weight = np.exp(-height / 0.10).astype(np.float32)
    grid = np.zeros((cells, cells), np.float32)
    np.maximum.at(grid, (place[:, 1], place[:, 0]), weight)
    cell = 2 * extent / cells
    near = cv2.GaussianBlur(grid, (0, 0), 0.06 / cell)
    far = cv2.GaussianBlur(grid, (0, 0), 0.22 / cell)
    return np.clip(0.55 * near + 0.9 * far, 0, 0.75).astype(np.float32)


@njit
def shade(
    albedo: Array32,
    normals: Array32,
    points: Array32,
    texture: Array32,
    finish: npt.NDArray[np.uint8],
    openness: Array32,
    eye: Array,
    table: Array,
    direction: Array,
    sun: Array,
    sky: Array,
    bounce: Array,
    depth: Array,
    axes: Array,
    frame: Array,
    out: Array32,
) -> None:
    """Light surface points.

    Args:
        albedo: (P, 3) linear.
        normals: (P, 3), of any length; turned towards the eye.
        points: (P, 3) in the scene.
        texture: (P, 3) coordinates of the grain.
        finish: (P,) row of `table`.
        openness: (P,) share of the sky that is not hidden by what is near (ambient occlusion).
        eye: (3,) the camera.
        table: `FINISHES`.
        direction: As in `Light`, as are `sun`, `sky` and `bounce`.
        sun: See above.
        sky: See above.
        bounce: See above.
        depth: As in `ShadowMap`, as are `axes` and `frame`.
        axes: See above.
        frame: See above.
        out: (P, 3) receives the radiance.
    """
    for i in range(albedo.shape[0]):
        nx, ny, nz = np.float64(normals[i, 0]), np.float64(normals[i, 1]), np.float64(normals[i, 2])
        length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
        x, y, z = np.float64(points[i, 0]), np.float64(points[i, 1]), np.float64(points[i, 2])
        ex, ey, ez = eye[0] - x, eye[1] - y, eye[2] - z
        far = np.sqrt(ex * ex + ey * ey + ez * ez) + 1e-9
        ex, ey, ez = ex / far, ey / far, ez / far
        facing = (nx * ex + ny * ey + nz * ez) / length
        if facing < 0.0:
            length, facing = -length, -facing
        nx, ny, nz = nx / length, ny / length, nz / length
        row = table[finish[i]]
        towards = nx * direction[0] + ny * direction[1] + nz * direction[2]
        lit = 0.0
        if towards > 0.0 and sun[1] > 0.0:
            # A step along the normal keeps a surface out of its own shadow.
            lit = sunlit(depth, axes, frame, x + 0.02 * nx, y + 0.02 * ny, z + 0.02 * nz, 1.0)
        hx, hy, hz = direction[0] + ex, direction[1] + ey, direction[2] + ez
        half = np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9
        shine = max(0.0, (nx * hx + ny * hy + nz * hz) / half) ** row[1] * row[0] * lit
        up = 0.5 + 0.5 * nz
        grain = 1.0
        if row[3] > 0.0:
            value = noise3(texture[i, 0] * row[4], texture[i, 1] * row[4], texture[i, 2] * row[5], 11)
            fine = noise3(texture[i, 0] * row[4] * 3.1, texture[i, 1] * row[4] * 3.1, texture[i, 2] * row[5] * 3.1, 12)
            grain = 1.0 + row[3] * ((value + 0.5 * fine) / 1.5 - 0.5) * 2.0
        mirror = 0.0
        fade = 0.0
        if row[2] > 0.0:
            mirror = row[2] + (1.0 - row[2]) * (1.0 - facing) ** 5 * 0.6
            rise = 2.0 * facing * nz - ez
            fade = 1.0 / (1.0 + np.exp(-9.0 * rise))
        for c in range(3):
            ambient = (sky[c] * up + bounce[c] * (1.0 - up)) * openness[i]
            value = albedo[i, c] * grain * (ambient + sun[c] * max(towards, 0.0) * lit)
            if mirror > 0.0:
                around = sky[c] * (1.15 * fade + 0.22 * (1.0 - fade))
                value = value * (1.0 - mirror) + mirror * around
            out[i, c] = value + shine * sun[c]


@dataclass(frozen=True, slots=True)
class Tone:
    """How a camera renders colours.

    Attributes:
        gain: (3,) factors of red, green and blue.
        exposure: Factor of all.
        contrast: Factor about mid-grey.
        saturation: Factor about grey.
        lift: Black level added.
    """

    gain: Array
    exposure: float
    contrast: float
    saturation: float
    lift: float


def metered(light: Light) -> float:
    """Return the exposure that a camera's automatic would choose for a scene: less light, longer exposure."""
    level = float(np.mean(light.sky + 0.45 * light.direction[2] * light.sun))
    return float(1.55 / level**0.8)


def camera_tone(seed: int, camera: int, strength: float) -> Tone:
    """Return the tone of a camera of the data set."""
    return sample_tone(seeds.rng(seed, "tone", camera), strength)


def sample_tone(random: np.random.Generator, strength: float) -> Tone:
    """Draw a tone; at `strength` 0 all are the same."""
    balance = random.normal(0, 1, 3)
    warm = random.normal()
    cast = 0.10 * balance + 0.16 * warm * np.array([1.0, 0.0, -1.0])
    exposure, contrast, saturation, lift = random.normal(0, 1, 4)
    return Tone(
        gain=np.exp(strength * (cast - cast.mean())),
        exposure=float(np.exp(strength * 0.42 * exposure)),
        contrast=float(np.exp(strength * 0.20 * contrast)),
        saturation=float(np.exp(strength * 0.38 * saturation)),
        lift=float(strength * 0.04 * max(lift, -0.5)),
    )
