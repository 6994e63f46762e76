"""A checkpoint, ready to look at images in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.config import ExtractConfig
from pipeline.datasets.images import decode_batches
from pipeline.errors import DeviceError, Rejected, WeightsError
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.embed import embed
from pipeline.parts import NUM_PARTS
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import memory_watched, no_room
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.process_group import RankInfo

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

BATCH_SIZE = "extract.batch_size"
"""Where the size of a batch is set, as errors name it."""


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Features of those images of a batch that could be read.

    Attributes:
        index: (B,) position of each image in the list of paths.
        parts: (B, 7, D).
        global_feature: (B, W).
        visibility: (B, 7).
        failed: The images that could not be read.
        failed_index: Their positions.
    """

    index: Ints
    parts: Floats
    global_feature: Floats
    visibility: Floats
    failed: tuple[Rejected, ...]
    failed_index: Ints


class FeatureNetwork:
    """The network of a checkpoint on a device, in evaluation mode.

    Attributes:
        meta: What the checkpoint says of itself.
        device: Where the network is.
        part_dim: D; 0 for a model without part features.
        global_dim: W.
    """

    def __init__(
        self, model: nn.Module, meta: CheckpointMeta, device: torch.device, config: ExtractConfig, place: RankInfo
    ) -> None:
        self.meta, self.device = meta, device
        # The processes of a machine share its cores.
        self._threads = max(1, worker_count(-1) // place.local_world_size)
        self._model, self._config = model, config
        size = (1, meta.model.height, meta.model.width, 3)
        probe = embed(model, torch.zeros(size, dtype=torch.uint8, device=device))
        # A model without parts fills them with nothing; a length of zero says so in the file.
        self.part_dim = 0 if meta.model.kind == "baseline" else probe.parts.shape[2]
        self.global_dim = probe.global_feature.shape[1]

    @classmethod
    def load(cls, checkpoint: Path, config: ExtractConfig, place: RankInfo) -> Self:
        """Read a checkpoint.

        Raises:
            WeightsError: The checkpoint is missing or damaged.
            DeviceError: The device is not there or too full for the network.
        """
        tune_allocator()
        device = place.select_device(config.device)
        model, meta = load_checkpoint(checkpoint)
        with memory_watched(device, lambda: no_room(device, "the network does not fit")):
            return cls(model.to(device).to(memory_format=torch.channels_last), meta, device, config, place)

    def batches(self, paths: Sequence[Path]) -> Iterator[FeatureBatch]:
        """Features of images in batches of `extract.batch_size`; the next batches are decoded meanwhile.

        Raises:
            DeviceError: The device's memory is exhausted.
            WeightsError: The network gives features that are not finite.
        """
        shape, size = self.meta.model, self._config.batch_size
        for batch in decode_batches(paths, shape.height, shape.width, batch=size, threads=self._threads):
            if len(batch.index):
                arrays = self._look(batch.images)
            else:
                shapes = ((0, NUM_PARTS, self.part_dim), (0, self.global_dim), (0, NUM_PARTS))
                arrays = [np.empty(each, np.float32) for each in shapes]
            yield FeatureBatch(batch.index, arrays[0], arrays[1], arrays[2], batch.failed, batch.failed_index)

    def _look(self, images: npt.NDArray[np.uint8]) -> list[Floats]:
        with memory_watched(self.device, self._too_many):
            there = torch.from_numpy(images).to(self.device)
            found = embed(self._model, there, flip=self._config.flip, amp=self._config.amp)
            finite = all(bool(torch.isfinite(each).all()) for each in (found.parts, found.global_feature))
            looked = (found.parts[:, :, : self.part_dim], found.global_feature, found.visibility)
            arrays = [tensor.cpu().numpy() for tensor in looked]
        if not finite:
            raise WeightsError(
                "the network gives features that are not finite numbers",
                hint="the training diverged; look at its metrics.jsonl"
                + (", or set extract.amp=bf16" if self._config.amp == "fp16" else ""),
            )
        return arrays

    def _too_many(self) -> DeviceError:
        size = self._config.batch_size
        error = no_room(self.device, f"{size} images a batch do not fit" if size > 1 else "a single image does not fit")
        return DeviceError(
            error.message,
            where=BATCH_SIZE,
            expected="a smaller number" if size > 1 else None,
            hint=error.hint if size > 1 else "use --device cpu",
        )
