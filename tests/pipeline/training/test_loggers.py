"""The metrics file and the loggers of other programs, with their real packages."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.training.loggers import open_logger
from pipeline.training.metrics_log import MetricsLog, read_metrics

SETTINGS = {"train.lr": 0.1}


def write_two_steps(folder: Path, name: str, first: int = 1) -> None:
    logger = open_logger(name, folder, first - 1, SETTINGS)
    with MetricsLog(folder / "metrics.jsonl", step=first - 1, loggers=[logger]) as log:
        for step in (first, first + 1):
            log.write("step", step=step, epoch=1, values={"loss": 1.0 / step, "names": "no number"})


def test_metrics_log__drops_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for kind, step in (("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("calibration", 2)):
            log.write(kind, step=step, epoch=1, values={"loss": float("nan"), "by_part": {"head": 1 / 3}})
    with path.open("a") as stream:
        stream.write('{"kind": "st')
    assert [line["kind"] for line in read_metrics(path)] == ["step", "step", "evaluation", "step", "calibration"]
    with MetricsLog(path, step=2, evaluation_due=True):
        pass
    left = list(read_metrics(path))
    assert [(line["kind"], line["step"]) for line in left] == [("step", 1), ("step", 2)]
    assert left[0]["loss"] is None
    assert left[0]["by_part"] == {"head": 0.333333}


def test_tensorboard__has_the_numbers_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_two_steps(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["step/loss"]
    assert [(each.step, each.value) for each in events.Scalars("step/loss")] == [(1, 1.0), (2, 0.5)]


@pytest.mark.slow
def test_mlflow__has_the_numbers_of_both_runs_of_a_training(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    write_two_steps(tmp_path, "mlflow")
    write_two_steps(tmp_path, "mlflow", first=3)
    client = mlflow.MlflowClient((tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("sgsfa").experiment_id])
    assert run.data.params == {"train.lr": "0.1"}
    history = client.get_metric_history(run.info.run_id, "step/loss")
    assert sorted((each.step, each.value) for each in history) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]


@pytest.mark.slow
def test_wandb__writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    write_two_steps(tmp_path, "wandb")
    (run,) = (tmp_path / "wandb").glob("wandb/offline-run-*/run-*.wandb")
    # Another process writes the file.
    deadline = time.monotonic() + 30
    while b"step/loss" not in run.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"step/loss" in run.read_bytes()


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_open_logger__missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        open_logger(name, tmp_path, 0, SETTINGS)
    assert f"sgsfa[{name}]" in (caught.value.hint or "")
