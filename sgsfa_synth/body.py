"""The body: shape from principal components, a skeleton, linear blend skinning, and coordinates along the limbs.

All people share one topology, so a vertex number, a canonical (mean-shape, rest-pose) coordinate and a position along a
limb mean the same place on every person. See `assets/README.md` for where the data come from.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sgsfa_synth.jit import njit
from sgsfa_synth.mesh import FloatArray, IntArray
from sgsfa_synth.raster import vertex_normals

INFLUENCES = 8
"""Bones that move one vertex, at most; the few smaller weights of the source are dropped and the rest rescaled."""

ARM_BONES = ("upperarm", "lowerarm", "wrist", "finger", "metacarpal")
FOREARM_BONES = ("lowerarm", "wrist", "finger", "metacarpal")
HEAD_BONES = ("head", "neck02", "neck03", "eye")


@dataclass(frozen=True, slots=True)
class Chart:
    """Coordinates of places on the body, the same for every person, in which hems and patterns are drawn.

    Args:
        points: (n, 3) canonical coordinates, metres.
        arm: (n,) 0 shoulder, 0.5 elbow, 1 wrist; -1 off the arms.
        leg: (n,) 0 hip joint, 1 ankle, down the vertical; negative above the hips.
        arm_weight: (n,) share of the arm's bones in the skinning, smooth over the shoulder.
    """

    points: FloatArray
    arm: FloatArray
    leg: FloatArray
    arm_weight: FloatArray

    @property
    def x(self) -> FloatArray:
        """(n,) to the person's left."""
        return self.points[:, 0]

    @property
    def y(self) -> FloatArray:
        """(n,) backwards."""
        return self.points[:, 1]

    @property
    def z(self) -> FloatArray:
        """(n,) upwards."""
        return self.points[:, 2]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A part of the body's or a helper's surface, on which clothes are built.

    Args:
        vertices: (n,) int32 numbers of its vertices in the body.
        faces: (f, 3) int32 in its own numbering.
        smooth: (n, n) operator that evens out muscles, as cloth does; None leaves the points unchanged.
        chart: Of its vertices, evened out in the same way: what is a straight line in it is one on the person.
    """

    vertices: IntArray
    faces: IntArray
    smooth: scipy.sparse.csr_array | None
    chart: Chart


@dataclass(frozen=True, slots=True)
class BodyModel:
    """What `body.npz` holds, and what follows from it for every person.

    Args:
        template: (V, 3) canonical vertices, metres.
        heads: (B, 3) canonical bone heads.
        components: (24, (V + B) * 3) principal components of shape.
        samples: (600, 24) coefficients of plausible bodies.
        phenotypes: (600, P) their phenotypes in [0, 1]; columns by `phenotype`.
        phenotype: Column of each phenotype.
        bone: Number of each bone.
        parents: Number of each bone's parent, -1 for the root; parents come before their children.
        influences: (V, 8) int16 bones that move a vertex.
        weights: (V, 8) float32 their weights, summing to 1.
        faces: Triangles by surface: body, eyes, tights, skirt, hair.
        normals: (V, 3) canonical normals of the skin.
        arm: (V,) 0 shoulder, 0.5 elbow, 1 wrist; -1 off the arms.
        leg: (V,) 0 hip joint, 1 ankle, measured down the vertical; negative above the hips.
        arm_weight: (V,) share of the arm's bones in the skinning, smooth over the shoulder.
    """

    template: FloatArray
    heads: FloatArray
    components: FloatArray
    samples: FloatArray
    phenotypes: FloatArray
    phenotype: Mapping[str, int]
    bone: Mapping[str, int]
    parents: tuple[int, ...]
    influences: NDArray[np.int16]
    weights: FloatArray
    faces: Mapping[str, IntArray]
    normals: FloatArray
    arm: FloatArray
    leg: FloatArray
    arm_weight: FloatArray

    @property
    def chart(self) -> Chart:
        """Of all vertices."""
        return Chart(self.template, self.arm, self.leg, self.arm_weight)

    def head(self, bone: str) -> FloatArray:
        """Return (3,) canonical head of a bone."""
        point: FloatArray = self.heads[self.bone[bone]]
        return point


@dataclass(frozen=True, slots=True)
class Rest:
    """One person's body in the rest pose: vertices (V, 3) and bone heads (B, 3), metres."""

    vertices: FloatArray
    heads: FloatArray


