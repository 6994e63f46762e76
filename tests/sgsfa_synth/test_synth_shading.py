from __future__ import annotations

import numpy as np
import pytest

from sgsfa_synth.body import body_model
from sgsfa_synth.garments import dress
from sgsfa_synth.identity import Identity, sample_identity
from sgsfa_synth.mesh import Label, Material, Mesh, merge
from sgsfa_synth.pose import Pose, sample_pose
from sgsfa_synth.raster import GBuffer, interpolate, rasterise
from sgsfa_synth.shading import Fragments, Surface, bend_normals, skin_label, surface

HEIGHT, WIDTH, SCALE = 220, 120, 105.0


def seen(mesh: Mesh) -> GBuffer:
    """A parallel view from the front, 105 pixels a metre."""
    xy = np.stack([mesh.vertices[:, 0] * SCALE + WIDTH / 2, HEIGHT - 8 - mesh.vertices[:, 2] * SCALE], axis=1)
    return rasterise(xy, 1000.0 - mesh.vertices[:, 1], mesh.faces, mesh.edges, HEIGHT, WIDTH)


def look(person: Identity, pose: Pose, yaw: float = 0.0) -> tuple[Surface, np.ndarray, np.ndarray]:
    """Surface, label picture, and the mask of covered pixels."""
    mesh = dress(person, pose, np.random.default_rng(0)).moved(yaw, (0, 0, 0))
    buffer = seen(mesh)
    on = buffer.face >= 0
    found = surface(mesh, person, Fragments(buffer.face[on], buffer.weights[on]))
    labels = np.zeros(on.shape, np.uint8)
    labels[on] = found.label
    return found, labels, on


def test_all_classes_occur_within_the_first_forty_identities() -> None:
    counts = np.zeros(20, int)
    for i in range(40):
        rng = np.random.default_rng(i)
        for yaw in (0.0, 2.6):
            counts += np.bincount(look(sample_identity(0, i), sample_pose(rng, "walk"), yaw)[1].ravel(), minlength=20)
    assert (counts > 25).all(), {Label(k).name: int(n) for k, n in enumerate(counts) if n <= 25}


def test_left_and_right_are_the_persons_own() -> None:
    pairs = ((Label.LEFT_ARM, Label.RIGHT_ARM), (Label.LEFT_LEG, Label.RIGHT_LEG), (Label.LEFT_SHOE, Label.RIGHT_SHOE))
    checked = 0
    for i in range(0, 40, 2):
        for yaw, side in ((0.0, 1), (np.pi, -1)):
            labels = look(sample_identity(0, i), Pose("stand"), yaw)[1]
            for left, right in pairs:
                columns = [np.nonzero(labels == label)[1] for label in (left, right)]
                if min(len(c) for c in columns) > 5:
                    # Facing us, the person's left is on the right of the picture.
                    assert side * (columns[0].mean() - columns[1].mean()) > 0
                    checked += 1
    assert checked > 60


def test_albedo_and_relief_are_finite_and_in_range() -> None:
    for i in range(0, 40, 6):
        found, _, on = look(sample_identity(1, i), sample_pose(np.random.default_rng(i)))
        assert found.albedo.shape == (on.sum(), 3)
        assert found.albedo.dtype == np.float32
        assert np.isfinite(found.albedo).all()
        assert found.albedo.min() >= 0
        assert found.albedo.max() <= 1
        assert np.isfinite(found.bump).all()
        assert np.abs(found.bump).max() < 0.03, "relief of a few millimetres, at most quilted centimetres"


def test_shoes_are_not_over_bright() -> None:
    for i in range(0, 40, 2):
        found, _, _ = look(sample_identity(0, i), Pose("stand"))
        shoes = found.albedo[np.isin(found.label, (Label.LEFT_SHOE, Label.RIGHT_SHOE))]
        assert shoes.mean() < 0.5


def test_skin_labels_follow_the_conventions() -> None:
    model = body_model()

    def at(bone: str) -> int:
        return int(skin_label(model.head(bone)[None].astype(np.float32))[0])

    assert at("head") == at("neck02") == at("eye.L") == Label.FACE
    assert at("shoulder01.L") == Label.FACE, "between collar bone and neck"
    assert at("upperarm01.L") == Label.LEFT_ARM, "a bare shoulder is arm"
    assert at("wrist.R") == at("finger3-2.R") == Label.RIGHT_ARM
    assert at("lowerleg01.L") == Label.LEFT_LEG
    assert at("foot.R") == Label.RIGHT_LEG


