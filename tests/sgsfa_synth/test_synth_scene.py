from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsfa_synth.camera import Extent, View, Window
from sgsfa_synth.mesh import Label
from sgsfa_synth.props import KINDS, SEATS, VARIANTS, prop
from sgsfa_synth.scene import VISIBLE_RANGE, SceneSettings, palette, render, vote

SMALL = SceneSettings(height=128, width=64)
draws = st.tuples(st.integers(0, 300), st.integers(0, 5), st.integers(0, 2), st.booleans())


@given(draws)
@settings(max_examples=6, deadline=None)
def test_flat_picture_is_the_label_map(draw: tuple[int, int, int, bool]) -> None:
    """With one sample a pixel, a picture painted in label colours must equal the coloured label map everywhere."""
    identity, camera, shot, occluded = draw
    flat = replace(SMALL, supersample=1, flat=True)
    made = render(0, identity, camera, shot, occluded=occluded, settings=flat)
    np.testing.assert_array_equal(made.image, palette()[made.labels])


def test_supersampled_labels_are_the_majority_of_the_flat_picture() -> None:
    """Of a flat picture at twice the size, the vote over 2 x 2 pixels must be the supersampled label map."""
    for identity, occluded in ((3, False), (8, True)):
        fine = render(0, identity, 1, 0, occluded=occluded, settings=SceneSettings(256, 128, supersample=1, flat=True))
        coarse = render(0, identity, 1, 0, occluded=occluded, settings=SMALL)
        lookup = {tuple(colour): number for number, colour in enumerate(palette().tolist())}
        decoded = np.array([lookup[tuple(pixel)] for pixel in fine.image.reshape(-1, 3).tolist()], np.uint8)
        np.testing.assert_array_equal(vote(decoded.reshape(256, 128), 2), coarse.labels)


def test_light_does_not_move_labels() -> None:
    flat = render(0, 5, 2, 1, occluded=True, settings=replace(SMALL, flat=True))
    lit = render(0, 5, 2, 1, occluded=True, settings=SMALL)
    np.testing.assert_array_equal(flat.labels, lit.labels)
    assert flat.visible == lit.visible


def test_same_words_same_bytes() -> None:
    first = render(4, 2, 1, 0, occluded=True, settings=SMALL)
    render(4, 9, 0, 0, settings=SMALL)
    second = render(4, 2, 1, 0, occluded=True, settings=SMALL)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.labels, second.labels)
    other = render(5, 2, 1, 0, occluded=True, settings=SMALL)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.slow
def test_visible_share_of_occluded_people_is_in_range() -> None:
    tiny = SceneSettings(height=64, width=32, supersample=1)
    for identity in range(60):
        made = render(1, identity, identity % 4, 0, occluded=True, settings=tiny)
        assert made.occluder is not None
        assert VISIBLE_RANGE[0] <= made.visible <= VISIBLE_RANGE[1], identity
        assert (made.labels > 0).any(), identity


def test_person_is_whole_when_nothing_is_in_front() -> None:
    for identity in range(4):
        made = render(2, identity, 0, 0, settings=SMALL)
        assert made.occluder is None
        assert made.visible > 0.7
        assert made.visible == pytest.approx(1 - made.truncated, abs=0.15)
        assert (made.labels > 0).mean() > 0.05


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3]))
@settings(max_examples=20, deadline=None)
def test_vote_against_counting(seed: int, factor: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, (4 * factor, 3 * factor)).astype(np.uint8)
    out = vote(labels, factor)
    for y in range(4):
        for x in range(3):
            cell = labels[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            assert out[y, x] == np.bincount(cell.ravel(), minlength=5).argmax()


def test_palette_has_one_colour_a_label() -> None:
    assert palette().shape == (len(Label), 3)
    assert len({tuple(colour) for colour in palette().tolist()}) == len(Label)


@pytest.mark.parametrize("kind", [*KINDS, *SEATS])
def test_props_stand_on_the_ground(kind: str) -> None:
    for variant in (0, VARIANTS - 1):
        thing = prop(kind, variant)
        vertices = thing.mesh.vertices
        assert float(vertices[:, 2].min()) == pytest.approx(0.0, abs=1e-6)
        assert np.isfinite(vertices).all()
        assert np.abs(vertices[:, :2]).max() < 3.0
        assert len(thing.finish) == len(thing.mesh.faces)
        np.testing.assert_allclose(np.linalg.norm(thing.mesh.normals, axis=1), 1.0, atol=1e-3)
        assert (thing.mesh.colour >= 0).all()
        assert (thing.mesh.colour <= 1.6).all()


@given(st.floats(2, 15), st.floats(1.5, 5), st.floats(-0.1, 0.1), st.floats(-1, 1), st.floats(0, 2))
@settings(max_examples=50, deadline=None)
def test_projection_against_the_pinhole_equation(
    distance: float, height: float, roll: float, x: float, z: float
) -> None:
    view = View.looking((0.0, -distance, height), (0.0, 0.0, 0.9), roll)
    np.testing.assert_allclose(view.rotation @ view.rotation.T, np.eye(3), atol=1e-12)
    plane, inverse_depth = view.project(np.array([[x, 0.0, z], [0.0, 0.0, 0.9], [0.0, -distance - 1, height]]))
    right, down, ahead = view.rotation
    offset = np.array([x, 0.0, z]) - view.position
    np.testing.assert_allclose(plane[0], [offset @ right / (offset @ ahead), offset @ down / (offset @ ahead)])
    np.testing.assert_allclose(inverse_depth[0], 1 / (offset @ ahead))
    np.testing.assert_allclose(plane[1], 0, atol=1e-12)
    assert inverse_depth[2] == -1


def test_up_is_up_and_right_is_right() -> None:
    view = View.looking((0.0, -5.0, 1.0), (0.0, 0.0, 1.0))
    plane, _ = view.project(np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 2.0]]))
    assert plane[0, 0] > 0
    assert plane[1, 1] < 0
    pixels = Window(-1.0, -1.0, 2.0, 2.0).pixels(np.array([[0.0, 0.0], [1.0, 1.0]]), 40, 20)
    np.testing.assert_allclose(pixels, [[10, 20], [20, 40]])


def test_window_keeps_the_aspect_and_holds_wide_poses() -> None:
    for extent in (Extent(-0.1, -0.4, 0.1, 0.4), Extent(-0.5, -0.2, 0.5, 0.2)):
        window = extent.window(0.5, (0.02, 0.02), 0.0)
        assert window.width / window.height == pytest.approx(0.5)
        assert window.width > 0.9 * (extent.right - extent.left)
        assert window.top <= extent.top


def test_a_narrow_box_fits_a_slim_figure_and_cuts_no_wide_one() -> None:
    slim, wide = Extent(-0.1, -0.4, 0.1, 0.4), Extent(-0.20, -0.4, 0.20, 0.4)
    box = slim.window(0.5, (0.02, 0.02), 0.0, narrow=0.8)
    assert box.width / box.height == pytest.approx(0.4)
    for extent in (slim, wide):
        narrow, usual = (extent.window(0.5, (0.02, 0.02), 0.0, narrow=share) for share in (0.3, 1.0))
        assert (narrow.top, narrow.height) == (usual.top, usual.height)
        assert extent.right - extent.left < narrow.width <= usual.width


@pytest.mark.slow
def test_all_classes_occur_within_the_first_forty_people() -> None:
    clear = SceneSettings(height=128, width=64, supersample=1, flat=True)
    found: set[int] = set()
    for identity in range(40):
        found |= set(np.unique(render(0, identity, identity % 4, 0, settings=clear).labels).tolist())
    assert found == set(range(len(Label)))
