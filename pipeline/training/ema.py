"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """The averaged twin of a model: a_t = d a_(t-1) + (1 - d) w_t, for weights and running statistics alike.

    The decay d grows with the step as min(decay, (1 + t) / (10 + t)), so that a short run does not keep its first
    random weights.

    Args:
        model: The model to follow; the twin is a deep copy in evaluation mode without gradients.
        decay: The final d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._pairs = _pairs(self.model, model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, followed, counters, counted = self._pairs
        torch._foreach_lerp_(averaged, followed, 1.0 - decay)
        if counters:
            torch._foreach_copy_(counters, counted)


def _pairs(average: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """The twin's numbers and the model's, then the twin's counters and the model's."""
    mine, theirs = average.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    floating = [name for name, tensor in mine.items() if tensor.is_floating_point()]
    counters = [name for name, tensor in mine.items() if not tensor.is_floating_point()]
    return (
        [mine[name].detach() for name in floating],
        [theirs[name].detach() for name in floating],
        [mine[name] for name in counters],
        [theirs[name] for name in counters],
    )
