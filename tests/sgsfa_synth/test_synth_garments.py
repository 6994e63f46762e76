from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial import cKDTree

from sgsfa_synth.garments import adapted, dress, seat, wardrobe
from sgsfa_synth.identity import Identity, sample_identity
from sgsfa_synth.mesh import Label, Material, Mesh
from sgsfa_synth.pose import POSES, Pose, sample_pose

PEOPLE = [sample_identity(0, i) for i in range(40)]


def first(wanted: str) -> Identity:
    """The first person with a bag or hat of a kind."""
    return next(
        person
        for person in (sample_identity(0, index) for index in range(400))
        if wanted in ((person.bag.kind if person.bag else ""), (person.hat.kind if person.hat else ""), person.garment)
    )


def dressed(person: Identity, kind: str, seed: int = 0) -> Mesh:
    rng = np.random.default_rng([person.index, seed])
    return dress(person, sample_pose(rng, kind), rng)


def vertices_of(mesh: Mesh, material: Material) -> np.ndarray:
    used = np.unique(mesh.faces[mesh.material == material])
    return mesh.vertices[used[mesh.visible_vertices[used]]]


@pytest.mark.parametrize("kind", POSES)
def test_all_stand_on_the_ground_in_every_pose(kind: str) -> None:
    for person in PEOPLE[::4]:
        mesh = dressed(person, kind).moved(1.0, (2.0, -1.0, 0.0))
        assert np.isfinite(mesh.vertices).all()
        assert np.isfinite(mesh.normals).all()
        lowest = mesh.vertices[mesh.visible_vertices, 2].min()
        assert -0.01 < lowest < 0.01, f"identity {person.index} stands at {lowest:.3f}"
        tall = mesh.vertices[mesh.visible_vertices, 2].max()
        assert tall < person.stature + 0.15
        assert tall > person.stature * (0.6 if kind == "sit" else 0.88)


def test_same_arguments_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from sgsfa_synth.garments import dress\n"
        "from sgsfa_synth.identity import sample_identity\n"
        "from sgsfa_synth.pose import sample_pose\n"
        "rng = np.random.default_rng(4)\n"
        "m = dress(sample_identity(3, 5), sample_pose(rng, 'walk'), rng)\n"
        "print(hashlib.sha256(m.vertices.tobytes() + m.edges.tobytes() + m.faces.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    rng = np.random.default_rng(4)
    mesh = dress(sample_identity(3, 5), sample_pose(rng, "walk"), rng)
    here = hashlib.sha256(mesh.vertices.tobytes() + mesh.edges.tobytes() + mesh.faces.tobytes()).hexdigest()
    assert here == other


@pytest.mark.parametrize("kind", POSES)
def test_a_backpack_hugs_the_back(kind: str) -> None:
    for person in [p for p in PEOPLE if p.bag and p.bag.kind == "backpack"][:4]:
        mesh = dressed(person, kind)
        trunk = np.concatenate([vertices_of(mesh, m) for m in (Material.TOP, Material.COAT)])
        bag = vertices_of(mesh, Material.BAG)
        distance = cKDTree(trunk).query(bag)[0]
        assert distance.max() < 0.24, "no part farther off than the sack is deep"
        assert np.percentile(distance, 50) < 0.06
        assert distance.min() < 0.015


@pytest.mark.parametrize("kind", ["walk", "phone", "sit"])
def test_hats_and_hair_stay_on_the_head(kind: str) -> None:
    for person in [p for p in PEOPLE if p.hat][:4]:
        mesh = dressed(person, kind)
        head = mesh.vertices[(mesh.label == Label.FACE) & mesh.visible_vertices]
        hat = vertices_of(mesh, Material.HAT)
        top = head[head[:, 2] > head[:, 2].max() - 0.12]
        assert (
            cKDTree(np.concatenate([top, vertices_of(mesh, Material.HAIR)]) if person.hair.style != "bald" else top)
            .query(hat)[0]
            .max()
            < 0.17
        )
        assert hat[:, 2].max() > head[:, 2].max()


