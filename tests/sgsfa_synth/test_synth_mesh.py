from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sgsfa_synth.mesh import Label, Material, Mesh, merge, plain_mesh


def triangle(shift: float = 0.0) -> Mesh:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1]]) + shift
    return plain_mesh(vertices, np.array([[0, 1, 2]]), np.tile([0, -1, 0], (3, 1)), (0.2, 0.3, 0.4), label=Label.HAT)


def test_moved_turns_then_shifts() -> None:
    got = triangle().moved(np.pi / 2, (0, 0, 2.0))
    np.testing.assert_allclose(got.vertices, [[0, 0, 2], [0, 1, 2], [0, 0, 3]], atol=1e-6)
    np.testing.assert_allclose(got.normals, np.tile([1, 0, 0], (3, 1)), atol=1e-6)


def test_merge_keeps_each_part() -> None:
    joint, owner = merge([triangle(), triangle(5.0), triangle(9.0)])
    assert owner.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(joint.vertices[joint.faces[1]], triangle(5.0).vertices)
    assert joint.faces.dtype == np.int32
    assert joint.label.tolist() == [Label.HAT] * 9
    assert joint.material.tolist() == [Material.PLAIN] * 3


def test_visible_vertices_are_used_and_uncut() -> None:
    mesh = triangle()
    edges = mesh.edges.copy()
    edges[1, 2] = -0.1
    assert replace(mesh, edges=edges).visible_vertices.tolist() == [True, False, True]
    assert (
        replace(
            mesh, faces=np.empty((0, 3), np.int32), material=np.empty(0, np.int16), colour=np.empty((0, 3), np.float32)
        ).visible_vertices.sum()
        == 0
    )


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Mesh\.arm"):
        replace(triangle(), arm=np.zeros(2, np.float32))


def test_labels_are_those_of_lip() -> None:
    assert [label.name for label in Label][:6] == ["BACKGROUND", "HAT", "HAIR", "GLOVE", "SUNGLASSES", "UPPER_CLOTHES"]
    assert len(Label) == 20
    assert Label.RIGHT_SHOE == 19
