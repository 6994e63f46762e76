"""P x K batches: whole identities, no repeats without need, the same for the same seed, shared without loss."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, DataError
from pipeline.training.sampler import ShuffledCycle, check_batches, epoch_batches, shard, steps_per_epoch

LABELS = st.lists(st.integers(0, 11), min_size=12, max_size=80).filter(lambda labels: len(set(labels)) >= 4)


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"identities": 4, "instances": 3} | changes)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 5), st.sampled_from(["images", "identities"]))
def test_batches__have_p_identities_with_k_images(labels: list[int], epoch: int, length: str) -> None:
    batches = epoch_batches(labels, config(epoch_length=length), epoch)
    assert batches.shape == (steps_per_epoch(labels, config(epoch_length=length)), 12)
    images = Counter(labels)
    for batch in batches:
        groups = batch.reshape(4, 3)
        people = [{labels[row] for row in group} for group in groups]
        assert all(len(person) == 1 for person in people)
        assert len(set.union(*people)) == 4
        for group, (person,) in zip(groups, people, strict=True):
            assert len(set(group.tolist())) == min(3, images[person])


@settings(max_examples=30, deadline=None)
@given(LABELS, st.integers(0, 5))
def test_epoch__has_every_identity(labels: list[int], epoch: int) -> None:
    batches = epoch_batches(labels, config(epoch_length="identities"), epoch)
    assert {labels[row] for row in batches.ravel()} == set(labels)


def test_epoch__depends_on_seed_and_number() -> None:
    labels = [i // 5 for i in range(60)]
    one, again, other = (epoch_batches(labels, config(), epoch) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, epoch_batches(labels, config(seed=1), 0))


def test_epoch__images_are_drawn_equally_often() -> None:
    labels = [i // 6 for i in range(48)]
    counts = Counter(row for epoch in range(3) for row in epoch_batches(labels, config(), epoch).ravel().tolist())
    assert len(counts) == 48
    assert max(counts.values()) <= 6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=20, unique=True), st.lists(st.integers(1, 12), max_size=20))
def test_cycle__draws_every_item_before_any_repeats(cards: list[int], hands: list[int]) -> None:
    cycle = ShuffledCycle(cards, np.random.default_rng(0))
    dealt: Counter[int] = Counter()
    for count in hands:
        hand = cycle.draw(count)
        assert len(hand) == count
        shares = Counter(hand).values()
        assert max(shares) - min([*shares, *([0] if len(shares) < len(cards) else [])]) <= 1
        dealt.update(hand)
    # A hand may skip a card that it already holds, so counts can drift by one more round.
    if dealt:
        assert max(dealt.values()) - min(dealt[card] for card in cards) <= 2


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shard__whole_identities_that_make_up_the_batch(processes: int) -> None:
    batch = np.arange(32)
    pieces = [batch[shard(32, rank=rank, processes=processes)] for rank in range(processes)]
    np.testing.assert_array_equal(np.concatenate(pieces), batch)
    assert all(len(piece) % 4 == 0 for piece in pieces)


def test_check__impossible_batches_are_explained() -> None:
    with pytest.raises(DataError, match="3 identities, a batch needs 4"):
        check_batches([0, 0, 1, 2], config())
    labels = list(range(8))
    check_batches(labels, config(), processes=2)
    with pytest.raises(ConfigError, match="cannot be split among 3"):
        check_batches(labels, config(), processes=3)
    with pytest.raises(ConfigError, match="cannot be split among 4"):
        check_batches(labels, config(), processes=4)
    with pytest.raises(ConfigError, match="split into 5"):
        check_batches(labels, config(accumulate=5))
