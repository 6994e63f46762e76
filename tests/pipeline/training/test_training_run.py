"""A whole run on a tiny data set: what it leaves, what it counts, and that it ends the same however it was stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import small_model, small_training

from pipeline.config import LossConfig
from pipeline.datasets.records import Dataset
from pipeline.model.weights import load_checkpoint, read_meta
from pipeline.training import loop as loop_module
from pipeline.training.metrics_log import read_metrics
from pipeline.training.run import train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "model.safetensors")[0].state_dict()


def assert_equal_weights(one: Path, two: Path) -> None:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def test_leaves_a_checkpoint_a_log_curves_and_a_report(
    tmp_path: Path, people: Dataset, masks: Path, loss: LossConfig
) -> None:
    work = tmp_path / "work"
    report = train(
        work,
        dataset=people,
        masks=masks,
        model=small_model(),
        loss=loss,
        config=small_training(eval_every=1),
        tests=[people],
    )
    assert sorted(path.name for path in work.iterdir()) == [
        "best.safetensors",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
        "training.json",
    ]
    assert (report.images, report.identities, report.without_mask, report.steps) == (24, 6, 0, 8)
    meta = read_meta(work / "model.safetensors")
    assert meta.num_classes == 6
    assert meta.thresholds == report.thresholds
    assert len(report.thresholds) == 7
    assert all(0 < tau < 1 for tau in report.thresholds[:4])
    lines = list(read_metrics(work / "metrics.jsonl"))
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 9))
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2]
    assert [line["kind"] for line in lines][-1] == "calibration"
    assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "step")
    assert all(0 <= line["mAP"] <= 1 for line in lines if line["kind"] == "evaluation")
    assert set(next(line for line in lines if line["kind"] == "epoch")["visibility_accuracy"]) >= {"head", "top"}


class _StopAt:
    """Sends this process a signal when a step begins, as a user's Ctrl-C would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
        before = loop_module.learning_rate

        def rate(now: int, per_epoch: int, config: object) -> float:
            if now == step:
                os.kill(os.getpid(), number)
            return before(now, per_epoch, config)  # type: ignore[arg-type]

        monkeypatch.setattr(loop_module, "learning_rate", rate)


@pytest.mark.parametrize(("step", "number"), [(2, signal.SIGINT), (4, signal.SIGTERM), (6, signal.SIGINT)])
def test_stopped_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, people: Dataset, masks: Path, loss: LossConfig, step: int, number: signal.Signals
) -> None:
    arguments = {
        "dataset": people, "masks": masks, "model": small_model(), "loss": loss, "config": small_training()
    }  # fmt: skip
    train(tmp_path / "straight", **arguments)
    with pytest.MonkeyPatch.context() as patch:
        _StopAt(patch, step, number)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", **arguments)
    assert (tmp_path / "stopped" / "state" / "state.safetensors").is_file()
    torch.rand(100)  # whatever the process draws in between
    train(tmp_path / "stopped", **arguments)
    assert_equal_weights(tmp_path / "straight", tmp_path / "stopped")
    logs = [list(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("straight", "stopped")]
    for one, two in zip(*logs, strict=True):
        assert one["step"] == two["step"]
        assert one.get("loss") == two.get("loss") or one["kind"] == "epoch"
