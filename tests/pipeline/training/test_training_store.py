"""Decoded images, their masks, and batches of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.images import resize
from pipeline.datasets.records import Dataset
from pipeline.errors import ArtifactError, DataError, FormatError
from pipeline.runtime.progress import SILENT
from pipeline.training.feeder import Feeder
from pipeline.training.store import ImageStore, cached_images, load_targets, open_images
from pipeline.training.tree import joined, tensors_of, with_tensors
from tests.helpers.training import HEIGHT, WIDTH, make_masks, paint


def load(dataset: Dataset, cache: Path, *, budget: float = 1.0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> ImageStore:
    names = sorted(record.path for record in dataset.split("train"))
    path = cached_images(dataset, names, height=size[0], width=size[1], cache=cache, progress=SILENT)
    return open_images(path, budget)


@pytest.mark.parametrize("budget", [1.0, 1e-9])
def test_holds_the_resized_images(tmp_path: Path, people: Dataset, budget: float) -> None:
    store = load(people, tmp_path / "cache", budget=budget, size=(32, 16))
    assert store.in_memory == (budget == 1.0)
    assert len(store.names) == len(people.split("train"))
    for row, record in enumerate(sorted(people.split("train"), key=lambda record: record.path)):
        assert store.names[row] == record.path
        shot = int(record.path[-5])
        np.testing.assert_array_equal(store.images[row], resize(paint(record.pid, shot), 32, 16))


def test_decodes_once_and_again_when_a_content_changes(
    tmp_path: Path, people: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training import store as module

    decoded = []
    before = module.decode_batches
    monkeypatch.setattr(module, "decode_batches", lambda *a, **k: decoded.append(1) or before(*a, **k))
    first = load(people, tmp_path / "cache")
    path = people.path_of(people.split("train")[0])
    path.touch()
    again = load(people, tmp_path / "cache")
    np.testing.assert_array_equal(first.images, again.images)
    assert len(decoded) == 1
    path.write_bytes(people.path_of(people.split("train")[1]).read_bytes())
    changed = load(people, tmp_path / "cache")
    assert len(decoded) == 2
    np.testing.assert_array_equal(changed.images[0], changed.images[1])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_a_killed_run_left_is_replaced(tmp_path: Path, people: Dataset) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "images-00.h5.partial").write_bytes(b"half")
    load(people, tmp_path / "cache")
    (only,) = (tmp_path / "cache").iterdir()
    assert h5py.is_hdf5(only)


def test_nothing_readable(tmp_path: Path, people: Dataset) -> None:
    for record in people.split("train"):
        people.path_of(record).write_bytes(b"")
    with pytest.raises(DataError, match="none of the training images"):
        load(people, tmp_path / "cache")


def test_masks_are_found_by_name(tmp_path: Path, people: Dataset) -> None:
    masks = make_masks(tmp_path / "masks.h5", people, failed=2)
    records = {record.path: record for record in people.split("train")}
    names = sorted(records)[::-1]
    targets = load_targets(records, names, masks, height=256, width=128)
    assert targets.num_classes == 6
    assert targets.labels.tolist() == [records[name].pid - 1 for name in names]
    assert targets.has_mask.tolist() == [True] * (len(names) - 2) + [False] * 2
    assert targets.parts[0, 1, 5, 3] == 255
    assert not targets.parts[-1].any()
    assert not targets.body[-1].any()
    assert targets.without_mask == 2


def test_masks_are_averaged_to_the_maps_of_another_input_size(tmp_path: Path, people: Dataset) -> None:
    masks = make_masks(tmp_path / "masks.h5", people)
    records = {record.path: record for record in people.split("train")}
    targets = load_targets(records, sorted(records), masks, height=384, width=128)
    assert targets.parts.shape[1:] == (4, 24, 8)
    assert targets.body.shape[1:] == (1, 96, 32)
    full = load_targets(records, sorted(records), masks, height=256, width=128)
    assert targets.body.float().mean() == pytest.approx(full.body.float().mean().item(), abs=2)


def test_masks_of_another_data_set_or_damaged_ones_are_refused(tmp_path: Path, people: Dataset) -> None:
    masks = make_masks(tmp_path / "masks.h5", people)
    other = {record.path.replace("train", "other"): record for record in people.split("train")}
    with pytest.raises(DataError, match="holds none of the 18 training images"):
        load_targets(other, sorted(other), masks, height=256, width=128)
    masks.write_bytes(masks.read_bytes()[:1000])
    with pytest.raises(FormatError):
        load_targets(other, sorted(other), masks, height=256, width=128)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=8), st.booleans())
def test_batches_come_in_order_wherever_the_images_lie(plans: list[list[int]], mapped: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 3, 3), dtype=np.uint8)
    store = ImageStore(images, tuple("0123456789"))
    feeder = Feeder(store, torch.device("cpu"))
    if mapped:
        feeder._resident = None
    batches = list(feeder.batches(plans, lambda plan: np.array(plan)))
    assert [plan for plan, _ in batches] == plans
    for plan, batch in batches:
        np.testing.assert_array_equal(batch.numpy(), images[plan])


def test_an_abandoned_feed_ends_its_thread(people: Dataset, tmp_path: Path) -> None:
    feeder = Feeder(load(people, tmp_path / "cache", budget=1e-9), torch.device("cpu"))
    feed = feeder.batches(iter([np.array([i]) for i in range(10)]), lambda rows: rows)
    next(feed)
    feed.close()  # type: ignore[attr-defined]
    assert next(feed, None) is None


def test_trees_are_taken_apart_and_put_together() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, slots=True)
    class Leaf:
        a: torch.Tensor
        b: torch.Tensor | None

    @dataclass(frozen=True, slots=True)
    class Tree:
        leaf: Leaf
        c: torch.Tensor

    def tree(value: int) -> Tree:
        return Tree(Leaf(torch.full((2, 1), value), None), torch.full((2,), value))

    both = joined([tree(1), tree(2)])
    assert both.leaf.a[:, 0].tolist() == [1, 1, 2, 2]
    assert both.leaf.b is None
    assert both.c.tolist() == [1, 1, 2, 2]
    doubled = with_tensors(both, [tensor * 2 for tensor in tensors_of(both)])
    assert doubled.c.tolist() == [2, 2, 4, 4]


@pytest.mark.parametrize("size", [100, 3000, 30_000])
def test_a_full_disk_is_told_in_words(
    tmp_path: Path, people: Dataset, no_file_beyond: Callable[[int], None], size: int
) -> None:
    no_file_beyond(size)
    with pytest.raises(ArtifactError, match=r"too large[^$]*make room"):
        load(people, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
