"""The gradient of a batch: equal to plain autograd, in one piece or several, and finite for any masks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.config import LossConfig
from pipeline.model.losses import total_loss
from pipeline.training.gradient import backward
from tests.helpers.gradients import BATCH, assert_same_gradients, freeze_norms, gradients, make_batch, make_model


@pytest.mark.parametrize("preset", [{}, {"necks": True, "global_dim": 8}, {"kind": "baseline"}])
def test_backward__equals_plain_autograd(preset: dict[str, object]) -> None:
    (images, labels, masks), loss = make_batch(), LossConfig(triplet_on="parts" if "necks" in preset else "semantic")
    model, plain = make_model(**preset), make_model(**preset)
    parts, output = backward(model, images, labels, masks, loss)
    direct = plain(images)
    expected = total_loss(direct, labels, masks, loss)
    expected.total.backward()
    torch.testing.assert_close(parts.total, expected.total)
    torch.testing.assert_close(output.global_feature, direct.global_feature.detach())
    got, wanted = gradients(model), gradients(plain)
    assert_same_gradients(got, wanted)
    assert wanted.keys() <= got.keys()


def test_backward__every_trained_parameter_has_a_gradient() -> None:
    model = make_model(necks=True, global_dim=8)
    backward(model, *make_batch(masks=False, has_mask=False), LossConfig())
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize("pieces", [2, 4])
def test_backward__pieces_mine_over_the_whole_batch(pieces: int) -> None:
    (images, labels, masks), loss = make_batch(), LossConfig()
    body, split = (freeze_norms(make_model(necks=True, global_dim=8)) for _ in range(2))
    one, _ = backward(body, images, labels, masks, loss)
    several, output = backward(split, images, labels, masks, loss, pieces=pieces)
    assert output.global_feature.shape[0] == BATCH
    torch.testing.assert_close(one.total, several.total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.triplet, several.triplet, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(split), gradients(body))


def test_backward__pieces_count_running_statistics_once() -> None:
    model, reference = make_model(), make_model()
    images, labels, masks = make_batch()
    backward(model, images, labels, masks, LossConfig(), pieces=2)
    with torch.no_grad():
        for piece in images.chunk(2):
            reference(piece)
    stored = dict(reference.named_buffers())
    for name, value in model.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, stored[name])
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("has_mask", [True, False])
def test_backward__empty_masks_give_finite_gradients(has_mask: bool) -> None:
    model = make_model(necks=True, global_dim=8)
    parts, _ = backward(model, *make_batch(masks=False, has_mask=has_mask), LossConfig(triplet_on="parts"))
    assert torch.isfinite(parts.stacked()).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    if not has_mask:
        assert parts.masks == 0


def test_backward__scale_applies_to_gradients_only() -> None:
    model = freeze_norms(make_model())
    scaled = copy.deepcopy(model)
    (images, labels, masks), loss = make_batch(), LossConfig()
    one, _ = backward(model, images, labels, masks, loss)
    other, _ = backward(scaled, images, labels, masks, loss, scale=lambda value: value * 64)
    assert one.total == other.total
    assert_same_gradients({name: value / 64 for name, value in gradients(scaled).items()}, gradients(model))
