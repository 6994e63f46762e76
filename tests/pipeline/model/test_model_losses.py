"""Every loss against a slow, literal version of its equation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config import LossConfig, ModelConfig
from pipeline.model import losses
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.network import build_model
from pipeline.model.output import NetworkOutput

seeds = st.integers(0, 2**31)


def targets_of(parts: Tensor, body: Tensor, has_mask: Tensor, supervised: Tensor | None = None) -> MaskTargets:
    return MaskTargets(parts, body, has_mask, torch.ones(4, dtype=torch.bool) if supervised is None else supervised)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds, st.floats(0.0, 0.5))
def test_label_smoothing_is_equation_10(seed: int, epsilon: float) -> None:
    batch, features, classes = 4, 3, 5
    logits = draw(seed, batch, features, classes)
    pids = torch.randint(0, classes, (batch,), generator=torch.Generator().manual_seed(seed))
    chosen = draw(seed + 1, batch, features) > 0
    terms = []
    for i in range(batch):
        for f in range(features):
            if not chosen[i, f]:
                continue
            p = [math.exp(v) for v in logits[i, f].tolist()]
            p = [v / sum(p) for v in p]
            t = int(pids[i])
            value = -(1 - epsilon + epsilon / classes) * math.log(p[t])
            value -= epsilon / classes * sum(math.log(p[k]) for k in range(classes) if k != t)
            terms.append(value)
    expected = sum(terms) / len(terms) if terms else 0.0
    found = losses.smoothed_cross_entropy(logits, pids, chosen, epsilon)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def literal_triplet(distances: Tensor, same: Tensor, valid: Tensor, margin: float) -> float:
    values = []
    for i in range(distances.shape[0]):
        positives = [distances[i, j].item() for j in range(distances.shape[1]) if same[i, j] and valid[i, j]]
        negatives = [distances[i, j].item() for j in range(distances.shape[1]) if not same[i, j] and valid[i, j]]
        if positives and negatives:
            values.append(max(0.0, max(positives) - min(negatives) + margin))
    return sum(values) / len(values) if values else 0.0


@given(seeds, st.floats(0.0, 1.0))
def test_batch_hard_triplet_equals_brute_force(seed: int, share_valid: float) -> None:
    pids = torch.randint(0, 3, (8,), generator=torch.Generator().manual_seed(seed))
    distances = losses.euclidean(draw(seed, 8, 4), draw(seed, 8, 4))
    same = pids[:, None] == pids[None]
    valid = torch.rand(8, 8, generator=torch.Generator().manual_seed(seed + 1)) < share_valid
    found = losses.batch_hard_triplet(distances, same, valid, 0.3)
    assert found.item() == pytest.approx(literal_triplet(distances, same, valid, 0.3), abs=1e-9)


@given(seeds)
def test_shared_part_distance_is_the_mean_over_parts_that_both_show(seed: int) -> None:
    a, b = draw(seed, 4, 3, 2), draw(seed + 1, 5, 3, 2)
    va, vb = draw(seed + 2, 4, 3) > 0, draw(seed + 3, 5, 3) > 0
    distance, shared = losses.shared_part_distance(a, b, va, vb)
    for i in range(4):
        for j in range(5):
            each = [math.dist(a[i, p].tolist(), b[j, p].tolist()) for p in range(3) if va[i, p] and vb[j, p]]
            assert bool(shared[i, j]) == bool(each)
            if each:
                assert distance[i, j].item() == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_mask_loss_is_the_sum_of_five_mean_cross_entropies() -> None:
    body_mask_logits, part_logits = draw(1, 3, 1, 64, 32), draw(2, 3, 4, 16, 8)
    body, parts = torch.sigmoid(draw(3, 3, 1, 64, 32)), torch.sigmoid(draw(4, 3, 4, 16, 8))
    has = torch.tensor([True, False, True])

    def bce(logits: Tensor, target: Tensor) -> float:
        p = torch.sigmoid(logits)
        return float(-(target * p.log() + (1 - target) * (1 - p).log()).mean())

    expected = sum(
        bce(body_mask_logits[i], body[i]) + sum(bce(part_logits[i, k], parts[i, k]) for k in range(4)) for i in (0, 2)
    )
    found = losses.mask_loss(body_mask_logits, part_logits, targets_of(parts, body, has))
    assert found.item() == pytest.approx(expected / 2, rel=1e-5)


def test_mask_loss__leaves_out_unsupervised_parts() -> None:
    part_logits = draw(2, 3, 4, 16, 8).requires_grad_()
    parts = torch.sigmoid(draw(4, 3, 4, 16, 8))
    parts[:, 3] = 0
    has, supervised = torch.tensor([True, False, True]), torch.tensor([True, True, True, False])
    body = torch.zeros(3, 1, 64, 32)
    found = losses.mask_loss(None, part_logits, targets_of(parts, body, has, supervised))
    others = part_logits.detach().clone()
    others[:, 3] = 0
    every = losses.mask_loss(None, others, targets_of(parts, body, has))
    # The fourth mask is empty and its logits are 0: one term of log 2.
    torch.testing.assert_close(found, every - math.log(2))
    found.backward()
    assert (part_logits.grad[:, 3] == 0).all()
    assert (part_logits.grad[has, 0] != 0).all()
    # Neither an image's mask nor the want of one shows it.
    assert (
        losses.shown_parts(targets_of(torch.ones(3, 4, 16, 8), body, has, supervised)).tolist()
        == [[True, True, True, False]] * 3
    )


def run(model: ModelConfig, loss: LossConfig, *, has_mask: bool = True, empty: bool = False) -> losses.LossParts:
    torch.manual_seed(0)
    network = build_model(model, 4).train()
    pids = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    body = torch.zeros(8, 1, 64, 32) if empty else torch.rand(8, 1, 64, 32)
    parts = torch.zeros(8, 4, 16, 8) if empty else torch.rand(8, 4, 16, 8)
    output = network(torch.randn(8, 3, 64, 32))
    return losses.total_loss(output, pids, targets_of(parts, body, torch.full((8,), has_mask)), loss)


SMALL = {"backbone": "mobilenet_v2", "height": 64, "width": 32, "part_dim": 16}


@pytest.mark.parametrize("triplet_on", ["semantic", "spatial", "all", "parts"])
@pytest.mark.parametrize(("has_mask", "empty"), [(True, False), (True, True), (False, True)])
def test_the_total_is_equation_11_and_always_finite(triplet_on: str, has_mask: bool, empty: bool) -> None:
    config = LossConfig.model_validate({"triplet_on": triplet_on, "balance": 0.7, "mask_weight": 0.5})
    parts = run(
        ModelConfig.model_validate({**SMALL, "global_dim": 8, "necks": True}), config, has_mask=has_mask, empty=empty
    )
    expected = 0.7 * (parts.triplet + 0.5 * parts.masks) + 0.3 * parts.identity + parts.global_feature
    torch.testing.assert_close(parts.total, expected)
    assert torch.isfinite(parts.stacked()).all()
    if not has_mask:
        assert parts.masks.item() == 0.0
    parts.total.backward()


def test_the_baseline_trains_its_one_feature_only() -> None:
    parts = run(ModelConfig.model_validate({**SMALL, "kind": "baseline"}), LossConfig())
    assert parts.total.item() == parts.global_feature.item() > 0
    assert parts.masks.item() == parts.identity.item() == parts.triplet.item() == 0


def test_no_chosen_feature_gives_zero_not_nan() -> None:
    logits = torch.randn(2, 5, 3, requires_grad=True)
    loss = losses.smoothed_cross_entropy(logits, torch.tensor([0, 1]), torch.zeros(2, 5, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_equal_rows_have_a_finite_gradient() -> None:
    rows = torch.ones(3, 4, requires_grad=True)
    losses.euclidean(rows, rows).sum().backward()
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_static_features_all_train_where_dynamic_ones_are_chosen(seed: int) -> None:
    torch.manual_seed(seed)
    network = build_model(ModelConfig.model_validate(SMALL), 3).train()
    output: NetworkOutput = network(torch.randn(4, 3, 64, 32))
    pids = torch.tensor([0, 0, 1, 1])
    targets = targets_of(torch.zeros(4, 4, 16, 8), torch.zeros(4, 1, 64, 32), torch.ones(4, dtype=torch.bool))
    static = losses.total_loss(output, pids, targets, LossConfig(dynamic=False))
    assert output.logits is not None
    assert output.logits.spatial is not None
    everything = torch.ones(4, 5, dtype=torch.bool)
    expected = losses.smoothed_cross_entropy(output.logits.spatial, pids, everything, 0.1)
    torch.testing.assert_close(static.identity, expected)
