"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from pipeline.config import TrainConfig


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Return the learning rate of a step.

    Warm-up rises linearly from `warmup_factor` to 1 over `warmup_epochs`. Then `step` multiplies by `gamma` at each
    milestone, counted in epochs from the start of training; `cosine` falls from 1 at the end of the warm-up to
    `final_factor` at the last step. Warm-up and milestones are stated for a training of `schedule_epochs` and shrink or
    grow with `epochs`, so that a short run anneals like a long one.

    Args:
        step: Counted from 0.
        steps_per_epoch: At least 1.
        config: The schedule.
    """
    return config.lr * _warmup(step, steps_per_epoch, config) * _after(step, steps_per_epoch, config)


def augmentation_share(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Return the factor of the probabilities of occlusion and truncation in a step, which rises over `augment_ramp`."""
    ramp = config.augment_ramp * config.epochs * steps_per_epoch
    return min(1.0, step / ramp) if ramp else 1.0


def _warmup(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    steps = config.warmup_epochs * _scale(config) * steps_per_epoch
    if step >= steps:
        return 1.0
    return config.warmup_factor + (1.0 - config.warmup_factor) * step / steps


def _after(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    if config.schedule == "step":
        return config.gamma ** sum(
            step >= milestone * _scale(config) * steps_per_epoch for milestone in config.milestones
        )
    start = config.warmup_epochs * _scale(config) * steps_per_epoch
    last = config.epochs * steps_per_epoch - 1
    if step <= start:
        return 1.0
    share = min(1.0, (step - start) / (last - start))
    return config.final_factor + (1.0 - config.final_factor) * 0.5 * (1.0 + math.cos(math.pi * share))


def _scale(config: TrainConfig) -> float:
    return config.epochs / config.schedule_epochs if config.schedule_epochs else 1.0
