"""The plan of each training step, which depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.config import TrainConfig
from pipeline.runtime.seeds import derive, generator
from pipeline.training.augment import AugmentParams, draw_params, padding_probability
from pipeline.training.context import TrainContext
from pipeline.training.occluders import occluder_tiles
from pipeline.training.sampler import Rows, epoch_batches, shard
from pipeline.training.schedule import augmentation_share


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step in one process.

    Attributes:
        step: Counted from 0 over the run.
        epoch: Counted from 0.
        batch: (P * K,) rows of the batch of all processes.
        rows: Rows of this process's images; with several processes, followed by those of the identities that are
            pasted into them.
        params: Augmentation of this process's images, on the CPU.
        seed: Seed of the global random generators in this step and process.
    """

    step: int
    epoch: int
    batch: Rows
    rows: Rows
    params: AugmentParams
    seed: int


def params_of_step(context: TrainContext, config: TrainConfig, stream: str, step: int, count: int) -> AugmentParams:
    """Draw the augmentation of `count` images in a step by `config`; streams of random numbers are independent."""
    share = augmentation_share(step, context.steps_per_epoch, config)
    numbers, tiles = generator(context.config.seed, stream, step), len(occluder_tiles())
    padded = padding_probability(context.model)
    return draw_params(numbers, count, *context.size, config, tiles=tiles, share=share, padded=padded)


def plan_steps(context: TrainContext, start: int, stop: int) -> Iterator[StepPlan]:
    """Yield the plans of steps `start` to `stop` (exclusive).

    All processes draw for the whole batch and take their share, so that batches do not depend on their number.
    """
    config, ranks, labels = context.config, context.ranks, context.labels.tolist()
    mine = shard(context.batch_size, rank=ranks.rank, processes=ranks.world_size)
    batches: Rows | None = None
    for step in range(start, stop):
        epoch, number = divmod(step, context.steps_per_epoch)
        if batches is None or number == 0:
            batches = epoch_batches(labels, config, epoch)
        batch = batches[number]
        params = params_of_step(context, config, "augment", step, len(batch))
        rows = batch
        if ranks.world_size > 1:
            donors = params.donor[mine].numpy()
            params = params.take(mine)
            rows = np.concatenate([batch[mine], batch[donors]]) if "occlude" in params.used else batch[mine]
        yield StepPlan(step, epoch, batch, rows, params, derive(config.seed, "step", step, ranks.rank))
