"""Plain solids that props are put together from: boxes, tubes, turned and lofted shapes, leaves.

All lengths are metres, z points up, colours are linear. A solid has no normals of its own: `to_mesh` finds them from
the angle between neighbouring faces, so round things look round and edges stay edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sgsfa_synth.mesh import Mesh, plain_mesh

Array = npt.NDArray[np.float64]
Colour = Sequence[float] | npt.NDArray[np.floating]
Points = Sequence[Sequence[float] | Array] | Array
"""Points (N, 2) or (N, 3), as an array or as a list of them."""


class Finish(IntEnum):
    """How a surface takes light; see `light.FINISHES` for the numbers."""

    MATT = 0
    PAINT = 1
    METAL = 2
    GLASS = 3
    BARK = 4
    LEAF = 5
    WOOD = 6
    CARD = 7
    RUBBER = 8
    CONCRETE = 9
    FABRIC = 10
    SKIN = 11
    HAIR = 12
    LAMP = 13


@dataclass(frozen=True, slots=True)
class Solid:
    """Triangles with a colour and a finish each.

    Attributes:
        vertices: (V, 3) float64.
        faces: (F, 3) int32.
        colour: (F, 3) linear albedo.
        finish: (F,) uint8, see `Finish`.
    """

    vertices: Array
    faces: npt.NDArray[np.int32]
    colour: Array
    finish: npt.NDArray[np.uint8]

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Solid:
        """Build a copy displaced by (x, y, z)."""
        return replace(self, vertices=self.vertices + np.array([x, y, z]))

    def turned(self, angle: float, axis: int = 2) -> Solid:
        """Build a copy turned by `angle` radians about the x (0), y (1) or z (2) axis."""
        a, b = ((1, 2), (2, 0), (0, 1))[axis]
        out = self.vertices.copy()
        cos, sin = np.cos(angle), np.sin(angle)
        out[:, a] = cos * self.vertices[:, a] - sin * self.vertices[:, b]
        out[:, b] = sin * self.vertices[:, a] + cos * self.vertices[:, b]
        return replace(self, vertices=out)

    def scaled(self, x: float, y: float, z: float) -> Solid:
        """Build a copy stretched along the axes by positive factors."""
        return replace(self, vertices=self.vertices * np.array([x, y, z]))

    def coloured(self, mask: npt.NDArray[np.bool_], colour: Colour, finish: Finish) -> Solid:
        """Build a copy whose faces in `mask` (F,) have another colour and finish."""
        colours, finishes = self.colour.copy(), self.finish.copy()
        colours[mask], finishes[mask] = np.asarray(colour, float), finish
        return replace(self, colour=colours, finish=finishes)

    def centres(self) -> Array:
        """Return (F, 3) centres of the faces."""
        return np.asarray(self.vertices[self.faces].mean(1))


def linear(srgb: Colour) -> Array:
    """Return the linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    value = np.asarray(srgb, float)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def solid(vertices: npt.ArrayLike, faces: npt.ArrayLike, colour: Colour, finish: Finish) -> Solid:
    """Build a solid of one colour and finish."""
    index = np.asarray(faces, np.int32).reshape(-1, 3)
    return Solid(
        np.asarray(vertices, float).reshape(-1, 3),
        index,
        np.tile(np.asarray(colour, float), (len(index), 1)),
        np.full(len(index), finish, np.uint8),
    )


def join(solids: Sequence[Solid]) -> Solid:
    """Return all solids as one."""
    starts = np.cumsum([0] + [len(part.vertices) for part in solids[:-1]])
    return Solid(
        np.concatenate([part.vertices for part in solids]),
        np.concatenate([part.faces + start for part, start in zip(solids, starts, strict=True)]).astype(np.int32),
        np.concatenate([part.colour for part in solids]),
        np.concatenate([part.finish for part in solids]),
    )


def sheet(points: npt.ArrayLike, colour: Colour, finish: Finish, *, wrap: bool = False) -> Solid:
    """Build a surface through a grid of points (M, N, 3); with `wrap` its last column joins the first."""
    grid = np.asarray(points, float)
    rows, columns = grid.shape[:2]
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij")
    k = (j + 1) % columns
    a, b, c, d = i * columns + j, (i + 1) * columns + j, (i + 1) * columns + k, i * columns + k
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], 2).reshape(-1, 3)
    return solid(grid.reshape(-1, 3), faces, colour, finish)


