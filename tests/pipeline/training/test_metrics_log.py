"""The metrics file and what it forwards to TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.training.metrics_log import MetricsLog


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "board") as log:
        for step in (1, 2):
            log.write("step", step=step, epoch=1, values={"loss": 1.0 / step, "names": "no number"})
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert events.Tags()["scalars"] == ["step/loss"]
    assert [(each.step, each.value) for each in events.Scalars("step/loss")] == [(1, 1.0), (2, 0.5)]


def test_missing_tensorboard_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="TensorBoard is not installed"):
        MetricsLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "board")