@functools.cache
def body_model() -> BodyModel:
    """Return the body, read once a process (about 0.3 s)."""
    with (importlib.resources.files("sgsfa_synth") / "assets" / "body.npz").open("rb") as file:
        data = dict(np.load(file))
    bones = [str(name) for name in data["bones"]]
    bone = {name: number for number, name in enumerate(bones)}
    dense = data["W"].astype(np.float32)
    count = len(dense)
    template = data["mu"][: count * 3].reshape(-1, 3).astype(np.float32)
    heads = data["mu"][count * 3 :].reshape(-1, 3).astype(np.float32)
    influences = np.argsort(-dense, axis=1, kind="stable")[:, :INFLUENCES]
    weights = np.take_along_axis(dense, influences, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    faces = {name: np.ascontiguousarray(data[f"F_{name}"], np.int32) for name in _SURFACES}

    def share(prefixes: Sequence[str]) -> FloatArray:
        total: FloatArray = dense[:, [i for i, name in enumerate(bones) if name.startswith(tuple(prefixes))]].sum(
            axis=1
        )
        return total

    arm_weight = share(ARM_BONES)
    mirrored = template * np.where(template[:, :1] < 0, [-1, 1, 1], [1, 1, 1])
    shoulder, elbow, wrist = (heads[bone[f"{name}.L"]] for name in ("upperarm01", "lowerarm01", "wrist"))
    upper = np.clip(_along(mirrored, shoulder, elbow), 0, 1.2)
    lower = np.clip(_along(mirrored, elbow, wrist), -0.2, 3)
    arm = np.where(share(FOREARM_BONES) > 0.5, 0.5 + 0.5 * lower, 0.5 * upper)
    hip, ankle = heads[bone["upperleg01.L"]][2], heads[bone["foot.L"]][2]
    return BodyModel(
        template=template,
        heads=heads,
        components=data["comp"].astype(np.float32),
        samples=data["coef"].astype(np.float32),
        phenotypes=data["pheno"].astype(np.float32),
        phenotype={str(name): i for i, name in enumerate(data["labels"])},
        bone=bone,
        parents=tuple(int(p) for p in data["parents"]),
        influences=influences.astype(np.int16),
        weights=weights.astype(np.float32),
        faces=faces,
        normals=vertex_normals(template, np.concatenate([faces["body"], faces["eyes"]])),
        arm=np.where(arm_weight > 0.02, arm, -1).astype(np.float32),
        leg=((hip - template[:, 2]) / (hip - ankle)).astype(np.float32),
        arm_weight=arm_weight,
    )


_SURFACES = ("body", "eyes", "tights", "skirt", "hair")


def _along(points: NDArray[np.floating], start: FloatArray, end: FloatArray) -> NDArray[np.floating]:
    """Return the position of points along a bone: 0 at its start, 1 at its end."""
    axis = end - start
    result: NDArray[np.floating] = ((points - start) @ axis) / (axis @ axis)
    return result


def shaped(model: BodyModel, coefficients: Sequence[float]) -> Rest:
    """Return the rest body of given coefficients: mean + coefficients · components.

    Args:
        model: Of `body_model`.
        coefficients: 24 numbers, best a blend of rows of `model.samples`.
    """
    count = len(model.template)
    shift = (np.asarray(coefficients, np.float32) @ model.components).reshape(-1, 3)
    return Rest(model.template + shift[:count], model.heads + shift[count:])


def of_stature(rest: Rest, stature: float) -> Rest:
    """Return the body scaled as a whole to a height from sole to crown, in metres."""
    tall = rest.vertices[:, 2].max() - rest.vertices[:, 2].min()
    scale = np.float32(stature / tall)
    return Rest(rest.vertices * scale, rest.heads * scale)


def bone_transforms(
    model: BodyModel, heads: FloatArray, rotations: Mapping[str, NDArray[np.floating]]
) -> NDArray[np.float32]:
    """Forward kinematics.

    Args:
        model: Of `body_model`.
        heads: (B, 3) of one person's rest body.
        rotations: By bone: (3, 3) turn about the bone's head, in the axes of the rest pose and relative to the parent.

    Returns:
        (B, 3, 4) float32 that take points of the rest pose to the posed body.
    """
    count = len(heads)
    turn, place = np.empty((count, 3, 3)), np.empty((count, 3))
    local = {model.bone[name]: rotation for name, rotation in rotations.items()}
    for number, parent in enumerate(model.parents):
        if parent < 0:
            turn[number], place[number] = np.eye(3), heads[number]
        else:
            turn[number] = turn[parent]
            place[number] = place[parent] + turn[parent] @ (heads[number] - heads[parent])
        if number in local:
            turn[number] = turn[number] @ local[number]
    shift = place - np.einsum("bij,bj->bi", turn, heads)
    return np.concatenate([turn, shift[:, :, None]], axis=2).astype(np.float32)


@njit
def skin(
    vertices: FloatArray, influences: NDArray[np.int16], weights: FloatArray, transforms: NDArray[np.float32]
) -> FloatArray:
    """Apply linear blend skinning: move each vertex by the weighted mean of its bones' transforms.

    Args:
        vertices: (n, 3) rest positions.
        influences: (n, k) int16 bones.
        weights: (n, k) summing to 1.
        transforms: (B, 3, 4).

    Returns:
        (n, 3) float32.
    """
    out = np.empty_like(vertices)
    for i in range(vertices.shape[0]):
        x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        for row in range(3):
            total = np.float32(0.0)
            for k in range(influences.shape[1]):
                w = weights[i, k]
                if w > 0.0:
                    t = transforms[influences[i, k], row]
                    total += w * (t[0] * x + t[1] * y + t[2] * z + t[3])
            out[i, row] = total
    return out


@functools.cache
def sheet(name: str) -> Sheet:
    """Return a surface for clothes.

    Args:
        name: skin (body and eyes), torso (trunk and sleeves), legs, feet, skirt, scalp, hands or collar.
    """
    model = body_model()
    z, leg = model.template[:, 2], model.leg
    body, tights = model.faces["body"], model.faces["tights"]
    head, shoulder = model.head("head")[2], model.head("upperarm01.L")[2]
    off_arm = model.arm_weight < 0.5
    if name == "skin":
        return _cut_out(np.concatenate([body, model.faces["eyes"]]), np.ones(len(z), bool), 0)
    if name == "torso":
        return _cut_out(tights, leg < 0.55, 6)
    if name == "legs":
        return _cut_out(tights, (leg > -0.5) & off_arm & (leg < 1.25), 4)
    if name == "feet":
        return _cut_out(tights, leg > 0.55, 2)
    if name == "skirt":
        return _cut_out(model.faces["skirt"], np.ones(len(z), bool), 2)
    if name == "scalp":
        return _cut_out(body, (z > head - 0.08) & (model.arm_weight < 0.1), 5)
    if name == "hands":
        return _cut_out(body, model.arm > 0.8, 0)
    if name == "collar":
        return _cut_out(tights, (z > shoulder - 0.02) & (np.abs(model.template[:, 0]) < 0.19), 8)
    raise KeyError(name)


def _cut_out(faces: IntArray, keep: NDArray[np.bool_], rounds: int) -> Sheet:
    """Return the faces whose vertices are all kept, renumbered, the inside smoothed in `rounds` (Laplacian)."""
    used, flat = np.unique(faces[keep[faces].all(axis=1)], return_inverse=True)
    own = flat.reshape(-1, 3).astype(np.int32)
    smooth = _smoothing(own, len(used), rounds) if rounds else None
    model = body_model()
    chart = Chart(model.template[used], model.arm[used], model.leg[used], model.arm_weight[used])
    return Sheet(used.astype(np.int32), own, smooth, chart if smooth is None else _evened(chart, smooth))


def _evened(chart: Chart, smooth: scipy.sparse.csr_array) -> Chart:
    on_arm = (chart.arm >= 0).astype(np.float32)
    reach = smooth @ on_arm
    # Off the arms there is no coordinate to average: only neighbours on the arm count.
    arm = np.where(on_arm > 0, (smooth @ (chart.arm * on_arm)) / np.maximum(reach, 1e-6), -1)
    return Chart(
        np.asarray(smooth @ chart.points, np.float32),
        arm.astype(np.float32),
        np.asarray(smooth @ chart.leg, np.float32),
        np.asarray(smooth @ chart.arm_weight, np.float32),
    )


def _smoothing(faces: IntArray, count: int, rounds: int) -> scipy.sparse.csr_array:
    sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    pairs, uses = np.unique(sides, axis=0, return_counts=True)
    # Borders (sleeve ends, neck) have nothing on their other side and would shrink: they stay.
    border = np.zeros(count, bool)
    border[pairs[uses == 1].ravel()] = True
    i, j = np.concatenate([pairs, pairs[:, ::-1]]).T
    neighbours = scipy.sparse.csr_array((np.ones(len(i)), (i, j)), shape=(count, count))
    share = np.where(border, 0.0, 0.6 / np.maximum(np.bincount(i, minlength=count), 1))
    step = scipy.sparse.csr_array(
        scipy.sparse.diags_array(np.where(border, 1.0, 0.4)) + scipy.sparse.diags_array(share) @ neighbours
    )
    total = scipy.sparse.csr_array(scipy.sparse.eye_array(count))
    for _ in range(rounds):
        total = scipy.sparse.csr_array(step @ total)
    return total.astype(np.float32)


@functools.cache
def _skin_tree(part: str) -> tuple[cKDTree, IntArray]:
    model = body_model()
    numbers = np.unique(model.faces["body"] if part == "body" else model.faces["tights"]).astype(np.int32)
    return cKDTree(model.template[numbers]), numbers


def nearest_skin(points: NDArray[np.floating], part: str = "body", count: int = 6) -> tuple[IntArray, FloatArray]:
    """Return vertices of the body near points of canonical space, which things follow.

    Args:
        points: (n, 3) canonical coordinates.
        part: body (the skin) or tights (the helper surface under clothes, without hands and head).
        count: Neighbours a point.

    Returns:
        (n, count) vertex numbers and (n, count) float32 weights, summing to 1 and falling with the distance.
    """
    tree, numbers = _skin_tree(part)
    distance, found = tree.query(np.asarray(points, np.float64), k=list(range(1, count + 1)))
    weights = 1.0 / (np.asarray(distance) + 0.01) ** 2
    weights /= weights.sum(axis=1, keepdims=True)
    return numbers[found], weights.astype(np.float32)