@pytest.mark.parametrize("kind", ["walk", "stand", "pocket", "hold"])
@pytest.mark.parametrize("bag", ["hand", "suitcase"])
def test_what_is_carried_is_in_the_hand(kind: str, bag: str) -> None:
    person = first(bag)
    assert person.bag is not None
    mesh = dressed(person, kind)
    held = vertices_of(mesh, Material.BAG)
    side = 1 if person.bag.side == "L" else -1
    hand = mesh.vertices[(mesh.arm > 1.1) & (mesh.canonical[:, 0] * side > 0)]
    assert cKDTree(held).query(hand)[0].min() < 0.02
    if bag == "suitcase":
        assert abs(held[:, 2].min()) < 0.01, "its wheels are on the ground"


@pytest.mark.parametrize("bag", ["hand", "suitcase"])
@pytest.mark.parametrize("kind", ["sit", "carry"])
def test_a_bag_stands_on_the_ground_when_the_hands_are_full(kind: str, bag: str) -> None:
    assert abs(vertices_of(dressed(first(bag), kind), Material.BAG)[:, 2].min()) < 0.01


def test_a_shoulder_bag_touches_the_hip() -> None:
    mesh = dressed(first("shoulder"), "walk")
    clothes = np.concatenate(
        [vertices_of(mesh, m) for m in (Material.TOP, Material.COAT, Material.BOTTOM, Material.SKIRT)]
    )
    sack = vertices_of(mesh, Material.BAG)
    assert cKDTree(clothes).query(sack)[0].min() < 0.03
    assert cKDTree(clothes).query(sack)[0].max() < 0.25


def test_adapted_poses_leave_others_alone() -> None:
    plain = next(p for p in PEOPLE if p.bag is None)
    pose = sample_pose(np.random.default_rng(0), "phone")
    assert adapted(pose, plain) is pose
    carrier = first("hand")
    assert carrier.bag is not None
    for seed in range(6):
        changed = adapted(sample_pose(np.random.default_rng(seed), "phone"), carrier)
        assert changed.hand != carrier.bag.side, "the phone goes to the free hand"


def test_seat_is_under_the_thighs() -> None:
    for person in PEOPLE[:12]:
        pose = sample_pose(np.random.default_rng(person.index), "sit")
        place = seat(person, pose)
        assert place is not None
        assert 0.2 * person.stature < place.height < 0.36 * person.stature
        assert place.front_y < -0.1 < 0.1 < place.back_y
    assert seat(PEOPLE[0], Pose("stand")) is None


def test_skin_under_clothes_is_left_out() -> None:
    covered = next(p for p in PEOPLE if p.garment == "trousers" and p.top.sleeve > 0.9 and p.coat is None)
    mesh = dressed(covered, "stand")
    skin = np.unique(mesh.faces[mesh.material == Material.SKIN])
    skin = skin[mesh.visible_vertices[skin]]
    trunk = (
        (mesh.canonical[skin, 2] > 0.2) & (mesh.canonical[skin, 2] < 0.48) & (np.abs(mesh.canonical[skin, 0]) < 0.15)
    )
    assert not trunk.any()
    assert len(mesh.faces) < 40_000


def test_a_wardrobe_is_built_once() -> None:
    assert wardrobe(PEOPLE[0]) is wardrobe(PEOPLE[0])


def test_hems_are_positive_fields_over_visible_cloth() -> None:
    for person in PEOPLE[:10]:
        mesh = dressed(person, "walk")
        assert mesh.edges.shape[1] == 4
        # Each face that is kept has something left of it in every single field.
        assert (mesh.edges[mesh.faces].max(axis=1) >= 0).all()
        for material in (Material.TOP, Material.SHOE):
            assert len(vertices_of(mesh, material)) > 50
