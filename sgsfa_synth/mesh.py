"""Triangle meshes of people and things: one dataclass that every part of the renderer shares.

World frame: metres, z up, the ground at z = 0. A person stands on the origin and faces -y, so that the person's
own left side is +x. Hems, hairlines and straps are not modelled by triangle borders: each vertex carries four *edge
fields*, and a pixel is cut away where the smallest of the four interpolated values is negative. A linear field has a
straight zero line inside a triangle, so a hem is smooth whatever the triangles under it look like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

EDGE_FIELDS = 4
UNCUT = np.float32(1.0)
"""Value of an edge field that cuts nothing."""


class Label(IntEnum):
    """The 20 classes of LIP (Gong et al., CVPR 2017) in their order; left and right are the person's own."""

    BACKGROUND = 0
    HAT = 1
    HAIR = 2
    GLOVE = 3
    SUNGLASSES = 4
    UPPER_CLOTHES = 5
    DRESS = 6
    COAT = 7
    SOCKS = 8
    PANTS = 9
    JUMPSUITS = 10
    SCARF = 11
    SKIRT = 12
    FACE = 13
    LEFT_ARM = 14
    RIGHT_ARM = 15
    LEFT_LEG = 16
    RIGHT_LEG = 17
    LEFT_SHOE = 18
    RIGHT_SHOE = 19


class Material(IntEnum):
    """What a face is made of; it decides how `shading.surface` colours and labels its pixels."""

    PLAIN = 0
    """Coloured by the mesh's own face colour, labelled by its vertices: street furniture, buckles, spectacles."""
    SKIN = 1
    EYE = 2
    HAIR = 3
    TOP = 4
    BOTTOM = 5
    SKIRT = 6
    COAT = 7
    SHOE = 8
    SOCK = 9
    HAT = 10
    SCARF = 11
    GLOVE = 12
    BAG = 13
    LOCKS = 14
    """Hair that hangs free of the scalp."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """A triangle mesh with everything that shading and labelling need.

    Args:
        vertices: (V, 3) float32, metres, z up.
        faces: (F, 3) int32 vertex numbers.
        edges: (V, 4) float32 edge fields; a pixel is cut away where their interpolated minimum is negative.
        normals: (V, 3) float32 unit vectors.
        canonical: (V, 3) float32 coordinates of the rest pose, in which textures are drawn.
        arm: (V,) float32, 0 at the shoulder, 0.5 at the elbow, 1 at the wrist; -1 off the arms.
        leg: (V,) float32, 0 at the hip, 1 at the ankle; -1 off the legs.
        label: (V,) uint8 `Label` of the vertex, used by plain materials.
        material: (F,) int16 `Material`.
        colour: (F, 3) float32 linear albedo in [0, 1], used by plain materials.
    """

    vertices: FloatArray
    faces: IntArray
    edges: FloatArray
    normals: FloatArray
    canonical: FloatArray
    arm: FloatArray
    leg: FloatArray
    label: NDArray[np.uint8]
    material: NDArray[np.int16]
    colour: FloatArray

    def __post_init__(self) -> None:
        v, f = len(self.vertices), len(self.faces)
        wanted: dict[str, tuple[int, ...]] = {
            "vertices": (v, 3),
            "faces": (f, 3),
            "edges": (v, EDGE_FIELDS),
            "normals": (v, 3),
            "canonical": (v, 3),
            "arm": (v,),
            "leg": (v,),
            "label": (v,),
            "material": (f,),
            "colour": (f, 3),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Mesh.{name} has shape {getattr(self, name).shape}, expected {shape}")

    def moved(self, yaw: float, offset: Sequence[float]) -> Mesh:
        """Return the mesh turned about the vertical axis and then shifted.

        Args:
            yaw: Radians, counter-clockwise seen from above.
            offset: (x, y, z) in metres.
        """
        cos, sin = math.cos(yaw), math.sin(yaw)
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]], np.float32)
        shift = np.asarray(offset, np.float32)
        return replace(self, vertices=self.vertices @ turn + shift, normals=self.normals @ turn)

    @property
    def visible_vertices(self) -> NDArray[np.bool_]:
        """(V,) which vertices belong to a face and are not cut away by an edge field."""
        used = np.zeros(len(self.vertices), bool)
        used[self.faces.ravel()] = True
        visible: NDArray[np.bool_] = used & (self.edges.min(axis=1) >= 0)
        return visible


def plain_mesh(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    normals: NDArray[np.floating],
    colour: NDArray[np.floating] | Sequence[float],
    *,
    label: int = Label.BACKGROUND,
    material: Material = Material.PLAIN,
) -> Mesh:
    """Return a mesh without cuts and limbs: things, and the parts of a person that are things.

    Args:
        vertices: (V, 3) metres.
        faces: (F, 3) vertex numbers.
        normals: (V, 3) unit vectors.
        colour: (3,) one linear albedo, or (F, 3) one a face.
        label: `Label` of all vertices.
        material: `Material` of all faces.
    """
    points = np.ascontiguousarray(vertices, np.float32)
    triangles = np.ascontiguousarray(faces, np.int32)
    v, f = len(points), len(triangles)
    return Mesh(
        vertices=points,
        faces=triangles,
        edges=np.full((v, EDGE_FIELDS), UNCUT, np.float32),
        normals=np.ascontiguousarray(normals, np.float32),
        canonical=points.copy(),
        arm=np.full(v, -1, np.float32),
        leg=np.full(v, -1, np.float32),
        label=np.full(v, label, np.uint8),
        material=np.full(f, material, np.int16),
        colour=np.ascontiguousarray(np.broadcast_to(np.asarray(colour, np.float32), (f, 3))),
    )


def merge(meshes: Sequence[Mesh]) -> tuple[Mesh, IntArray]:
    """Join meshes into one.

    Args:
        meshes: At least one mesh.

    Returns:
        The joint mesh, and (F,) int32 for each face the position in `meshes` of the mesh that it came from.
    """
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes[:-1])])
    joint = Mesh(
        vertices=np.concatenate([m.vertices for m in meshes]),
        faces=np.concatenate([m.faces + np.int32(start) for m, start in zip(meshes, starts, strict=True)]),
        edges=np.concatenate([m.edges for m in meshes]),
        normals=np.concatenate([m.normals for m in meshes]),
        canonical=np.concatenate([m.canonical for m in meshes]),
        arm=np.concatenate([m.arm for m in meshes]),
        leg=np.concatenate([m.leg for m in meshes]),
        label=np.concatenate([m.label for m in meshes]),
        material=np.concatenate([m.material for m in meshes]),
        colour=np.concatenate([m.colour for m in meshes]),
    )
    owner = np.repeat(np.arange(len(meshes), dtype=np.int32), [len(m.faces) for m in meshes])
    return joint, owner
