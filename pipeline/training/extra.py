"""Images beside each batch: occluded copies of training images, or rendered images that teach masks.

A network that never sees an occluder predicts legs behind every obstacle, and its features contain the obstacle. One
that sees them in its batches learns whole people worse. Images beside the batch, with batch statistics of their own,
leave the batch and the running statistics as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.runtime.seeds import rng
from pipeline.training.context import ExtraImages, TrainContext
from pipeline.training.plan import params_of_step
from pipeline.training.prefetch import to_device
from pipeline.training.sampler import Rows, shard
from pipeline.training.step import Batch

_OCCLUDED, _TRUNCATED = 0.7, 0.3
"""Shares of the copies."""


def occluded_copies(context: TrainContext) -> ExtraImages | None:
    """Return the training images as `train.occluded_copies`, augmented as configured but occluded or truncated."""
    config = context.config
    if not config.occluded_copies:
        return None
    hiding = {"occlude": _OCCLUDED, "truncate": _TRUNCATED, "augment_ramp": 0.0, "erase": 0.0}
    return ExtraImages(
        "occluded_copies",
        config.occluded_copies,
        config.model_copy(update=hiding),
        context.images,
        context.masks,
        context.labels,
    )


def extra_batches(context: TrainContext, start: int, stop: int) -> Iterator[Batch | None]:
    """Yield the extra images of steps `start` to `stop` (exclusive), which depend on the seed and the step alone.

    They are None where the training has none.
    """
    extra, device = context.extra, context.device
    if extra is None:
        yield from (None for _ in range(start, stop))
        return
    usable = extra.masks.has_mask if extra.labels is None else torch.ones_like(extra.masks.has_mask)
    rows_of = usable.nonzero()[:, 0].cpu().numpy()
    plans = (_plan(context, extra, step, rows_of) for step in range(start, stop))
    for (rows, params), images in extra.images.batches(plans, lambda plan: plan[0]):
        yield Batch(images, to_device(rows, device), to_device(params.numpy(), device))


def _plan(context: TrainContext, extra: ExtraImages, step: int, usable: Rows) -> tuple[Rows, Tensor]:
    """Draw rows and packed augmentation for all processes, and take this one's share."""
    ranks = context.ranks
    # As many for each process.
    total = max(round(extra.share * context.batch_size / ranks.world_size), 1) * ranks.world_size
    rows = rng(context.config.seed, extra.name, step).choice(usable, total, replace=len(usable) < total)
    params = params_of_step(context, extra.config, f"augment {extra.name}", step, total)
    # Occluders are objects: an image to cut a person out of may be in another process.
    params = replace(params, donor=torch.full_like(params.donor, -1))
    mine = shard(total, rank=ranks.rank, processes=ranks.world_size)
    return rows[mine], params.take(mine).packed()
