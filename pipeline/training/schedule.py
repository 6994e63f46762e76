"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from pipeline.config import TrainConfig


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Return the learning rate of a step, counted from 0.

    Warm-up rises linearly from `warmup_factor` to 1 over `warmup_epochs`. Then `step` multiplies by `gamma` at each
    milestone, counted in epochs from the start of training; `cosine` falls from 1 at the end of the warm-up to
    `final_factor` at the last step. Warm-up and milestones are stated for a training of `schedule_epochs` and shrink or
    grow with `epochs`, so that a short run anneals like a long one.
    """
    scale = config.epochs / config.schedule_epochs if config.schedule_epochs else 1.0
    start = config.warmup_epochs * scale * steps_per_epoch
    risen = config.lr
    if step < start:
        risen *= config.warmup_factor + (1.0 - config.warmup_factor) * step / start
    if config.schedule == "step":
        return risen * config.gamma ** sum(step >= each * scale * steps_per_epoch for each in config.milestones)
    if step <= start:
        return risen
    share = min(1.0, (step - start) / (config.epochs * steps_per_epoch - 1 - start))
    return risen * (config.final_factor + (1.0 - config.final_factor) * 0.5 * (1.0 + math.cos(math.pi * share)))


def augmentation_share(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Return the factor of the probabilities of occlusion and truncation in a step, which rises over `augment_ramp`."""
    ramp = config.augment_ramp * config.epochs * steps_per_epoch
    return min(1.0, step / ramp) if ramp else 1.0
