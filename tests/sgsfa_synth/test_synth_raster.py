from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsfa_synth.raster import NOTHING, GBuffer, interpolate, rasterise, vertex_normals

HEIGHT, WIDTH = 14, 9


def reference(xy, inverse_depth, faces, edges, height, width) -> GBuffer:
    """The literal definition: each pixel against each face, weights by solving for them."""
    depth, face, weights = np.zeros((height, width)), np.full((height, width), NOTHING), np.zeros((height, width, 2))
    for y in range(height):
        for x in range(width):
            for number, corner in enumerate(faces):
                if (inverse_depth[corner] <= 0).any():
                    continue
                system = np.vstack([xy[corner].T, np.ones(3)])
                if abs(np.linalg.det(system)) < 1e-9:
                    continue
                screen = np.linalg.solve(system, [x + 0.5, y + 0.5, 1.0])
                if screen.min() < 0:
                    continue
                nearness = screen @ inverse_depth[corner]
                true = screen * inverse_depth[corner] / nearness
                if nearness > depth[y, x] and (true @ edges[corner]).min() >= 0:
                    depth[y, x], face[y, x], weights[y, x] = nearness, number, true[:2]
    return GBuffer(depth, face.astype(np.int32), weights.astype(np.float32))


def random_soup(seed: int, count: int = 8):
    rng = np.random.default_rng(seed)
    # No shared corners: along a shared border two faces tie, and rounding would decide which of them wins.
    xy = rng.uniform(-5, [WIDTH + 5, HEIGHT + 5], (count * 3, 2))
    inverse_depth = rng.uniform(-0.03, 1, count * 3)
    faces = np.arange(count * 3, dtype=np.int32).reshape(count, 3)
    edges = rng.uniform(-0.4, 1, (count * 3, 4)).astype(np.float32)
    return xy, inverse_depth, faces, edges


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_equals_the_literal_definition(seed: int) -> None:
    soup = random_soup(seed)
    got, wanted = rasterise(*soup, HEIGHT, WIDTH), reference(*soup, HEIGHT, WIDTH)
    np.testing.assert_array_equal(got.face, wanted.face)
    np.testing.assert_allclose(got.inverse_depth, wanted.inverse_depth, atol=1e-9)
    np.testing.assert_allclose(got.weights, wanted.weights, atol=1e-5)


def test_attributes_are_perspective_correct() -> None:
    # A plane through (X, Y, Z) seen by a pinhole: interpolated world points must project onto their own pixel.
    world = np.array([[-3.0, -3, 4], [3, -3, 12], [0, 4, 6]])
    xy = world[:, :2] / world[:, 2:] * 20 + [WIDTH / 2, HEIGHT / 2]
    faces = np.array([[0, 1, 2]], np.int32)
    seen = rasterise(xy, 1 / world[:, 2], faces, np.ones((3, 4), np.float32), HEIGHT, WIDTH)
    points = interpolate(seen, faces, world)
    ys, xs = np.nonzero(seen.face >= 0)
    assert len(ys) > 20
    back = points[ys, xs, :2] / points[ys, xs, 2:] * 20 + [WIDTH / 2, HEIGHT / 2]
    np.testing.assert_allclose(back, np.stack([xs, ys], 1) + 0.5, atol=1e-4)
    np.testing.assert_allclose(1 / seen.inverse_depth[ys, xs], points[ys, xs, 2], rtol=1e-5)


def test_the_smallest_edge_field_is_taken_in_the_pixel_and_not_at_the_vertex() -> None:
    # Two crossing fields: at each vertex one of them is negative, in the middle both are positive.
    xy = np.array([[0.0, 0], [20, 0], [10, 20]])
    faces = np.array([[0, 1, 2]], np.int32)
    edges = np.ones((3, 4), np.float32)
    edges[:, 0], edges[:, 1], edges[:, 2] = (-1, 2, 2), (2, -1, 2), (2, 2, -1)
    seen = rasterise(xy, np.ones(3), faces, edges, 20, 20).face
    assert seen[6, 10] == 0
    assert seen[0, 1] == seen[0, 18] == seen[18, 10] == NOTHING


def test_a_hem_is_straight_across_triangles() -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.linspace(-1, 31, 7), np.linspace(-1, 31, 7)), -1).reshape(-1, 2)
    points = grid + rng.uniform(-1.5, 1.5, grid.shape)
    i = np.arange(49).reshape(7, 7)
    quads = np.stack([i[:-1, :-1], i[:-1, 1:], i[1:, :-1], i[1:, 1:]], -1).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [1, 3, 2]]]).astype(np.int32)
    edges = np.ones((49, 4), np.float32)
    edges[:, 0] = 16.0 - points[:, 1]
    edges[:, 1] = points[:, 0] - 8.0
    seen = rasterise(points, np.ones(49), faces, edges, 30, 30).face >= 0
    wanted = np.zeros((30, 30), bool)
    wanted[:16, 8:] = True
    np.testing.assert_array_equal(seen, wanted)


def test_faces_behind_the_camera_or_outside_are_left_out() -> None:
    xy = np.array([[1.0, 1], [8, 1], [4, 9], [1e12, 0], [1e12, 5], [-1e12, 2]])
    faces = np.array([[0, 1, 2], [3, 4, 3]], np.int32)
    seen = rasterise(xy, np.array([1.0, -1, 1, 1, 1, 1]), faces, np.ones((6, 4), np.float32), 10, 10)
    assert (seen.face == NOTHING).all()
    assert not seen.inverse_depth.any()


def test_shared_borders_leave_no_holes() -> None:
    xy = np.array([[0.0, 0], [10, 0], [10, 10], [0, 10], [4.3, 5.1]])
    faces = np.array([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]], np.int32)
    assert (rasterise(xy, np.ones(5), faces, np.ones((5, 4), np.float32), 10, 10).face >= 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_vertex_normals_equal_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.normal(size=(12, 3)).astype(np.float32)
    faces = np.array([rng.choice(11, 3, replace=False) for _ in range(15)], np.int32)
    wanted = np.zeros((12, 3))
    for a, b, c in faces:
        wanted[[a, b, c]] += np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a])
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    got = vertex_normals(vertices, faces)
    # Two faces of the same corners, turned against each other, leave nothing but rounding: such a direction is none.
    clear = lengths[:, 0] > 1e-3
    np.testing.assert_allclose(got[clear], wanted[clear] / lengths[clear], atol=1e-3)
    assert not got[11].any(), "a vertex without faces has no direction"
