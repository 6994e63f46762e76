"""Pieces that a person is put together from, in the rest pose, with the bones that move them.

A piece is either *draped* - a sheet of the body's surface, lifted off it, whose borders are edge fields - or a *thing*
that is modelled in canonical space and follows the skin near it, so that it fits every person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgsfa_synth.body import INFLUENCES, BodyModel, Rest, nearest_skin, sheet
from sgsfa_synth.mesh import EDGE_FIELDS, UNCUT, FloatArray, IntArray, Label, Material
from sgsfa_synth.raster import vertex_normals
from sgsfa_synth.solids import Solid


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a person in the rest pose; arrays as in `mesh.Mesh`, with skinning instead of normals.

    Args:
        rest: (V, 3) of this person.
        influences: (V, 8) int16 bones.
        weights: (V, 8) float32.
        faces: (F, 3).
        edges: (V, 4).
        canonical: (V, 3).
        arm: (V,).
        leg: (V,).
        label: (V,) uint8.
        material: (F,) int16.
        colour: (F, 3).
    """

    rest: FloatArray
    influences: NDArray[np.int16]
    weights: FloatArray
    faces: IntArray
    edges: FloatArray
    canonical: FloatArray
    arm: FloatArray
    leg: FloatArray
    label: NDArray[np.uint8]
    material: NDArray[np.int16]
    colour: FloatArray


def lifted(rest: Rest, name: str, offset: NDArray[np.floating] | float) -> FloatArray:
    """Return the vertices of a sheet of one person, evened out and moved along their normals.

    Args:
        rest: The person's body.
        name: Of the sheet, see `body.sheet`.
        offset: Metres, one number or one for each vertex of the sheet.
    """
    part = sheet(name)
    points = rest.vertices[part.vertices]
    if part.smooth is not None:
        points = part.smooth @ points
    normals = vertex_normals(points, part.faces)
    result: FloatArray = (points + normals * np.reshape(np.asarray(offset, np.float32), (-1, 1))).astype(np.float32)
    return result


def draped(
    model: BodyModel,
    name: str,
    points: FloatArray,
    fields: Sequence[NDArray[np.floating]],
    material: Material,
    label: Label,
    colour: Sequence[float] = (0.0, 0.0, 0.0),
) -> Piece:
    """Return a piece of cloth, hair or skin over a sheet of the body.

    Args:
        model: Of `body.body_model`.
        name: Of the sheet.
        points: (n, 3) rest positions of the sheet's vertices.
        fields: Up to four edge fields, each (n,).
        material: Of all faces.
        label: Of all vertices.
        colour: Albedo, where the material does not bring its own.
    """
    part = sheet(name)
    ids = part.vertices
    edges = np.full((len(ids), EDGE_FIELDS), UNCUT, np.float32)
    if len(fields) > EDGE_FIELDS:
        raise ValueError(f"{len(fields)} edge fields, at most {EDGE_FIELDS} fit")
    for k, values in enumerate(fields):
        edges[:, k] = values
    return _trimmed(
        Piece(
            rest=points,
            influences=model.influences[ids],
            weights=model.weights[ids],
            faces=part.faces,
            edges=edges,
            canonical=part.chart.points,
            arm=part.chart.arm,
            leg=part.chart.leg,
            label=np.full(len(ids), label, np.uint8),
            material=np.full(len(part.faces), material, np.int16),
            colour=np.tile(np.asarray(colour, np.float32), (len(part.faces), 1)),
        )
    )


def _trimmed(piece: Piece) -> Piece:
    """Return the piece without faces that a field cuts away as a whole, and without unused vertices."""
    kept = (piece.edges[piece.faces].max(axis=1) >= 0).all(axis=1)
    used, flat = np.unique(piece.faces[kept], return_inverse=True)
    return Piece(
        rest=piece.rest[used],
        influences=piece.influences[used],
        weights=piece.weights[used],
        faces=flat.reshape(-1, 3).astype(np.int32),
        edges=piece.edges[used],
        canonical=piece.canonical[used],
        arm=piece.arm[used],
        leg=piece.leg[used],
        label=piece.label[used],
        material=piece.material[kept],
        colour=piece.colour[kept],
    )


