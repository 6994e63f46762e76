from __future__ import annotations

import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest

from pipeline.errors import ConfigError
from sgsfa_synth.identity import CAPACITY, TEAM, Identity, _traits, require_capacity, sample_identity
from sgsfa_synth.patterns import Cloth, paint


@pytest.mark.slow
def test_same_arguments_same_person_in_another_process() -> None:
    code = "from sgsfa_synth.identity import sample_identity as s; print([s(5, i) for i in range(6)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == str([sample_identity(5, i) for i in range(6)])


def test_seed_and_population_give_other_people() -> None:
    here = sample_identity(0, 3)
    assert here != sample_identity(1, 3)
    assert here.shape != sample_identity(0, 3, population="extras").shape


@pytest.mark.parametrize("seed", [0, 17])
def test_no_two_identities_have_all_numbered_traits_in_common(seed: int) -> None:
    word = zlib.crc32(b"cast")
    # Every twelfth team over the whole population, all of its members: collisions would be between any two of them.
    chosen = [i for team in range(0, CAPACITY // TEAM, 12) for i in range(team * TEAM, team * TEAM + TEAM)]
    assert len({_traits(seed, word, i)[:4] for i in chosen}) == len(chosen)


def test_capacity_is_refused() -> None:
    require_capacity(CAPACITY)
    for ids in (0, -1, CAPACITY + 1):
        with pytest.raises(ConfigError) as caught:
            require_capacity(ids)
        assert str(CAPACITY) in str(caught.value)
    for index in (-1, CAPACITY):
        with pytest.raises(ConfigError):
            sample_identity(0, index)


def test_look_alikes_share_a_palette() -> None:
    people = [sample_identity(0, i) for i in range(200)]
    shades = Counter(tuple(np.round(_from_afar(worn_above(p)), 2)) for p in people)
    bottoms = Counter(tuple(np.round(_from_afar(p.bottom.cloth), 2)) for p in people)
    assert sum(n for n in shades.values() if n > 1) > 60, "several wear the very same shade"
    assert sum(n for n in bottoms.values() if n > 1) > 60
    assert len(shades) > 60, "but not all do"


def worn_above(person: Identity) -> Cloth:
    return person.coat.cloth if person.coat is not None else person.top.cloth


def _from_afar(cloth: Cloth) -> np.ndarray:
    """Mean of the cube roots of the cloth's colours over a chest."""
    chest = np.random.default_rng(1).uniform([-0.15, -0.1, 0.0], [0.15, -0.1, 0.45], (4000, 3)).astype(np.float32)
    colours = paint(cloth, chest, np.full(len(chest), -1, np.float32), shoulder=0.45, hip=0.0)
    return np.cbrt(colours.astype(float)).mean(0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outfits_are_stratified(seed: int) -> None:
    people = [sample_identity(seed, i) for i in range(40)]
    garments = Counter(p.garment for p in people)
    assert set(garments) == {"trousers", "jeans", "shorts", "skirt", "dress", "jumpsuit"}
    # Each rare card goes to one of ten teams of four; members mostly keep it, others rarely have it.
    assert all(1 <= garments[rare] <= 10 for rare in ("shorts", "skirt", "dress", "jumpsuit"))
    assert 2 <= sum(p.coat is not None for p in people) <= 16
    assert 2 <= sum(p.hat is not None for p in people) <= 16
    assert {"backpack", "shoulder", "hand"} <= {p.bag.kind for p in people if p.bag}
    for worn in (
        [p for p in people if p.gloves],
        [p for p in people if p.scarf],
        [p for p in people if p.eyewear == "sunglasses"],
    ):
        assert 1 <= len(worn) <= 10


def test_most_of_a_uniformed_team_share_what_a_parser_sees_and_bring_their_own_bags() -> None:
    word = zlib.crc32(b"cast")
    same, bags, pairs = 0, 0, 0
    for team in range(60):
        first, *others = (sample_identity(0, TEAM * team + member) for member in range(TEAM))
        if _traits(0, word, TEAM * team)[-1]:
            worn = [(p.hat, p.scarf, p.gloves) for p in (first, *others)]
            same += sum(things == worn[0] for things in worn[1:])
            bags += sum(other.bag is not None and other.bag == first.bag for other in others)
            pairs += len(others)
    assert pairs >= 90
    assert 0.6 < same / pairs < 0.97
    assert bags / pairs < 0.3


def test_uniforms_are_one_cut_and_one_shade_in_different_patterns() -> None:
    word = zlib.crc32(b"cast")
    looked_at = 0
    for team in range(40):
        people = [sample_identity(0, TEAM * team + member) for member in range(TEAM)]
        if not _traits(0, word, TEAM * team)[-1] or people[0].garment not in ("trousers", "jeans", "shorts"):
            continue
        looked_at += 1
        assert len({p.garment for p in people}) == 1
        assert len({(p.top.sleeve, p.top.neck, p.top.hem) for p in people}) == 1
        assert len({worn_above(p).pattern for p in people}) == TEAM
        assert len({(p.shoes.colour, p.skin) for p in people}) == TEAM
        shades = np.array([_from_afar(worn_above(p)) for p in people])
        assert np.ptp(shades, axis=0).max() < 0.03, "from afar they are one"
        legs = np.array([_from_afar(p.bottom.cloth) for p in people])
        assert np.ptp(legs, axis=0).max() < 0.03
    assert looked_at > 10


def test_traits_are_plausible() -> None:
    people = [sample_identity(0, i) for i in range(150)]
    for person in people:
        assert 1.0 < person.stature < 2.0
        assert all(
            0 <= c <= 0.85 for c in (*person.skin, *person.hair.colour, *person.shoes.colour, *person.shoes.sole)
        )
        assert person.garment not in ("dress", "skirt") or person.female
        assert not person.female or person.hair.beard == 0
    assert 0.3 < sum(p.female for p in people) / len(people) < 0.7
    assert 0 < sum(not p.adult for p in people) < 20
