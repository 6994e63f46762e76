"""Adam, with weight decay on weights only."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config import TrainConfig


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Group parameters by weight decay and by the factor of their learning rate (`scale`).

    Parameters with fewer than two dimensions scale or shift channels and do not decay: that would shrink features
    without making the function simpler. `lr_heads` is the factor of all that is not the backbone.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if name.startswith("backbone.") else config.lr_heads
            groups.setdefault((config.weight_decay if parameter.ndim >= 2 else 0.0, scale), []).append(parameter)
    return [{"params": each, "weight_decay": decay, "scale": scale} for (decay, scale), each in groups.items()]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Return Adam on the groups of `parameter_groups`, fused into one kernel."""
    return torch.optim.Adam(parameter_groups(model, config), lr=config.lr, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group to `rate` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