def test_materials_carry_the_labels_of_lip() -> None:
    wanted = {
        Material.BAG: {Label.BACKGROUND},
        Material.HAT: {Label.HAT},
        Material.HAIR: {Label.HAIR},
        Material.LOCKS: {Label.HAIR},
        Material.COAT: {Label.COAT},
        Material.SCARF: {Label.SCARF},
        Material.GLOVE: {Label.GLOVE},
        Material.SOCK: {Label.SOCKS},
        Material.EYE: {Label.FACE},
        Material.SHOE: {Label.LEFT_SHOE, Label.RIGHT_SHOE},
        Material.BOTTOM: {Label.PANTS, Label.JUMPSUITS},
        Material.SKIRT: {Label.SKIRT, Label.DRESS},
        Material.TOP: {Label.UPPER_CLOTHES, Label.DRESS, Label.JUMPSUITS},
    }
    met = set()
    for i in range(40):
        person = sample_identity(0, i)
        mesh = dress(person, Pose("stand"), np.random.default_rng(0))
        buffer = seen(mesh)
        on = buffer.face >= 0
        found = surface(mesh, person, Fragments(buffer.face[on], buffer.weights[on]))
        material = mesh.material[buffer.face[on]]
        for kind, labels in wanted.items():
            got = set(found.label[material == kind].tolist())
            assert got <= labels
            met |= {kind} if got else set()
    assert met == set(wanted)


def test_a_merged_mesh_gives_the_same_pixels() -> None:
    person = sample_identity(0, 4)
    mesh = dress(person, Pose("stand"), np.random.default_rng(0))
    other = dress(sample_identity(0, 9), Pose("stand"), np.random.default_rng(0)).moved(0.0, (0.0, 1.0, 0.0))
    joint, owner = merge([other, mesh])
    buffer = seen(joint)
    own = (buffer.face >= 0) & (owner[np.maximum(buffer.face, 0)] == 1)
    alone = seen(mesh)
    np.testing.assert_array_equal(own, alone.face >= 0)
    a = surface(joint, person, Fragments(buffer.face[own], buffer.weights[own]))
    b = surface(mesh, person, Fragments(alone.face[own], alone.weights[own]))
    np.testing.assert_array_equal(a.label, b.label)
    np.testing.assert_allclose(a.albedo, b.albedo, atol=1e-6)


def plane() -> tuple[np.ndarray, np.ndarray]:
    """A plane that faces -y, one pixel a centimetre; x to the right, z up."""
    z, x = np.meshgrid(np.arange(40)[::-1] * 0.01, np.arange(50) * 0.01, indexing="ij")
    return np.tile(np.float32([0, -1, 0]), (40, 50, 1)), np.stack([x, 0 * x, z], -1).astype(np.float32)


@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.3, 0.0), (0.0, -0.2), (0.25, 0.4)])
def test_bent_normals_are_those_of_the_raised_surface(slope: tuple[float, float]) -> None:
    normals, positions = plane()
    height = positions[..., 0] * slope[0] + positions[..., 2] * slope[1]
    # The raised surface is y = -h(x, z); its outward normal is proportional to (-dh/dx, -1, -dh/dz).
    wanted = np.array([-slope[0], -1, -slope[1]])
    got = bend_normals(normals, positions, height)
    np.testing.assert_allclose(got, np.broadcast_to(wanted / np.linalg.norm(wanted), got.shape), atol=1e-4)


def test_bent_normals_ignore_other_surfaces() -> None:
    normals, positions = plane()
    height = np.zeros((40, 50), np.float32)
    positions[:, 25:, 1] = 1.0
    height[:, 25:] = 0.004
    normals[:5] = 0
    got = bend_normals(normals, positions, height)
    np.testing.assert_allclose(got[5:], normals[5:], atol=1e-6)
    assert not got[:5].any()


def test_labels_and_colours_come_from_one_buffer() -> None:
    # Colour every face by its own label: what is drawn then equals the label picture exactly.
    person = sample_identity(0, 11)
    mesh = dress(person, sample_pose(np.random.default_rng(1), "walk"), np.random.default_rng(1))
    buffer = seen(mesh)
    on = buffer.face >= 0
    found = surface(mesh, person, Fragments(buffer.face[on], buffer.weights[on]))
    flat = interpolate(buffer, mesh.faces, mesh.label[:, None].astype(np.float32))[on][:, 0]
    by_pixel = np.isin(mesh.material[buffer.face[on]], (Material.SKIN, Material.SHOE))
    np.testing.assert_array_equal(np.rint(flat[~by_pixel]), found.label[~by_pixel])
