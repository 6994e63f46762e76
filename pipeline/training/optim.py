"""Adam, with weight decay where it belongs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.config import TrainConfig


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups: weights of linear maps and convolutions decay; normalisation, scales and biases do not.

    Told apart by shape: what has fewer than two dimensions scales or shifts channels, and pulling it to zero pulls
    features to zero without making the function any simpler.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = (
        ([p for _, p in named if p.ndim >= 2], weight_decay),
        ([p for _, p in named if p.ndim < 2], 0.0),
    )
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Adam on the groups of `decay_groups`, in its fused form (one kernel for all parameters)."""
    return torch.optim.Adam(decay_groups(model, config.weight_decay), lr=config.lr, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all groups the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """All parameters that the optimiser changes, in its order."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