def follow(model: BodyModel, rest: Rest, points: NDArray[np.floating], part: str = "body") -> FloatArray:
    """Take points of canonical space to one person: each moves as the skin near it does from the mean shape."""
    numbers, weights = nearest_skin(points, part)
    shift = rest.vertices[numbers] - model.template[numbers]
    result: FloatArray = (points + np.einsum("nk,nkc->nc", weights, shift)).astype(np.float32)
    return result


def rigid(
    model: BodyModel, count: int, bones: Sequence[str], shares: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.int16], FloatArray]:
    """Return the skinning of `count` points by a few bones.

    Args:
        model: Of `body.body_model`.
        count: Points.
        bones: Names, at most eight.
        shares: (count, len(bones)) weights summing to 1; None for a single bone.
    """
    influences = np.zeros((count, INFLUENCES), np.int16)
    weights = np.zeros((count, INFLUENCES), np.float32)
    for k, name in enumerate(bones):
        influences[:, k] = model.bone[name]
        weights[:, k] = 1.0 if shares is None else shares[:, k]
    return influences, weights


def worn_with(
    model: BodyModel, points: NDArray[np.floating], part: str = "tights"
) -> tuple[NDArray[np.int16], FloatArray]:
    """Return the skinning of points that move with the skin nearest to them (a backpack with the back)."""
    numbers, share = nearest_skin(points, part, count=8)
    dense = np.zeros((len(points), len(model.parents)), np.float32)
    rows = np.arange(len(points))[:, None]
    for k in range(numbers.shape[1]):
        np.add.at(dense, (rows, model.influences[numbers[:, k]]), model.weights[numbers[:, k]] * share[:, k : k + 1])
    influences = np.argsort(-dense, axis=1, kind="stable")[:, :INFLUENCES]
    weights = np.take_along_axis(dense, influences, axis=1)
    return influences.astype(np.int16), weights / weights.sum(axis=1, keepdims=True)


def thing(
    shape: Solid,
    rest: FloatArray,
    skinning: tuple[NDArray[np.int16], FloatArray],
    *,
    material: Material = Material.PLAIN,
    label: Label = Label.BACKGROUND,
    fields: Sequence[NDArray[np.floating]] = (),
) -> Piece:
    """Return a solid that a person wears.

    Args:
        shape: In canonical space.
        rest: (V, 3) where its vertices are on this person.
        skinning: Of `rigid` or `worn_with`.
        material: Of all faces; plain ones keep the solid's colour.
        label: Of all vertices.
        fields: Up to four edge fields (V,).
    """
    count = len(shape.vertices)
    edges = np.full((count, EDGE_FIELDS), UNCUT, np.float32)
    for k, values in enumerate(fields):
        edges[:, k] = values
    off = np.full(count, -1, np.float32)
    return _trimmed(
        Piece(
            rest=np.ascontiguousarray(rest, np.float32),
            influences=skinning[0],
            weights=skinning[1],
            faces=shape.faces.astype(np.int32),
            edges=edges,
            canonical=shape.vertices.astype(np.float32),
            arm=off,
            leg=off.copy(),
            label=np.full(count, label, np.uint8),
            material=np.full(len(shape.faces), material, np.int16),
            colour=shape.colour.astype(np.float32),
        )
    )


def assembled(pieces: Sequence[Piece]) -> Piece:
    """Return all pieces as one."""
    starts = np.cumsum([0, *(len(p.rest) for p in pieces[:-1])])
    return Piece(
        rest=np.concatenate([p.rest for p in pieces]),
        influences=np.concatenate([p.influences for p in pieces]),
        weights=np.concatenate([p.weights for p in pieces]),
        faces=np.concatenate([p.faces + np.int32(s) for p, s in zip(pieces, starts, strict=True)]),
        edges=np.concatenate([p.edges for p in pieces]),
        canonical=np.concatenate([p.canonical for p in pieces]),
        arm=np.concatenate([p.arm for p in pieces]),
        leg=np.concatenate([p.leg for p in pieces]),
        label=np.concatenate([p.label for p in pieces]),
        material=np.concatenate([p.material for p in pieces]),
        colour=np.concatenate([p.colour for p in pieces]),
    )
