"""torch.compile for real, with the C++ compiler of this machine; slow, because compiling is.

The network is the baseline on two convolutions: a MobileNetV2 takes the compiler minutes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import LossConfig
from pipeline.model.backbone import Backbone, BackboneInfo
from pipeline.model.baseline import Baseline
from pipeline.model.losses import total_loss
from pipeline.training import setup
from pipeline.training.augment import augment
from pipeline.training.compilation import Compiled
from pipeline.training.gradient import backward
from pipeline.training.metrics_log import read_metrics
from pipeline.training.run import train
from tests.helpers.gradients import assert_same_gradients, gradients, make_batch, make_model
from tests.helpers.training import make_masks, make_people, small_model, small_training


def two_convolutions(*_: object, **__: object) -> nn.Module:
    torch.manual_seed(0)
    early = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    middle, deep = (nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()) for _ in range(2))
    last = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
    return Baseline(small_model(kind="baseline"), 6, Backbone(early, middle, deep, last, BackboneInfo(8, 8, 8, 16)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_network__trains_like_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    called = []
    compile_ = torch.compile

    functions = []

    def watched(what: Any, **options: object) -> object:
        made = compile_(what, **options)
        if isinstance(what, nn.Module):
            made.register_forward_hook(lambda *_: called.append(1))
        else:
            functions.append(what)
        return made

    monkeypatch.setattr(torch, "compile", watched)
    monkeypatch.setattr(setup, "build_model", two_convolutions)
    dataset = make_people(tmp_path / "people")
    arguments = {
        "dataset": dataset,
        "masks": make_masks(tmp_path / "masks.h5", dataset),
        "model": small_model(kind="baseline"),
        "loss": LossConfig(),
    }
    for name, wanted in (("plain", False), ("compiled", True)):
        train(tmp_path / name, **arguments, config=small_training(compile=wanted, ema=0))
    assert "torch.compile failed" not in caplog.text
    # The trial, and four steps.
    assert len(called) == 5
    assert functions == [augment, total_loss]
    one, two = (
        [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if line["kind"] == "step"]
        for name in ("plain", "compiled")
    )
    for plain, other in zip(one, two, strict=True):
        # The first steps; from then on rounding grows with every one.
        assert other["loss"] == pytest.approx(plain["loss"], rel=1e-3 if plain["step"] <= 2 else 5e-2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_losses__have_the_gradients_of_the_eager_ones(caplog: pytest.LogCaptureFixture) -> None:
    batch, loss = make_batch(), LossConfig(triplet_on="parts")
    plain, compiled = (make_model(necks=True, global_dim=8) for _ in range(2))
    function = Compiled(total_loss, "the losses")
    for step in range(2):
        one, _ = backward(plain, *batch, loss)
        two, _ = backward(compiled, *batch, loss, loss_function=function)
        torch.testing.assert_close(two.stacked(), one.stacked(), rtol=1e-5, atol=1e-5)
        # Twice the first step's: the trial adds nothing.
        assert_same_gradients(gradients(compiled), gradients(plain))
        assert step == 0 or not [record for record in caplog.records if record.name.startswith("sgsfa")]


def test_function__stays_eager_where_compiling_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object, **options: object) -> object:
        def call(*_: object) -> object:
            raise RuntimeError("\nno such kernel\nmore of it")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    function = Compiled(torch.square, "the squares")
    assert function(torch.tensor(3.0)) == 9
    assert function(torch.tensor(2.0)) == 4
    assert len(caplog.records) == 1
    assert "the squares" in caplog.text
    assert "no such kernel" in caplog.text
