"""Fixtures of the training tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import LossConfig
from pipeline.datasets.records import Dataset
from pipeline.training import run as run_module
from pipeline.training.run import train
from tests.helpers.training import make_masks, make_people, small_model, small_training
from tests.helpers.training_runs import Straight


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    root = tmp_path_factory.mktemp("straight")
    dataset = make_people(root / "people")
    arguments = {
        "dataset": dataset,
        "masks": make_masks(root / "masks.h5", dataset),
        "model": small_model(),
        "loss": LossConfig(),
        "config": small_training(eval_every=1, checkpoint_minutes=0),
        "tests": [dataset],
    }
    return Straight(arguments, root / "run", train(root / "run", **arguments))


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here."""
    monkeypatch.setattr(run_module, "draw_curves", lambda metrics, out: None)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that the library logs."""
    with caplog.at_level(logging.INFO, logger="sgsfa"):
        yield caplog


@pytest.fixture
def people(tmp_path: Path) -> Dataset:
    return make_people(tmp_path / "people")


@pytest.fixture
def masks(tmp_path: Path, people: Dataset) -> Path:
    return make_masks(tmp_path / "masks.h5", people)


@pytest.fixture
def loss() -> LossConfig:
    return LossConfig()
