"""Decoded images, their masks, and batches of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.config import ModelConfig
from pipeline.datasets.images import fitted, resize, write_image
from pipeline.datasets.records import Dataset
from pipeline.errors import ArtifactError, DataError
from pipeline.runtime.progress import SILENT
from pipeline.training.image_store import ImageStore, cached_images, open_images
from tests.helpers.training import HEIGHT, WIDTH, paint


def load(
    dataset: Dataset,
    cache: Path,
    *,
    budget: float = 1.0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    fit: str = "stretch",
) -> ImageStore:
    names = sorted(record.path for record in dataset.split("train"))
    # A network's own sizes are multiples of 16; the smallest keep the tests fast.
    model = ModelConfig.model_construct(height=size[0], width=size[1], fit=fit)
    return open_images(cached_images(dataset, names, model, cache=cache, progress=SILENT), budget)


@pytest.mark.parametrize("budget", [1.0, 1e-9])
def test_store__holds_the_resized_images(tmp_path: Path, people: Dataset, budget: float) -> None:
    store = load(people, tmp_path / "cache", budget=budget, size=(32, 16))
    assert store.in_memory == (budget == 1.0)
    assert len(store.names) == len(people.split("train"))
    for row, record in enumerate(sorted(people.split("train"), key=lambda record: record.path)):
        assert store.names[row] == record.path
        shot = int(record.path[-5])
        np.testing.assert_array_equal(store.images[row], resize(paint(record.pid, shot), 32, 16))


def test_store__fits_images_and_keeps_their_areas(tmp_path: Path, people: Dataset) -> None:
    record = min(people.split("train"), key=lambda record: record.path)
    cut = paint(record.pid, 0)[:30]
    write_image(people.path_of(record).with_suffix(".png"), cut)
    people.path_of(record).with_suffix(".png").rename(people.path_of(record))
    stretched, padded = (load(people, tmp_path / "cache", size=(64, 32), fit=fit) for fit in ("stretch", "pad"))
    pixels, area = fitted(cut, 64, 32, "pad")
    np.testing.assert_array_equal(padded.images[0], pixels)
    assert padded.areas is not None
    assert tuple(padded.areas[0]) == area
    assert area[2] < 1
    assert (padded.areas[1:] == (0, 0, 1, 1)).all()
    np.testing.assert_array_equal(padded.images[1:], stretched.images[1:])


def test_store__decodes_again_when_a_file_changes(
    tmp_path: Path, people: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training import image_store as module

    decoded = []
    before = module.decode_batches
    monkeypatch.setattr(module, "decode_batches", lambda *a, **k: decoded.append(1) or before(*a, **k))
    first = load(people, tmp_path / "cache")
    path = people.path_of(people.split("train")[0])
    again = load(people, tmp_path / "cache")
    np.testing.assert_array_equal(first.images, again.images)
    assert len(decoded) == 1
    path.write_bytes(people.path_of(people.split("train")[1]).read_bytes())
    changed = load(people, tmp_path / "cache")
    assert len(decoded) == 2
    np.testing.assert_array_equal(changed.images[0], changed.images[1])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_store__leftovers_of_a_killed_run_are_replaced(tmp_path: Path, people: Dataset) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "images-00.h5.partial").write_bytes(b"half")
    load(people, tmp_path / "cache")
    (only,) = (tmp_path / "cache").iterdir()
    assert h5py.is_hdf5(only)


def test_store__no_readable_image_is_an_error(tmp_path: Path, people: Dataset) -> None:
    for record in people.split("train"):
        people.path_of(record).write_bytes(b"")
    with pytest.raises(DataError, match="no training image"):
        load(people, tmp_path / "cache")


@pytest.mark.parametrize("size", [100, 3000, 30_000])
def test_store__full_disk_is_reported(
    tmp_path: Path, people: Dataset, no_file_beyond: Callable[[int], None], size: int
) -> None:
    no_file_beyond(size)
    with pytest.raises(ArtifactError, match=r"too large[^$]*disk space"):
        load(people, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
