"""Interrupting and comparing training runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.datasets.records import Dataset
from pipeline.model.checkpoint import load_checkpoint
from pipeline.training import step as step_module
from pipeline.training.metrics_log import read_metrics
from pipeline.training.report import TrainReport
from pipeline.training.run import train


@dataclass(frozen=True)
class Straight:
    """An undisturbed run of 4 steps with two evaluations, and its arguments."""

    arguments: dict[str, Any]
    folder: Path
    report: TrainReport

    def changed(self, **changes: object) -> dict[str, Any]:
        """Its arguments with others in their place."""
        return self.arguments | changes

    @property
    def dataset(self) -> Dataset:
        """Its data set of 18 training images of 6 identities."""
        dataset: Dataset = self.arguments["dataset"]
        return dataset


class Killed(BaseException):
    """Ends a run as a kill would: nothing handles it."""


def kill() -> None:
    raise Killed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("no memory")


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Call `action` once, when step `step`, counted from 0, begins."""
    before = step_module.learning_rate
    waiting = [action]

    def rate(now: int, per_epoch: int, config: Any) -> float:
        if now == step and waiting:
            waiting.pop()()
        return before(now, per_epoch, config)

    monkeypatch.setattr(step_module, "learning_rate", rate)


def train_until(folder: Path, step: int, action: Callable[[], object], arguments: dict[str, Any]) -> None:
    """Train until `action` ends the run in step `step`."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, action)
        with pytest.raises((KeyboardInterrupt, Killed)):
            train(folder, **arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "model.safetensors")[0].state_dict()


def assert_equal_weights(one: Path, two: Path) -> None:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == kind]


def kinds(folder: Path) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in read_metrics(folder / "metrics.jsonl")]
