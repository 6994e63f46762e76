"""Numbers of a training that are collected on the device and read back now and then."""

from __future__ import annotations

import time

import torch

from pipeline.config import ModelConfig
from pipeline.errors import DataError
from pipeline.model.visibility import visible_parts
from pipeline.runtime.files import write_json
from pipeline.training.calibrate import from_samples
from pipeline.training.context import TrainContext
from pipeline.training.plan import StepPlan
from pipeline.training.step import StepOutputs, StepResult

BAD_BATCH_FILE = "non-finite-batch.json"

_GPU_READ_SECONDS = 0.5
"""Time between two readings from a GPU, which has to finish its queue for each."""


class LossMeter:
    """Reads back the losses of steps and checks that they are finite.

    Attributes:
        seconds: Time spent in steps.
        images_per_second: Speed between the last two readings.
    """

    def __init__(self, context: TrainContext, names: tuple[str, ...]) -> None:
        self._context, self._names = context, names
        self._unread: list[StepResult] = []
        self._epoch: list[list[float]] = []
        self._last = time.monotonic()
        self.seconds = self.images_per_second = 0.0

    def restart_clock(self) -> None:
        """Leave the time since the last reading out of `seconds`."""
        self._last = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Collect the losses of a step."""
        self._unread.append(result)

    def due(self) -> bool:
        """Return whether it is time to read: after every step on a CPU, at intervals on a GPU."""
        return self._context.device.type == "cpu" or time.monotonic() - self._last > _GPU_READ_SECONDS

    def read(self) -> list[tuple[StepResult, dict[str, float]]]:
        """Return the steps since the last reading with their losses by name.

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
        self.images_per_second = len(results) * self._context.batch_size / passed
        self._last = now
        named = [dict(zip(self._names, losses, strict=True)) for losses in values]
        for result, losses in zip(results, named, strict=True):
            # The other processes continue until they miss the main one, which names the batch.
            if self._context.ranks.is_main and any(value - value != 0 for value in losses.values()):
                raise self._not_finite(result.plan, losses)
        self._epoch += values
        return list(zip(results, named, strict=True))

    def end_epoch(self) -> dict[str, float]:
        """Return the mean losses of the epoch's steps and their number; start the next epoch."""
        means = torch.tensor(self._epoch).mean(0).tolist()
        steps, self._epoch = len(self._epoch), []
        return {**dict(zip(self._names, means, strict=True)), "steps": steps}

    def _not_finite(self, plan: StepPlan, losses: dict[str, float]) -> DataError:
        path = self._context.folder / BAD_BATCH_FILE
        facts = {"step": plan.step + 1, "epoch": plan.epoch + 1, "losses": {k: str(v) for k, v in losses.items()}}
        write_json(path, facts | {"images": [self._context.store.names[row] for row in plan.batch]})
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
        self._samples: list[StepOutputs] = []

    def add(self, outputs: StepOutputs) -> None:
        """Collect the predicted and true visibility of a step."""
        self._samples.append(outputs)

    def end_epoch(self) -> dict[str, float]:
        """Return the accuracy by part and start the next epoch; empty without masks."""
        samples, self._samples = self._samples, []
        known = torch.cat([each.has_mask for each in samples])
        if not known.any():
            return {}
        predicted = torch.cat([each.visibility for each in samples])[known]
        parts = torch.cat([each.parts for each in samples])[known].float() / 255
        true = visible_parts(parts, self._model, training=True)
        return from_samples(predicted, true, reference=len(true)).accuracy
