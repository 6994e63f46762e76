"""Batches of images, wherever the images are held."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.image_store import ImageStore
from pipeline.training.prefetch import Prefetcher


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=8), st.booleans())
def test_batches__in_order_from_memory_and_file(plans: list[list[int]], mapped: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 3, 3), dtype=np.uint8)
    store = ImageStore(images, tuple("0123456789"))
    prefetcher = Prefetcher(store, torch.device("cpu"))
    if mapped:
        prefetcher._resident = None
    batches = list(prefetcher.batches(plans, lambda plan: np.array(plan)))
    assert [plan for plan, _ in batches] == plans
    for plan, batch in batches:
        np.testing.assert_array_equal(batch.numpy(), images[plan])


def test_batches__abandoned_iterator_ends_its_thread() -> None:
    store = ImageStore(np.zeros((10, 4, 3, 3), np.uint8), tuple("0123456789"))
    prefetcher = Prefetcher(store, torch.device("cpu"))
    prefetcher._resident = None
    feed = prefetcher.batches(iter([np.array([i]) for i in range(10)]), lambda rows: rows)
    next(feed)
    feed.close()  # type: ignore[attr-defined]
    assert next(feed, None) is None
