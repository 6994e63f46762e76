"""Fixtures of the training tests; what they are made of is in `training_helpers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import LossConfig
from pipeline.datasets.records import Dataset
from tests.helpers.training import make_masks, make_people


@pytest.fixture
def people(tmp_path: Path) -> Dataset:
    return make_people(tmp_path / "people")


@pytest.fixture
def masks(tmp_path: Path, people: Dataset) -> Path:
    return make_masks(tmp_path / "masks.h5", people)


@pytest.fixture
def loss() -> LossConfig:
    return LossConfig()