def box(size: Colour, colour: Colour, finish: Finish = Finish.MATT, *, bevel: float = 0.01) -> Solid:
    """Build a box standing on z=0, centred in x and y, with bevelled edges."""
    half = np.asarray(size, float) / 2
    cut = min(bevel, 0.45 * float(half.min()) * 2)
    vertices: list[Array] = []
    index: dict[tuple[tuple[int, int, int], int], int] = {}
    signs = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    for corner in signs:
        for axis in range(3):
            inner = half - cut
            inner[axis] = half[axis]
            index[corner, axis] = len(vertices)
            vertices.append(np.array(corner) * inner)
    faces: list[list[int]] = []

    def quad(a: int, b: int, c: int, d: int) -> None:
        faces.extend([[a, b, c], [a, c, d]])

    for axis in range(3):
        u, v = [other for other in range(3) if other != axis]

        def at(sign: int, su: int, sv: int, places: tuple[int, int, int] = (axis, u, v)) -> tuple[int, int, int]:
            """Return the corner with these signs along `axis`, u and v."""
            corner = [0, 0, 0]
            for place, value in zip(places, (sign, su, sv), strict=True):
                corner[place] = value
            return corner[0], corner[1], corner[2]

        for sign in (-1, 1):
            loop = [index[at(sign, su, sv), axis] for su, sv in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            quad(loop[0], loop[1], loop[2], loop[3])
        for su in (-1, 1):
            for sv in (-1, 1):
                ends = [at(sign, su, sv) for sign in (-1, 1)]
                quad(index[ends[0], u], index[ends[1], u], index[ends[1], v], index[ends[0], v])
    faces.extend([index[corner, axis] for axis in range(3)] for corner in signs)
    return solid(np.array(vertices) + [0, 0, half[2]], faces, colour, finish)


def bars(starts: Points, ends: Points, radius: float, colour: Colour, finish: Finish, sides: int = 6) -> Solid:
    """Return straight round bars (N of them) between points (N, 3), open at their ends."""
    low, high = np.asarray(starts, float).reshape(-1, 3), np.asarray(ends, float).reshape(-1, 3)
    along = high - low
    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    guide = np.where(np.abs(along[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    u = np.cross(along, guide)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(along, u)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = radius * (np.cos(angle)[None, :, None] * u[:, None] + np.sin(angle)[None, :, None] * v[:, None])
    vertices = np.stack([low[:, None] + ring, high[:, None] + ring], 1)  # (N, 2, sides, 3)
    base = (np.arange(len(low)) * 2 * sides)[:, None]
    j = np.arange(sides)[None]
    k = (j + 1) % sides
    faces = np.concatenate(
        [
            np.stack([base + j, base + sides + j, base + sides + k], -1).reshape(-1, 3),
            np.stack([base + j, base + sides + k, base + k], -1).reshape(-1, 3),
        ]
    )
    return solid(vertices, faces, colour, finish)


def tube(
    path: Points, radius: npt.ArrayLike, colour: Colour, finish: Finish, *, sides: int = 10, closed: bool = False
) -> Solid:
    """Build a bent tube along points (N, 3) with a radius each; ends are capped unless the path is `closed`."""
    points = np.asarray(path, float)
    count = len(points)
    radii = np.broadcast_to(np.asarray(radius, float), (count,))
    ahead = np.roll(points, -1, 0) if closed else points[np.minimum(np.arange(count) + 1, count - 1)]
    behind = np.roll(points, 1, 0) if closed else points[np.maximum(np.arange(count) - 1, 0)]
    along = ahead - behind
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    # One guide for the whole path, so that rings do not twist against each other.
    spread = np.abs(along).max(0)
    guide = np.eye(3)[int(np.argmin(spread))]
    u = np.cross(along, guide)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-9)
    v = np.cross(along, u)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    rings = points[:, None] + radii[:, None, None] * (
        np.cos(angle)[None, :, None] * u[:, None] + np.sin(angle)[None, :, None] * v[:, None]
    )
    if closed:
        return sheet(np.concatenate([rings, rings[:1]]), colour, finish, wrap=True)
    caps = [np.repeat(points[:1, None], sides, 1), np.repeat(points[-1:, None], sides, 1)]
    return sheet(np.concatenate([caps[0], rings, caps[1]]), colour, finish, wrap=True)


def lathe(profile: Points, colour: Colour, finish: Finish, *, sides: int = 24) -> Solid:
    """Build a turned shape about the z axis from a profile (N, 2) of radius and height."""
    outline = np.asarray(profile, float)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    points = np.stack(
        [
            outline[:, :1] * np.cos(angle),
            outline[:, :1] * np.sin(angle),
            np.repeat(outline[:, 1:], sides, 1),
        ],
        -1,
    )
    return sheet(points, colour, finish, wrap=True)


def ellipsoid(
    radii: Colour, colour: Colour, finish: Finish, *, rows: int = 10, sides: int = 16, power: float = 1.0
) -> Solid:
    """Build an ellipsoid about the origin; `power` below 1 makes it boxier (superellipsoid)."""
    polar = np.linspace(0, np.pi, rows)[:, None]
    around = np.linspace(0, 2 * np.pi, sides, endpoint=False)[None]

    def bent(value: Array) -> Array:
        return np.asarray(np.sign(value) * np.abs(value) ** power)

    x = bent(np.sin(polar)) * bent(np.cos(around))
    y = bent(np.sin(polar)) * bent(np.sin(around))
    z = np.broadcast_to(bent(np.cos(polar)), x.shape)
    return sheet(np.stack([x, y, z], -1) * np.asarray(radii, float), colour, finish, wrap=True)


def plate(outline: Points, thickness: float, colour: Colour, finish: Finish) -> Solid:
    """Build a flat plate from a convex outline (N, 2) in x and z, `thickness` deep about y=0."""
    points = np.asarray(outline, float)
    count = len(points)
    front = np.stack([points[:, 0], np.full(count, -thickness / 2), points[:, 1]], 1)
    back = front + [0, thickness, 0]
    i = np.arange(count)
    k = (i + 1) % count
    fan = np.stack([np.zeros(count - 2, int), np.arange(1, count - 1), np.arange(2, count)], 1)
    faces = np.concatenate(
        [np.stack([i, k, count + k], 1), np.stack([i, count + k, count + i], 1), fan, fan[:, ::-1] + count]
    )
    return solid(np.concatenate([front, back]), faces, colour, finish)


def disc(radius: float, thickness: float, colour: Colour, finish: Finish, *, sides: int = 24) -> Solid:
    """Build an upright round plate facing -y about the origin."""
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    return plate(radius * np.stack([np.cos(angle), np.sin(angle)], 1), thickness, colour, finish)


def leaves(
    roots: Array, along: Array, up: Array, length: Array, width: Array, droop: Array, colour: Array, steps: int = 4
) -> Solid:
    """Return many bent, folded leaves at once.

    Args:
        roots: (N, 3) where they grow.
        along: (N, 3) unit directions that they grow to.
        up: (N, 3) unit directions of their upper side.
        length: (N,) in metres.
        width: (N,) in metres.
        droop: (N,) how far a tip sinks, as a share of the length.
        colour: (N, 3) linear.
        steps: Grid rows of a leaf.
    """
    side = np.cross(along, up)
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9)
    t = np.linspace(0, 1, steps)
    middle = (
        roots[:, None]
        + (length[:, None] * t)[..., None] * along[:, None]
        - (droop * length)[:, None, None] * (t**2)[None, :, None] * np.array([0.0, 0.0, 1.0])
    )
    half = (width[:, None] * np.sin(np.pi * np.clip(t * 0.86 + 0.07, 0, 1))[None])[..., None] * side[:, None] / 2
    fold = 0.25 * np.abs(half).max(-1, keepdims=True) * up[:, None]
    grid = np.stack([middle - half + fold, middle, middle + half + fold], 2)  # (N, steps, 3, 3)
    count = len(roots)
    i, j = np.meshgrid(np.arange(steps - 1), np.arange(2), indexing="ij")
    a = (i * 3 + j).ravel()
    cell = np.concatenate([np.stack([a, a + 3, a + 4], 1), np.stack([a, a + 4, a + 1], 1)])
    faces = (np.arange(count)[:, None, None] * steps * 3 + cell[None]).reshape(-1, 3)
    made = solid(grid, faces, (0, 0, 0), Finish.LEAF)
    return replace(made, colour=np.repeat(np.asarray(colour, float), len(cell), 0))


def to_mesh(shape: Solid, *, crease: float = 38.0) -> tuple[Mesh, npt.NDArray[np.uint8]]:
    """Build a mesh of label 0 with normals that are smooth except over edges sharper than `crease` degrees.

    Returns:
        The mesh and the (F,) finish of its faces.
    """
    corners = shape.vertices[shape.faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(flat, axis=1)
    keep = area > 1e-10
    faces, corners, flat = shape.faces[keep], corners[keep], flat[keep]
    unit = flat / area[keep, None]
    # Every pair of faces that meet in a vertex; a corner's normal is the sum over those that turn less than a crease.
    corner_vertex = faces.ravel()
    order = np.argsort(corner_vertex, kind="stable")
    counts = np.bincount(corner_vertex, minlength=len(shape.vertices))
    starts = np.cumsum(counts) - counts
    reach = counts[corner_vertex]
    first = np.repeat(np.arange(len(corner_vertex)), reach)
    within = np.arange(len(first)) - np.repeat(np.cumsum(reach) - reach, reach)
    second = order[np.repeat(starts[corner_vertex], reach) + within]
    mine, other = first // 3, second // 3
    close = np.einsum("ij,ij->i", unit[mine], unit[other]) > np.cos(np.radians(crease))
    sums = np.stack(
        [np.bincount(first[close], flat[other[close], axis], minlength=len(corner_vertex)) for axis in range(3)], 1
    )
    normals: Array = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    count = len(corner_vertex)
    points = corners.reshape(-1, 3)
    mesh = plain_mesh(points, np.arange(count).reshape(-1, 3), normals, shape.colour[keep])
    return mesh, shape.finish[keep]
