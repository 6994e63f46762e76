from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.records import DISTRACTOR_PID
from pipeline.errors import ConfigError
from sgsfa_synth.identity import CAPACITY, TEAM
from sgsfa_synth.plan import GALLERY_OCCLUSION, check_size, distractor_count, plan_images

sizes = st.tuples(st.integers(2, 24), st.integers(2, 5), st.integers(1, 3), st.integers(0, 5))


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_every_query_has_a_match_in_another_camera_and_is_occluded(size: tuple[int, int, int, int]) -> None:
    ids, cameras, shots, seed = size
    images = plan_images(ids, cameras, shots, 0.3, seed)
    gallery: dict[int, set[int]] = defaultdict(set)
    for image in images:
        if image.split == "gallery":
            gallery[image.pid].add(image.camera)
    queries = [image for image in images if image.split == "query"]
    assert queries
    for query in queries:
        assert query.occluded
        assert gallery[query.pid] - {query.camera}


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_train_and_test_people_are_disjoint_and_all_images_are_planned_once(size: tuple[int, int, int, int]) -> None:
    ids, cameras, shots, seed = size
    images = plan_images(ids, cameras, shots, 0.3, seed)
    named = [image for image in images if image.pid != DISTRACTOR_PID]
    assert len(named) == ids * cameras * shots
    assert len({image.name for image in images}) == len(images)
    train = {image.pid for image in named if image.split == "train"}
    test = {image.pid for image in named if image.split != "train"}
    assert not train & test
    assert train | test == set(range(1, ids + 1))
    assert train
    assert test
    assert abs(len(train) - len(test)) <= TEAM


@given(st.integers(TEAM + 1, 60), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_look_alikes_are_on_one_side(ids: int, seed: int) -> None:
    sides: dict[int, set[str]] = defaultdict(set)
    for image in plan_images(ids, 2, 1, 0.3, seed):
        side = "distractor" if image.pid == DISTRACTOR_PID else "train" if image.split == "train" else "test"
        sides[image.identity // TEAM].add(side)
    assert all(len(found) == 1 for found in sides.values())


def test_the_largest_size_that_is_offered_can_be_made() -> None:
    with pytest.raises(ConfigError) as caught:
        check_size(CAPACITY, 2, 1)
    most = int(str(caught.value.expected).split()[-1])
    check_size(most, 2, 1)


def test_shares_of_occluded_images() -> None:
    images = plan_images(100, 4, 3, 0.25, 0)
    for split, share in (("train", 0.25), ("query", 1.0), ("gallery", GALLERY_OCCLUSION)):
        flags = [image.occluded for image in images if image.split == split]
        assert sum(flags) == round(share * len(flags))


def test_distractors_are_in_the_gallery_only_and_are_other_people() -> None:
    images = plan_images(40, 4, 2, 0.25, 0)
    distractors = [image for image in images if image.pid == DISTRACTOR_PID]
    assert {image.split for image in distractors} == {"gallery"}
    assert {image.identity for image in distractors} == set(range(40, 40 + distractor_count(40)))


def test_benchmark_has_24000_images_besides_distractors() -> None:
    images = plan_images(1000, 8, 3, 0.25, 0)
    assert sum(image.pid != DISTRACTOR_PID for image in images) == 24_000


def test_another_seed_is_another_split() -> None:
    first, second = (plan_images(20, 2, 2, 0.25, seed) for seed in (0, 1))
    assert {i.pid for i in first if i.split == "train"} != {i.pid for i in second if i.split == "train"}


@pytest.mark.parametrize(
    ("ids", "cameras", "shots", "where"),
    [(0, 4, 3, "ids"), (1, 4, 3, "ids"), (CAPACITY, 4, 3, "ids"), (10, 1, 3, "cameras"), (10, 4, 0, "shots")],
)
def test_sizes_that_cannot_be_made_are_refused(ids: int, cameras: int, shots: int, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_images(ids, cameras, shots, 0.25, 0)
    assert caught.value.where == where
    assert caught.value.expected
