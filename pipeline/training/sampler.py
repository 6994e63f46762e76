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
    """Elements drawn in random order; the order is shuffled again at the end of each cycle.

    A draw contains no element twice while there are others, so over several draws all elements occur equally often.
    """

    def __init__(self, elements: Sequence[int], stream: np.random.Generator) -> None:
        self._elements = np.asarray(elements, dtype=np.int64)
        self._stream = stream
        self._order: list[int] = []

    def draw(self, count: int) -> list[int]:
        """Return the next `count` elements; repeats only if `count` exceeds their number."""
        drawn: list[int] = []
        held: set[int] = set()
        while len(drawn) < count:
            if len(held) == len(self._elements):
                held.clear()
            place = next((i for i, element in enumerate(self._order) if element not in held), None)
            if place is None:
                self._order.extend(self._stream.permutation(self._elements).tolist())
                continue
            element = self._order.pop(place)
            drawn.append(element)
            held.add(element)
        return drawn


def check_batches(labels: Sequence[int], config: TrainConfig, *, processes: int = 1) -> None:
    """See that P x K batches can be made.

    Raises:
        DataError: There are fewer identities than a batch needs.
        ConfigError: The identities of a batch cannot be shared equally among `processes`, two at least for each, or
            do not split into `train.accumulate` equal pieces.
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
            f"{config.identities} identities a batch cannot be shared among {processes} processes",
            where="train.identities",
            expected=f"a multiple of {processes}, at least {2 * processes}",
        )
    if share * config.instances % config.accumulate:
        raise ConfigError(
            f"{share * config.instances} images a process do not split into {config.accumulate} equal forwards",
            where="train.accumulate",
        )


def steps_per_epoch(labels: Sequence[int], config: TrainConfig) -> int:
    """Batches of an epoch: enough to draw each identity once, or as many as the images fill."""
    if config.epoch_length == "identities":
        return -(-len(set(labels)) // config.identities)
    return max(1, len(labels) // (config.identities * config.instances))


def epoch_batches(labels: Sequence[int], config: TrainConfig, epoch: int) -> Rows:
    """All batches of an epoch, decided by the seed and the epoch alone.

    Identities are dealt from a shuffled deck, and so are the images of each; identities with fewer than K images
    repeat some. A run that resumes in the middle of an epoch takes the batches from its step on.

    Args:
        labels: Identity of each row of the store.
        config: P, K, the length of an epoch and the seed.
        epoch: Counted from 0.

    Returns:
        (steps, P * K) row numbers; the K images of an identity stand next to each other.
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
    """The places of a batch of `size` images that process `rank` takes: whole identities, see `check_batches`."""
    share = size // processes
    return slice(rank * share, (rank + 1) * share)
