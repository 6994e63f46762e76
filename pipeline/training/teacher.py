"""Occluded people beside each batch, for the mask losses only (`train.mask_teacher`).

The identity losses are worse for occluded images, which a short training cannot tell apart, but without any the masks
show legs behind every obstacle. Here the mask head sees occluded and truncated copies of the training images, whose
masks follow from those of the originals, or rendered images with true masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.runtime.seeds import rng
from pipeline.training.context import Teacher, TrainContext
from pipeline.training.plan import params_of_step
from pipeline.training.prefetch import to_device
from pipeline.training.sampler import Rows, shard
from pipeline.training.step import Batch


def occluding(config: TrainConfig) -> TrainConfig:
    """Return the augmentation of training images that teach masks: occluded, truncated, otherwise as configured."""
    return config.model_copy(update={"occlude": 0.7, "truncate": 0.3, "augment_ramp": 0.0, "erase": 0.0})


def lessons(context: TrainContext, start: int, stop: int) -> Iterator[Batch | None]:
    """Yield the lessons of steps `start` to `stop` (exclusive), which depend on the seed and the step alone.

    Without a teacher they are None.
    """
    teacher, device = context.teacher, context.device
    if teacher is None:
        yield from (None for _ in range(start, stop))
        return
    usable = teacher.masks.has_mask.nonzero()[:, 0].cpu().numpy()
    plans = (_plan(context, teacher, step, usable) for step in range(start, stop))
    for (rows, params), images in teacher.images.batches(plans, lambda plan: plan[0]):
        yield Batch(images, to_device(rows, device), to_device(params.numpy(), device))


def _plan(context: TrainContext, teacher: Teacher, step: int, usable: Rows) -> tuple[Rows, Tensor]:
    """Draw rows and packed augmentation for all processes, and take this one's share."""
    config, ranks = context.config, context.ranks
    # At least one for each process.
    total = max(round(config.mask_teacher * context.batch_size), ranks.world_size)
    rows = rng(config.seed, "mask teacher", step).choice(usable, total, replace=len(usable) < total)
    params = params_of_step(context, teacher.config, "augment mask teacher", step, total)
    # Occluders are objects: an image to cut a person out of may be in another process.
    params = replace(params, donor=torch.full_like(params.donor, -1))
    mine = shard(total, rank=ranks.rank, processes=ranks.world_size)
    return rows[mine], params.take(mine).packed()
