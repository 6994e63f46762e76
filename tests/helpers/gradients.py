"""A small network, a batch of noise, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.model.mask_targets import MaskTargets
from pipeline.model.network import build_model
from tests.helpers.training import HEIGHT, WIDTH, small_model

CLASSES, BATCH = 5, 8


def make_model(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(small_model(**changes), CLASSES).train()


def make_batch(*, masks: bool = True, has_mask: bool = True) -> tuple[Tensor, Tensor, MaskTargets]:
    """Images, classes and masks."""
    torch.manual_seed(1)
    return (
        torch.randn(BATCH, 3, HEIGHT, WIDTH).to(memory_format=torch.channels_last),
        torch.arange(4).repeat_interleave(2),
        MaskTargets(
            parts=torch.rand(BATCH, 4, HEIGHT // 16, WIDTH // 16) * masks,
            body=torch.rand(BATCH, 1, HEIGHT // 4, WIDTH // 4) * masks,
            has_mask=torch.full((BATCH,), has_mask),
            supervised_parts=torch.ones(4, dtype=torch.bool),
        ),
    )


def freeze_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-3) -> None:
    """Up to the order of summation, which weighs where a gradient is a sum that nearly cancels."""
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in got.items():
        expected = wanted.get(name, torch.zeros_like(gradient))
        assert (gradient - expected).norm() <= tolerance * expected.norm() + 1e-6 * largest, name
