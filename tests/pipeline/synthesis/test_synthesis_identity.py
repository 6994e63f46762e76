from __future__ import annotations

import subprocess
import sys
import zlib
from collections import Counter

import pytest

from pipeline.errors import ConfigError
from pipeline.synthesis.identity import CAPACITY, TEAM, _traits, require_capacity, sample_identity


@pytest.mark.slow
def test_same_arguments_same_person_in_another_process() -> None:
    code = "from pipeline.synthesis.identity import sample_identity as s; print([s(5, i) for i in range(6)])"
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


def test_look_alikes_share_garments() -> None:
    people = [sample_identity(0, i) for i in range(200)]
    tops = Counter(p.top.cloth for p in people)
    bottoms = Counter(p.bottom.cloth.main for p in people)
    assert sum(n for n in tops.values() if n > 1) > 20, "several wear the very same cloth"
    assert sum(n for n in bottoms.values() if n > 1) > 30
    assert len(tops) > 80, "but not everybody does"


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


def test_most_of_a_uniformed_team_share_accessories() -> None:
    word = zlib.crc32(b"cast")
    same = pairs = 0
    for team in range(60):
        first, *others = (sample_identity(0, TEAM * team + member) for member in range(TEAM))
        if first.bag is not None and _traits(0, word, TEAM * team)[-1]:
            same += sum(other.bag == first.bag for other in others)
            pairs += len(others)
    assert pairs >= 30
    assert 0.55 < same / pairs < 0.95


def test_uniforms_are_one_cloth_and_one_cut() -> None:
    for team in range(40):
        people = [sample_identity(0, TEAM * team + member) for member in range(TEAM)]
        wearers = [p for p in people if p.garment in ("trousers", "jeans", "shorts")]
        if people[0] in wearers and len({p.top.cloth for p in wearers}) == 1:
            assert len({p.garment for p in wearers}) == 1
            assert len({p.coat for p in wearers}) == 1
            assert len({(p.shoes.colour, p.skin) for p in wearers}) == len(wearers)


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
