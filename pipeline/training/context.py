"""What a training works with, besides its network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import LossConfig, ModelConfig, TrainConfig
from pipeline.datasets.records import Dataset
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.model.mask_targets import MaskTargets
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import Progress
from pipeline.training.image_store import ImageStore
from pipeline.training.prefetch import Prefetcher
from pipeline.training.sampler import steps_per_epoch


@dataclass(frozen=True, slots=True)
class TeacherData:
    """A data set with true masks.

    Attributes:
        dataset: Its split `train` teaches.
        build_masks: Writes the mask file of these images to a path; called in the main process.
    """

    dataset: Dataset
    build_masks: Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class ExtraImages:
    """Images added to each step, which pass through the network separately.

    Attributes:
        name: Name of their loss in logs.
        share: Their number, as a share of the batch's.
        config: Augmentation settings.
        images: Fetches batches of them.
        masks: Their masks, on the device.
        labels: (N,) int64 class of each, on the device; None: mask losses only.
    """

    name: str
    share: float
    config: TrainConfig
    images: Prefetcher
    masks: MaskTargets
    labels: Tensor | None = None


@dataclass(frozen=True)
class TrainContext:
    """Data, configuration and surroundings of a training.

    Attributes:
        meta: Header of the checkpoint to come, still without thresholds; only a state with an equal provenance is
            resumed.
        loss: Configuration of the losses.
        config: Configuration of the training.
        store: The decoded images; rows everywhere are in their order.
        images: Fetches batches of them.
        labels: (N,) int64 class of each image, on the device.
        masks: Masks of the images, on the device.
        device: Device of the network.
        ranks: Which process this is.
        folder: Folder of the state.
        progress: Shows progress bars.
        extra: Images added to each step, if the training has them.
    """

    meta: CheckpointMeta
    loss: LossConfig
    config: TrainConfig
    store: ImageStore
    images: Prefetcher
    labels: Tensor
    masks: MaskTargets
    device: torch.device
    ranks: RankInfo
    folder: Path
    progress: Progress
    extra: ExtraImages | None = None

    @property
    def model(self) -> ModelConfig:
        """Configuration of the network."""
        return self.meta.model

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.model.height, self.model.width

    @property
    def batch_size(self) -> int:
        """Images per step, over all processes."""
        return self.config.identities * self.config.instances

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        # Cached, because it reads the labels back from the device.
        return steps_per_epoch(self.labels.tolist(), self.config)
