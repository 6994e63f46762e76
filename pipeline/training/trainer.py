"""The training loop: steps, logs, saved states, evaluations, and how a run stops early."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pipeline.runtime.progress import Task
from pipeline.training.context import TrainContext
from pipeline.training.evaluator import Evaluator
from pipeline.training.extra import extra_batches
from pipeline.training.interrupts import Interrupts
from pipeline.training.meters import LossMeter, VisibilityMeter
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.plan import StepPlan, plan_steps
from pipeline.training.schedule import learning_rate
from pipeline.training.state import TrainState, load_state, save_state
from pipeline.training.step import Batch, TrainStep

STATE_FILE = "state.safetensors"

_LEAST_SHARE = 0.1
"""The end of an epoch saves a state only if this share of `checkpoint_minutes` has passed since the last one."""

_log = logging.getLogger("sgsfa.training")


class Trainer:
    """Trains a network from step 0, or from the saved state, to the end.

    Attributes:
        stepper: Takes the steps.
        step: Steps done.
        total: Steps of the whole training.
        best: Epoch and mAP of the best evaluation.
        evaluation_due: The evaluation after this step is still to be made.
        losses: Reads losses back.
    """

    def __init__(self, network: nn.Module, context: TrainContext) -> None:
        self._context = context
        self.stepper = TrainStep(network, context)
        self.losses = LossMeter(context, self.stepper.loss_names)
        self._visibility = VisibilityMeter(context.model)
        self._measures_visibility = context.model.kind != "baseline" and context.ranks.is_main
        self.total = context.config.epochs * context.steps_per_epoch
        self.step = 0
        self.best: tuple[int, float] | None = None
        self.evaluation_due = False
        self._metrics: MetricsLog | None = None
        self._evaluator: Evaluator | None = None
        self._interrupts = Interrupts()
        self._state_file = context.folder / STATE_FILE
        self._saved = time.monotonic()
        if self._state_file.is_file():
            self._resume()

    def run(self, log: MetricsLog | None = None, evaluator: Evaluator | None = None) -> None:
        """Train to the end.

        Args:
            log: Receives metrics; None in other processes than the main one.
            evaluator: Tests the network every `eval_every` epochs, in the main process.

        Raises:
            KeyboardInterrupt: Ctrl-C, SIGTERM, SIGHUP or SIGUSR1; the state is saved.
            DataError: A loss or a gradient is not finite; a file beside the state names the batch.
        """
        self._metrics, self._evaluator = log, evaluator
        with Interrupts() as self._interrupts:
            self._evaluate_if_due()
            self._stop_if_requested()
        if self.step >= self.total:
            return
        self.stepper.prepare()
        batch = self._context.batch_size
        with (
            Interrupts() as self._interrupts,
            self._context.progress.task("train", total=self.total * batch, done=self.step * batch) as task,
        ):
            self.losses.restart_clock()
            batches = self._context.images.batches(self.plans(), lambda plan: plan.rows)
            extras = extra_batches(self._context, self.step, self.total)
            for (plan, images), extra in zip(batches, extras, strict=True):
                self.advance(plan, images, extra)
                self._after_step(task)
            # A signal that came after the last check.
            self._stop_if_requested()

    def plans(self) -> Iterator[StepPlan]:
        """Yield the plans of all steps that are left."""
        return plan_steps(self._context, self.step, self.total)

    def advance(self, plan: StepPlan, images: Tensor, extra: Batch | None = None) -> None:
        """Take one step; `images` are those of `plan.rows`, on the device."""
        result = self.stepper(plan, images, extra)
        self.losses.add(result)
        if self._measures_visibility:
            self._visibility.add(result.outputs)
        self.step += 1
        self.evaluation_due = False

    def save(self) -> None:
        """Save the resumable state, in the main process."""
        self._saved = time.monotonic()
        if self._context.ranks.is_main:
            state = TrainState(
                step=self.step,
                provenance=self._context.meta.provenance,
                scaler=self.stepper.scaler.state_dict(),
                best=self.best,
                seconds=self.losses.seconds,
                evaluation_due=self.evaluation_due,
            )
            stepper = self.stepper
            save_state(self._state_file, stepper.network, stepper.optimizer, stepper.ema, state)

    def _resume(self) -> None:
        stepper = self.stepper
        provenance = self._context.meta.provenance
        state = load_state(self._state_file, stepper.network, stepper.optimizer, stepper.ema, provenance)
        self.step, self.best, self.evaluation_due = state.step, state.best, state.evaluation_due
        self.losses.seconds = state.seconds
        if state.scaler:
            stepper.scaler.load_state_dict(state.scaler)
        _log.info("resuming training at step %s of %s", f"{self.step:,}", f"{self.total:,}")

    def _after_step(self, task: Task) -> None:
        ends_epoch = self.step % self._context.steps_per_epoch == 0
        stopping = self._stop_requested
        saving = stopping or self._save_is_due(ends_epoch)
        # Before a state is saved, so that no saved state follows a loss that is not finite.
        if ends_epoch or saving or self.losses.due():
            self.report_losses(task)
        if ends_epoch:
            self._end_epoch()
        if self.evaluation_due and not stopping:
            self._evaluate_if_due()
            # The evaluation has saved the state, but a signal may have come since its last pause.
            stopping = saving = self._stop_requested
        if saving:
            self.save()
        if stopping:
            raise KeyboardInterrupt

    @property
    def _stop_requested(self) -> bool:
        # Other processes continue until they miss the main one, which alone knows that the state is saved.
        return self._interrupts.requested and self._context.ranks.is_main

    def _stop_if_requested(self) -> None:
        if self._stop_requested:
            self.save()
            raise KeyboardInterrupt

    def _save_is_due(self, ends_epoch: bool) -> bool:
        waited = (time.monotonic() - self._saved) / 60
        due = self._context.config.checkpoint_minutes * (_LEAST_SHARE if ends_epoch else 1.0)
        return waited >= due and self.step < self.total

    def report_losses(self, task: Task | None = None) -> None:
        """Read losses back, log them and show those of the last step."""
        read = self.losses.read()
        if self._metrics is not None:
            for result, losses in read:
                values = {"lr": result.rate, **losses, "images_per_second": self.losses.images_per_second}
                self._metrics.write("step", step=result.plan.step + 1, epoch=result.plan.epoch + 1, values=values)
        if read and task is not None:
            result, losses = read[-1]
            shown: dict[str, float | str] = {k: v for k, v in losses.items() if k != "gradient"}
            epoch = f"{result.plan.epoch + 1}/{self._context.config.epochs}"
            task.advance(len(read) * self._context.batch_size, **shown, lr=result.rate, epoch=epoch)

    def _end_epoch(self) -> None:
        config, per_epoch = self._context.config, self._context.steps_per_epoch
        values: dict[str, Any] = self.losses.end_epoch()
        values |= {"lr": learning_rate(self.step - 1, per_epoch, config), "seconds": self.losses.seconds}
        if self._measures_visibility:
            values["visibility_accuracy"] = self._visibility.end_epoch()
        if self._metrics is not None:
            self._metrics.write("epoch", step=self.step, epoch=self.step // per_epoch, values=values)
        every = config.eval_every * per_epoch
        self.evaluation_due = self._evaluator is not None and every > 0 and self.step % every == 0
        self.losses.restart_clock()

    def _evaluate_if_due(self) -> None:
        """Make the evaluation that is due, in the main process, and keep the network if it is the best so far.

        Raises:
            KeyboardInterrupt: Stopped meanwhile; the state is saved, and a resumed run makes the evaluation first.
        """
        if not self.evaluation_due or self._evaluator is None or self._metrics is None:
            return

        def pause() -> None:
            if self._interrupts.requested:
                raise KeyboardInterrupt

        epoch = self.step // self._context.steps_per_epoch
        # Before the evaluation, so that neither a signal nor a failure loses the steps before it.
        self.save()
        metrics = self._evaluator.evaluate(self.stepper.trained, pause)
        self._metrics.write("evaluation", step=self.step, epoch=epoch, values=metrics)
        _log.info("epoch %d: rank-1 %.1f %%, mAP %.1f %%", epoch, 100 * metrics["rank1"], 100 * metrics["mAP"])
        if self.best is None or metrics["mAP"] > self.best[1]:
            self.best = (epoch, metrics["mAP"])
            self._evaluator.keep_best(self.stepper.trained, epoch)
        self.evaluation_due = False
        self.stepper.network.train()
        self.losses.restart_clock()
