"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ModelEma:
    """The averaged copy of a network: a_t = d a_(t-1) + (1 - d) w_t, for weights and running statistics alike.

    The decay d rises with the step as min(decay, (1 + t) / (10 + t)), so that a short run forgets its random initial
    weights. `torch.optim.swa_utils.AveragedModel` would make the host wait for the GPU in every step.

    Args:
        network: The network to follow; the copy is in evaluation mode and has no gradients.
        decay: The final d, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        averaged, followed = self.network.state_dict(keep_vars=True), network.state_dict(keep_vars=True)
        floating = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        counters = averaged.keys() - floating
        # The state dict keeps no gradient history; it is looked up once, because that takes as long as the update.
        self._averaged = [averaged[name].detach() for name in floating]
        self._followed = [followed[name].detach() for name in floating]
        self._counters: list[tuple[Tensor, Tensor]] = [(averaged[name], followed[name]) for name in sorted(counters)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._followed, 1.0 - decay)
        if self._counters:
            averaged, followed = zip(*self._counters, strict=True)
            torch._foreach_copy_(averaged, followed)
