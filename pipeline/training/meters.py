"""Numbers of a training that are collected on the device and read back now and then."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from pipeline.config import ModelConfig
from pipeline.errors import DataError
from pipeline.runtime.files import write_json
from pipeline.training.calibrate import from_samples, true_visibility
from pipeline.training.context import TrainContext
from pipeline.training.plan import StepPlan
from pipeline.training.step import StepResult, VisibilitySample

BAD_BATCH_FILE = "non-finite-batch.json"

_GPU_READ_SECONDS = 0.5
"""Time between two readings from a GPU, which has to finish its queue for each."""


@dataclass(frozen=True, slots=True)
class StepLosses:
    """The losses of one step, on the host."""

    plan: StepPlan
    rate: float
    losses: dict[str, float]
    images_per_second: float


class LossMeter:
    """Reads back the losses of steps and checks that they are finite.

    Args:
        context: The training.
        names: Names of the losses.

    Attributes:
        seconds: Time spent in steps.
    """

    def __init__(self, context: TrainContext, names: tuple[str, ...]) -> None:
        self._context, self._names = context, names
        self._unread: list[StepResult] = []
        self._epoch: list[list[float]] = []
        self._last = time.monotonic()
        self.seconds = 0.0

    def restart_clock(self) -> None:
        """Leave the time since the last reading out of `seconds`."""
        self._last = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Collect the losses of a step."""
        self._unread.append(result)

    def due(self) -> bool:
        """Return whether it is time to read: after every step on a CPU, at intervals on a GPU."""
        return self._context.device.type == "cpu" or time.monotonic() - self._last > _GPU_READ_SECONDS

    def read(self) -> list[StepLosses]:
        """Return the losses of the steps since the last reading.

        Raises:
            DataError: A loss or the gradient is not finite; in the main process.
        """
        now = time.monotonic()
        results, self._unread = self._unread, []
        if not results:
            return []
        values: list[list[float]] = torch.stack([each.losses for each in results]).tolist()
        passed = max(now - self._last, 1e-9)
        self.seconds += passed
        self._last = now
        speed = len(results) * self._context.batch_size / passed
        read = []
        for each, losses in zip(results, values, strict=True):
            named = dict(zip(self._names, losses, strict=True))
            # The other processes continue until they miss the main one, which names the batch.
            if self._context.ranks.is_main and any(value - value != 0 for value in losses):
                raise self._not_finite(each.plan, named)
            self._epoch.append(losses)
            read.append(StepLosses(each.plan, each.rate, named, speed))
        return read

    def end_epoch(self) -> dict[str, float]:
        """Return the mean losses of the epoch's steps and their number; start the next epoch."""
        means = torch.tensor(self._epoch).mean(0).tolist()
        steps, self._epoch = len(self._epoch), []
        return {**dict(zip(self._names, means, strict=True)), "steps": steps}

    def _not_finite(self, plan: StepPlan, losses: dict[str, float]) -> DataError:
        path = self._context.folder / BAD_BATCH_FILE
        facts = {"step": plan.step + 1, "epoch": plan.epoch + 1, "losses": {k: str(v) for k, v in losses.items()}}
        write_json(path, facts | {"images": [self._context.names[row] for row in plan.batch]})
        bad = ", ".join(name for name, value in losses.items() if value - value != 0)
        return DataError(
            f"{'gradient' if bad == 'gradient' else 'loss'} is not finite at step {plan.step + 1:,} "
            f"(epoch {plan.epoch + 1}): {bad}",
            where=path,
            expected="finite numbers; the file names the images of the batch",
            hint="set train.clip_norm=5, lower train.lr, lengthen train.warmup_epochs, or use bf16 instead of fp16; "
            "the last saved state is kept",
        )


class VisibilityMeter:
    """Accuracy of the predicted part visibility over an epoch.

    Samples are only collected during the epoch: selecting rows with masks would make a GPU's host wait.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._samples: list[VisibilitySample] = []

    def add(self, sample: VisibilitySample) -> None:
        """Collect the sample of a step."""
        self._samples.append(sample)

    def end_epoch(self) -> dict[str, float] | None:
        """Return the accuracy by part and start the next epoch; None without samples."""
        samples, self._samples = self._samples, []
        if not samples:
            return None
        known = torch.cat([each.has_mask for each in samples])
        if not known.any():
            return {}
        predicted = torch.cat([each.visibility for each in samples])[known]
        parts = torch.cat([each.parts for each in samples])[known].float() / 255
        return from_samples(predicted, true_visibility(parts, self._model, training=True)).accuracy
