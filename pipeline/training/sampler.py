"""P x K batches: P identities with K images each, the same for the same seed and epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, DataError
from pipeline.runtime.seeds import rng

Rows = npt.NDArray[np.int64]


class ShuffledCycle:
    """Draws items in random order without replacement; shuffles all of them again when none is left.

    One draw repeats no item as long as there are others, so that all items are drawn equally often.
    """

    def __init__(self, items: Sequence[int], stream: np.random.Generator) -> None:
        self._items = np.asarray(items, dtype=np.int64)
        self._stream = stream
        self._left: list[int] = []

    def draw(self, count: int) -> list[int]:
        """Return the next `count` items; repeated only where `count` exceeds the number of items."""
        drawn: list[int] = []
        taken: set[int] = set()
        while len(drawn) < count:
            if len(taken) == len(self._items):
                taken.clear()
            place = next((i for i, item in enumerate(self._left) if item not in taken), None)
            if place is None:
                self._left.extend(self._stream.permutation(self._items).tolist())
                continue
            item = self._left.pop(place)
            drawn.append(item)
            taken.add(item)
        return drawn


def check_batches(labels: Sequence[int], config: TrainConfig, *, processes: int = 1) -> None:
    """Check that P x K batches can be drawn and split.

    Raises:
        DataError: There are fewer identities than a batch needs.
        ConfigError: The identities of a batch cannot be split equally among `processes`, with two at least for each,
            or the images of a process into `train.accumulate` equal pieces.
    """
    identities = len(set(labels))
    if identities < config.identities:
        raise DataError(
            f"the training split has {identities} identities, a batch needs {config.identities}",
            hint=f"set train.identities={identities}" if identities >= 2 else "training needs at least two identities",
        )
    share, rest = divmod(config.identities, processes)
    if rest or share < 2:
        raise ConfigError(
            f"{config.identities} identities per batch cannot be split among {processes} processes",
            where="train.identities",
            expected=f"a multiple of {processes}, at least {2 * processes}",
        )
    if share * config.instances % config.accumulate:
        raise ConfigError(
            f"{share * config.instances} images per process cannot be split into {config.accumulate} equal pieces",
            where="train.accumulate",
        )


def steps_per_epoch(labels: Sequence[int], config: TrainConfig) -> int:
    """Return the number of batches per epoch: enough to draw each identity once, or as many as the images fill."""
    if config.epoch_length == "identities":
        return -(-len(set(labels)) // config.identities)
    return max(1, len(labels) // (config.identities * config.instances))


def epoch_batches(labels: Sequence[int], config: TrainConfig, epoch: int) -> Rows:
    """Return all batches of an epoch, (steps, P * K) rows, which depend on the seed and the epoch alone.

    Identities are drawn from a shuffled cycle, and so are the images of each; identities with fewer than K images
    repeat some. The K images of an identity are consecutive.
    """
    stream = rng(config.seed, "batches", epoch)
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    identities = ShuffledCycle(sorted(rows_of), stream)
    images = {label: ShuffledCycle(rows, stream) for label, rows in rows_of.items()}
    batches = [
        [row for label in identities.draw(config.identities) for row in images[label].draw(config.instances)]
        for _ in range(steps_per_epoch(labels, config))
    ]
    return np.array(batches, dtype=np.int64)


def shard(size: int, *, rank: int, processes: int) -> slice:
    """Return the places in a batch of `size` images that process `rank` takes; of a P x K batch, whole identities."""
    return slice(size * rank // processes, size * (rank + 1) // processes)
