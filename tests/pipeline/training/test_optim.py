"""Learning rate, parameter groups and averaged weights."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from pipeline.config import TrainConfig
from pipeline.model.network import build_model
from pipeline.training.ema import ModelEma
from pipeline.training.optim import build_optimizer, parameter_groups, set_learning_rate
from pipeline.training.schedule import learning_rate
from tests.helpers.training import small_model


def rates(config: TrainConfig, per_epoch: int) -> list[float]:
    return [learning_rate(step, per_epoch, config) for step in range(config.epochs * per_epoch)]


def test_rate__paper_schedule() -> None:
    config = TrainConfig()
    values = rates(config, 3)
    for epoch, factor in ((0, 1), (49, 1), (50, 0.1), (79, 0.1), (80, 0.01), (100, 1e-3), (119, 1e-3)):
        assert values[3 * epoch] == pytest.approx(3e-4 * factor)
        assert values[3 * epoch + 2] == pytest.approx(3e-4 * factor)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_rate__short_run_anneals_like_a_long_one(schedule: str) -> None:
    stated = {"schedule": schedule, "warmup_epochs": 10, "milestones": (50, 80), "schedule_epochs": 120}
    long = rates(TrainConfig.model_validate({**stated, "epochs": 120}), 1)
    short = rates(TrainConfig.model_validate({**stated, "epochs": 12}), 10)
    assert short == pytest.approx(long)


def test_rate__warm_up_rises_per_step() -> None:
    config = TrainConfig(warmup_epochs=10, warmup_factor=0.01, schedule="cosine", epochs=60, schedule_epochs=0)
    values = rates(config, 5)
    assert values[0] == pytest.approx(3e-4 * 0.01)
    assert values[25] == pytest.approx(3e-4 * (0.01 + 0.99 * 0.5))
    assert values[50] == pytest.approx(3e-4)
    assert all(b > a for a, b in itertools.pairwise(values[:51]))


def test_rate__cosine_ends_at_its_final_factor() -> None:
    config = TrainConfig(schedule="cosine", epochs=20, warmup_epochs=2, final_factor=0.002, schedule_epochs=0)
    values = rates(config, 7)
    assert values[-1] == pytest.approx(3e-4 * 0.002)
    assert all(b <= a for a, b in itertools.pairwise(values[14:]))
    middle = (14 + 139) // 2
    share = (middle - 14) / (139 - 14)
    assert values[middle] == pytest.approx(3e-4 * (0.002 + 0.998 * 0.5 * (1 + math.cos(math.pi * share))))


def test_groups__norms_and_biases_do_not_decay() -> None:
    model = build_model(small_model(necks=True, global_dim=8), 3)
    groups = parameter_groups(model, TrainConfig(lr_heads=2.0))
    assert {(group["weight_decay"], group["scale"]) for group in groups} == {
        (decay, scale) for decay in (5e-4, 0.0) for scale in (1.0, 2.0)
    }
    wanted = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            wanted.add(id(module.weight))
    assert {id(p) for group in groups if group["weight_decay"] for p in group["params"]} == wanted
    everything = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in groups if not group["weight_decay"] for p in group["params"]} == everything - wanted
    backbone = {id(p) for p in model.backbone.parameters()}
    assert {id(p) for group in groups if group["scale"] == 1.0 for p in group["params"]} == backbone


def test_adam__equals_the_formula() -> None:
    config = TrainConfig(lr=0.01, weight_decay=0.1)
    layer = nn.Linear(2, 1)
    weight, bias = layer.weight.detach().double().clone(), layer.bias.detach().double().clone()
    optimizer = build_optimizer(layer, config)
    set_learning_rate(optimizer, 0.02)
    moments = [[torch.zeros_like(weight), torch.zeros_like(weight)], [torch.zeros_like(bias), torch.zeros_like(bias)]]
    for step in range(1, 4):
        layer.weight.grad = torch.tensor([[0.3, -0.2]]) * step
        layer.bias.grad = torch.tensor([0.1]) * step
        for value, grad, decay, (first, second) in (
            (weight, layer.weight.grad, 0.1, moments[0]),
            (bias, layer.bias.grad, 0.0, moments[1]),
        ):
            total = grad.double() + decay * value
            first.mul_(0.9).add_(0.1 * total)
            second.mul_(0.999).add_(0.001 * total**2)
            value -= 0.02 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.bias.detach().double(), bias, rtol=1e-5, atol=1e-6)


def test_ema__follows_its_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = ModelEma(model, decay=0.5)
    expected = copy.deepcopy(model.state_dict())
    for step in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 3))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            moving = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if moving else value.clone()
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
