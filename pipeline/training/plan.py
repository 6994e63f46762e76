"""The plan of each training step, which depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import TrainConfig
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.seeds import derive, generator
from pipeline.training.augment import AugmentParams, draw_params
from pipeline.training.occluders import occluder_tiles
from pipeline.training.sampler import epoch_batches, shard, steps_per_epoch
from pipeline.training.schedule import augmentation_share

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step in one process.

    Attributes:
        step: Counted from 0 over the run.
        epoch: Counted from 0.
        batch: (P * K,) rows of the batch of all processes.
        rows: Rows of this process's B images; with several processes, followed by those of the identities that are
            pasted into them.
        count: B.
        params: Augmentation of this process's images, on the CPU.
        seed: Seed of the global random generators in this step and process.
    """

    step: int
    epoch: int
    batch: Rows
    rows: Rows
    count: int
    params: AugmentParams
    seed: int


def plan_steps(
    labels: Sequence[int], config: TrainConfig, size: tuple[int, int], *, start: int, stop: int, ranks: RankInfo
) -> Iterator[StepPlan]:
    """Yield the plans of steps `start` to `stop` (exclusive).

    Args:
        labels: Class of each row of the store.
        config: Batches and augmentation.
        size: Height and width of the images.
        start: First step.
        stop: Step to stop before.
        ranks: Which process this is. All draw for the whole batch and take their share, so that batches do not depend
            on the number of processes.
    """
    per_epoch = steps_per_epoch(labels, config)
    mine = shard(config.identities * config.instances, rank=ranks.rank, processes=ranks.world_size)
    count = mine.stop - mine.start
    tiles = len(occluder_tiles())
    batches: Rows | None = None
    for step in range(start, stop):
        epoch, number = divmod(step, per_epoch)
        if batches is None or number == 0:
            batches = epoch_batches(labels, config, epoch)
        batch = batches[number]
        stream, share = generator(config.seed, "augment", step), augmentation_share(step, per_epoch, config)
        params = draw_params(stream, len(batch), *size, config, tiles=tiles, share=share)
        rows = batch
        if ranks.world_size > 1:
            donors = params.donor[mine].numpy()
            params = params.take(mine)
            rows = np.concatenate([batch[mine], batch[donors]]) if "occlude" in params.used else batch[mine]
        yield StepPlan(step, epoch, batch, rows, count, params, derive(config.seed, "step", step, ranks.rank))
