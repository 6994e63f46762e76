"""Rendered images with true masks beside each batch, for the mask losses only (`train.mask_teacher`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.runtime.seeds import generator, rng
from pipeline.training.augment import draw_params
from pipeline.training.context import TrainContext
from pipeline.training.occluders import occluder_tiles
from pipeline.training.prefetch import Rows, to_device
from pipeline.training.schedule import augmentation_share


@dataclass(frozen=True, slots=True)
class Lesson:
    """Rendered images of one step in one process, on the device.

    Attributes:
        images: (T, H, W, 3) uint8.
        rows: (T,) int64, their rows in the teacher's masks.
        params: Their augmentation, packed.
    """

    images: Tensor
    rows: Tensor
    params: Tensor


def lesson_size(context: TrainContext) -> int:
    """Return the images per step over all processes, at least one for each."""
    return max(round(context.config.mask_teacher * context.batch_size), context.ranks.world_size)


def lessons(context: TrainContext, start: int, stop: int) -> Iterator[Lesson | None]:
    """Yield the lessons of steps `start` to `stop` (exclusive), which depend on the seed and the step alone.

    Without a teacher they are None.
    """
    teacher, ranks, device = context.teacher, context.ranks, context.device
    if teacher is None:
        yield from (None for _ in range(start, stop))
        return
    usable = teacher.masks.has_mask.nonzero()[:, 0].cpu().numpy()
    total = lesson_size(context)
    mine = slice(total * ranks.rank // ranks.world_size, total * (ranks.rank + 1) // ranks.world_size)
    # Once, because it reads the labels back from the device.
    per_epoch = context.steps_per_epoch
    plans = (
        _plan(context, step, usable, mine, augmentation_share(step, per_epoch, context.config))
        for step in range(start, stop)
    )
    for (rows, params), images in teacher.images.batches(plans, lambda plan: plan[0]):
        yield Lesson(images, to_device(rows, device), to_device(params.numpy(), device))


def _plan(context: TrainContext, step: int, usable: Rows, mine: slice, share: float) -> tuple[Rows, Tensor]:
    """Draw rows and packed augmentation for all processes, and take this one's share."""
    config, total = context.config, lesson_size(context)
    rows = rng(config.seed, "mask teacher", step).choice(usable, total, replace=len(usable) < total)
    params = draw_params(
        generator(config.seed, "augment mask teacher", step),
        total,
        *context.size,
        config,
        tiles=len(occluder_tiles()),
        share=share,
    )
    # Occluders are objects: an image to cut a person out of may be in another process.
    params = replace(params, donor=torch.full_like(params.donor, -1))
    return rows[mine], params.take(mine).packed()
