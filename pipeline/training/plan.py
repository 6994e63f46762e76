"""What each step of a run does, decided by the seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import TrainConfig
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.seeds import derive, generator
from pipeline.training.augment import Draws, draw
from pipeline.training.sampler import epoch_batches, shard, steps_per_epoch

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step of one process.

    Attributes:
        step: Counted from 0 over the run.
        epoch: Counted from 0.
        batch: (P * K,) rows of the batch of all processes.
        rows: (B,) rows of this process, followed by the donors that its pasted patches come from, where they are not
            among them.
        count: B.
        draws: For this process's images, on the CPU.
        seed: Of the global generators in this step and process.
    """

    step: int
    epoch: int
    batch: Rows
    rows: Rows
    count: int
    draws: Draws
    seed: int


def plan_steps(
    labels: Sequence[int], config: TrainConfig, size: tuple[int, int], *, start: int, stop: int, place: RankInfo
) -> Iterator[StepPlan]:
    """The plans of steps `start` to `stop` (exclusive).

    Args:
        labels: Class of each row of the store.
        config: Batches and augmentation.
        size: Height and width of the images.
        start: First step; a resumed run starts anywhere.
        stop: Where to end.
        place: Which process this is. All processes draw for the whole batch and take their own share, so that their
            number changes nothing.
    """
    per_epoch = steps_per_epoch(labels, config)
    mine = shard(config.identities * config.instances, rank=place.rank, processes=place.world_size)
    count = mine.stop - mine.start
    batches: Rows | None = None
    for step in range(start, stop):
        epoch, number = divmod(step, per_epoch)
        if batches is None or number == 0:
            batches = epoch_batches(labels, config, epoch)
        batch = batches[number]
        draws = draw(generator(config.seed, "augment", step), len(batch), *size, config)
        rows = batch
        if place.world_size > 1:
            donors = draws.donor[mine].numpy()
            draws = draws.take(mine, torch.arange(count) + count)
            rows = np.concatenate([batch[mine], batch[donors]]) if "occlude" in draws.used else batch[mine]
        yield StepPlan(step, epoch, batch, rows, count, draws, derive(config.seed, "step", step, place.rank))
