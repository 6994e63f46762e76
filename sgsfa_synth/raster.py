"""A z-buffer rasteriser on the CPU: one thread, no fast-math, so that the same input gives the same bytes anywhere.

Visibility, colour and label of a pixel all come from the one `GBuffer` made here; nothing is drawn twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgsfa_synth.jit import njit
from sgsfa_synth.mesh import FloatArray, IntArray

NOTHING = -1
"""Face number of a pixel that no face covers."""


@dataclass(frozen=True, slots=True)
class GBuffer:
    """What is seen in each pixel.

    Args:
        inverse_depth: (H, W) float64, 1 / distance along the optical axis; 0 where nothing is seen.
        face: (H, W) int32 face number, -1 where nothing is seen.
        weights: (H, W, 2) float32 perspective-correct weights of the face's first two vertices; the third has the rest.
    """

    inverse_depth: NDArray[np.float64]
    face: IntArray
    weights: FloatArray


def rasterise(
    xy: NDArray[np.floating],
    inverse_depth: NDArray[np.floating],
    faces: IntArray,
    edges: FloatArray,
    height: int,
    width: int,
) -> GBuffer:
    """Find the nearest face in each pixel.

    A pixel's sample is at its centre, (x + 0.5, y + 0.5). Faces of either orientation are drawn. A face with a vertex
    at or behind the camera (inverse depth <= 0) is left out whole: keep things in front of the camera. For a parallel
    projection pass any positive, affine function of nearness as `inverse_depth` with all of its values large against
    their differences.

    Args:
        xy: (V, 2) pixel coordinates, x to the right, y down.
        inverse_depth: (V,) 1 / depth.
        faces: (F, 3) int32.
        edges: (V, 4) float32 edge fields; where the smallest interpolated one is negative the face is not there.
        height: Pixels.
        width: Pixels.

    Returns:
        The buffer. Of two faces at exactly the same depth the first in `faces` wins.
    """
    depth = np.zeros((height, width))
    face = np.full((height, width), NOTHING, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    _fill(
        np.ascontiguousarray(xy, np.float64),
        np.ascontiguousarray(inverse_depth, np.float64),
        np.ascontiguousarray(faces, np.int32),
        np.ascontiguousarray(edges, np.float32),
        depth,
        face,
        weights,
    )
    return GBuffer(depth, face, weights)


def interpolate(gbuffer: GBuffer, faces: IntArray, attributes: NDArray[np.floating]) -> FloatArray:
    """Return vertex attributes at the pixels.

    Args:
        gbuffer: Of `rasterise`.
        faces: (F, 3) the faces that were rasterised.
        attributes: (V, C).

    Returns:
        (H, W, C) float32, zero where nothing is seen.
    """
    height, width = gbuffer.face.shape
    out = np.zeros((height, width, attributes.shape[1]), np.float32)
    _interpolate(
        np.ascontiguousarray(attributes, np.float32),
        np.ascontiguousarray(faces, np.int32),
        gbuffer.face,
        gbuffer.weights,
        out,
    )
    return out


def vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> FloatArray:
    """Return (V, 3) float32 unit normals: the sum of the adjoining faces' normals, weighted by their areas.

    A vertex without a face of positive area gets the zero vector.
    """
    points = np.ascontiguousarray(vertices, np.float32)
    out = np.zeros_like(points)
    _vertex_normals(points, np.ascontiguousarray(faces, np.int32), out)
    return out


@njit
def _fill(
    xy: NDArray[np.float64],
    inverse_depth: NDArray[np.float64],
    faces: IntArray,
    edges: FloatArray,
    depth: NDArray[np.float64],
    face: IntArray,
    weights: FloatArray,
) -> None:
    height, width = depth.shape
    for number in range(faces.shape[0]):
        a, b, c = faces[number, 0], faces[number, 1], faces[number, 2]
        ia, ib, ic = inverse_depth[a], inverse_depth[b], inverse_depth[c]
        if ia <= 0.0 or ib <= 0.0 or ic <= 0.0:
            continue
        cut, gone = False, False
        for k in range(edges.shape[1]):
            ea, eb, ec = edges[a, k], edges[b, k], edges[c, k]
            if ea < 0.0 or eb < 0.0 or ec < 0.0:
                cut = True
                if ea < 0.0 and eb < 0.0 and ec < 0.0:
                    gone = True
        if gone:
            continue
        ax, ay, bx, by, cx, cy = xy[a, 0], xy[a, 1], xy[b, 0], xy[b, 1], xy[c, 0], xy[c, 1]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if abs(area) < 1e-9:
            continue
        # Clamp before the cast to int: a corner far outside the picture must not overflow.
        left = int(np.floor(min(max(min(ax, bx, cx) - 0.5, 0.0), width * 1.0)))
        right = int(np.ceil(max(min(max(ax, bx, cx) - 0.5, width - 1.0), -1.0)))
        top = int(np.floor(min(max(min(ay, by, cy) - 0.5, 0.0), height * 1.0)))
        bottom = int(np.ceil(max(min(max(ay, by, cy) - 0.5, height - 1.0), -1.0)))
        inverse_area = 1.0 / area
        for y in range(top, bottom + 1):
            py = y + 0.5
            for x in range(left, right + 1):
                px = x + 0.5
                wa = ((bx - px) * (cy - py) - (cx - px) * (by - py)) * inverse_area
                if wa < 0.0:
                    continue
                wb = ((cx - px) * (ay - py) - (ax - px) * (cy - py)) * inverse_area
                if wb < 0.0:
                    continue
                wc = 1.0 - wa - wb
                if wc < 0.0:
                    continue
                nearness = wa * ia + wb * ib + wc * ic
                if nearness <= depth[y, x]:
                    continue
                # 1/z is linear on the screen; any other attribute is after multiplication by 1/z.
                pa, pb = wa * ia / nearness, wb * ib / nearness
                if cut:
                    smallest = 1e30
                    for k in range(edges.shape[1]):
                        value = pa * edges[a, k] + pb * edges[b, k] + (1.0 - pa - pb) * edges[c, k]
                        smallest = min(smallest, value)
                    if smallest < 0.0:
                        continue
                depth[y, x] = nearness
                face[y, x] = number
                weights[y, x, 0] = pa
                weights[y, x, 1] = pb


@njit
def _interpolate(attributes: FloatArray, faces: IntArray, face: IntArray, weights: FloatArray, out: FloatArray) -> None:
    height, width = face.shape
    for y in range(height):
        for x in range(width):
            number = face[y, x]
            if number < 0:
                continue
            pa, pb = weights[y, x, 0], weights[y, x, 1]
            pc = np.float32(1.0) - pa - pb
            a, b, c = faces[number, 0], faces[number, 1], faces[number, 2]
            for k in range(attributes.shape[1]):
                out[y, x, k] = pa * attributes[a, k] + pb * attributes[b, k] + pc * attributes[c, k]


@njit
def _vertex_normals(vertices: FloatArray, faces: IntArray, out: FloatArray) -> None:
    for number in range(faces.shape[0]):
        a, b, c = faces[number, 0], faces[number, 1], faces[number, 2]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in range(3):
            i = faces[number, k]
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz
    for i in range(out.shape[0]):
        length = np.sqrt(out[i, 0] ** 2 + out[i, 1] ** 2 + out[i, 2] ** 2)
        if length > 0.0:
            for k in range(3):
                out[i, k] /= length
