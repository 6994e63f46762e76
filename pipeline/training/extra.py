"""Extra images of each step: occluded copies of training images, or rendered images that supervise the masks only.

A network trained without occlusion predicts legs behind every obstacle, and its features contain the obstacle.
Occluding images of the batch itself lowers the accuracy on unoccluded people. Extra images pass through the network
separately, with batch statistics of their own, so that the losses of the batch and the running statistics do not
change.
"""

from __future__ import annotations

import itertools
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
"""Probabilities, drawn independently: a fifth of the copies has both, a fifth neither."""


def occluded_copies(context: TrainContext) -> ExtraImages | None:
    """Return the training images as `train.occluded_copies`, or None where the configuration has none."""
    config = context.config
    if not config.occluded_copies:
        return None
    augmentation = {"occlude": _OCCLUDED, "truncate": _TRUNCATED, "augment_ramp": 0.0, "erase": 0.0}
    return ExtraImages(
        "occluded_copies",
        config.occluded_copies,
        config.model_copy(update=augmentation),
        context.images,
        context.masks,
        context.labels,
    )


def extra_batches(context: TrainContext, start: int, stop: int) -> Iterator[Batch | None]:
    """Yield the extra images of steps `start` to `stop` (exclusive), or None where the training has none.

    They depend on the seed, the step and, by rounding, on the number of processes.
    """
    extra, device = context.extra, context.device
    if extra is None:
        yield from itertools.repeat(None, stop - start)
        return
    # Without a mask nothing tells the classifiers which parts an occluder covers.
    masked = extra.masks.has_mask
    usable = (masked if bool(masked.any()) else torch.ones_like(masked)).nonzero()[:, 0].cpu().numpy()
    # Disabled: the image that a person is cut out of may belong to another process.
    extra = replace(extra, config=extra.config.model_copy(update={"occlude_people": 0.0}))
    plans = (_plan(context, extra, step, usable) for step in range(start, stop))
    for (rows, params), images in extra.images.batches(plans, lambda plan: plan[0]):
        yield Batch(images, to_device(rows, device), to_device(params.numpy(), device))


def _plan(context: TrainContext, extra: ExtraImages, step: int, usable: Rows) -> tuple[Rows, Tensor]:
    """Draw rows and packed augmentation for all processes, and take this one's share."""
    ranks = context.ranks
    # Equally many per process, and two at least: batch normalisation of a feature needs more than one.
    total = max(round(extra.share * context.batch_size / ranks.world_size), 2) * ranks.world_size
    rows = rng(context.config.seed, extra.name, step).choice(usable, total, replace=len(usable) < total)
    params = params_of_step(context, extra.config, f"augment {extra.name}", step, total)
    mine = shard(total, rank=ranks.rank, processes=ranks.world_size)
    return rows[mine], params.take(mine).packed()
