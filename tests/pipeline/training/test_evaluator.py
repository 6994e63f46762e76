"""Evaluations and calibrations during a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime.progress import SILENT, Task
from pipeline.training import calibrate as calibrate_module
from pipeline.training import evaluator as evaluator_module
from pipeline.training.calibrate import NEVER
from pipeline.training.run import train
from tests.helpers.training import small_training
from tests.helpers.training_runs import Straight

pytestmark = pytest.mark.usefixtures("no_curves")


class Tasks:
    """A progress that keeps the labels and totals of its tasks."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int | None]] = []

    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> Task:
        self.begun.append((label, total))
        return SILENT.task(label, total=total, done=done, unit=unit)


def test_evaluate__reports_progress(tmp_path: Path, straight: Straight) -> None:
    tasks = Tasks()
    train(tmp_path, **straight.arguments, progress=tasks)
    tests = straight.dataset
    each = [("calibrate", 18), ("test", len(tests.split("query")) + len(tests.split("gallery")))]
    assert [task for task in tasks.begun if task[0] in ("calibrate", "test")] == [*each, *each, each[0]]


def test_keep_best__calibrates_once(tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch) -> None:
    before, calls = evaluator_module.calibrate, []
    monkeypatch.setattr(evaluator_module, "calibrate", lambda *a, **k: calls.append(1) or before(*a, **k))
    report = train(tmp_path, **straight.arguments)
    assert len(calls) == report.epochs
    assert (tmp_path / "best.safetensors").read_bytes() == (straight.folder / "best.safetensors").read_bytes()


def test_calibrate__part_that_is_always_covered_has_a_threshold(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    paste = calibrate_module.augment

    def covered(*arguments: Any) -> Any:
        images, masks = paste(*arguments)
        masks.parts[:, 3] = 0
        return images, masks

    monkeypatch.setattr(calibrate_module, "augment", covered)
    report = train(tmp_path, **straight.changed(tests=(), config=small_training(epochs=1)))
    assert 0 < report.thresholds[3] < NEVER
