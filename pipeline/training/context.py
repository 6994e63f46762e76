"""What a training works with, besides its network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import LossConfig, ModelConfig, TrainConfig
from pipeline.formats.provenance import Provenance
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import Progress
from pipeline.training.prefetch import Prefetcher
from pipeline.training.sampler import steps_per_epoch
from pipeline.training.targets import MaskTargets


@dataclass(frozen=True)
class TrainContext:
    """Data, configuration and surroundings of a training.

    Attributes:
        model: Configuration of the network.
        loss: Configuration of the losses.
        config: Configuration of the training.
        names: Name of each training image; rows everywhere are in this order.
        labels: (N,) int64 class of each image, on the device.
        masks: Masks of the images, on the device.
        images: The images.
        device: Where the network is.
        ranks: Which process this is.
        folder: Where the state is saved.
        provenance: What decides the result; only a state with an equal record is resumed.
        progress: Receives progress bars.
    """

    model: ModelConfig
    loss: LossConfig
    config: TrainConfig
    names: Sequence[str]
    labels: Tensor
    masks: MaskTargets
    images: Prefetcher
    device: torch.device
    ranks: RankInfo
    folder: Path
    provenance: Provenance
    progress: Progress

    @property
    def batch_size(self) -> int:
        """Images per step, over all processes."""
        return self.config.identities * self.config.instances

    @property
    def images_per_pass(self) -> int:
        """Images per forward pass in this process."""
        return self.batch_size // self.ranks.world_size // self.config.accumulate

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.model.height, self.model.width

    @property
    def num_classes(self) -> int:
        """Number of training identities."""
        return int(self.labels.max()) + 1

    def steps_per_epoch(self) -> int:
        """Return the number of batches of an epoch."""
        return steps_per_epoch(self.labels.tolist(), self.config)
