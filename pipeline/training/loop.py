"""The training loop: steps, logs, states, evaluations, and how a run ends early."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.config import LossConfig, ModelConfig, TrainConfig
from pipeline.errors import DataError, DeviceError
from pipeline.model.losses import LOSS_NAMES, total_loss
from pipeline.runtime.device import autocast, memory_watched, no_room
from pipeline.runtime.files import write_json
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import Progress
from pipeline.training.augment import AugmentParams, augment, used_augmentations
from pipeline.training.calibrate import from_samples, true_visibility
from pipeline.training.checkpoint import Facts, load_state, save_state
from pipeline.training.compiling import Compiled, compile_network
from pipeline.training.distributed import mean_over_processes, replicate
from pipeline.training.ema import Average
from pipeline.training.feeder import Feeder, to_device
from pipeline.training.interrupts import Interrupts
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.occluders import occluder_tiles
from pipeline.training.optim import build_optimizer, parameters_of, set_learning_rate
from pipeline.training.plan import StepPlan, plan_steps
from pipeline.training.recorded import Recorded
from pipeline.training.sampler import steps_per_epoch
from pipeline.training.schedule import learning_rate
from pipeline.training.step import Batch, LossFunction, backward
from pipeline.training.store import Targets

STATE_FILE = "state.safetensors"
BAD_BATCH_FILE = "non-finite-batch.json"

_GPU_LOOK_SECONDS = 0.5
"""How often losses are read back from a GPU; each time it has to finish what it was given."""

_TEST_LESS = "train.eval_every=0 tests nothing while it trains, and trains from the start; or take a smaller test set"

_LEAST_SHARE = 0.1
"""An epoch's end saves a state only when this share of `checkpoint_minutes` has passed since the last one."""


class Tester(Protocol):
    """What an evaluation during training needs."""

    def test(self, model: nn.Module, pause: Callable[[], None]) -> dict[str, float]:
        """Metrics of a network in evaluation mode, `rank1` and `mAP` among them.

        Args:
            model: The network.
            pause: To be called every few seconds; an exception of it ends the test.
        """
        ...

    def keep(self, model: nn.Module, epoch: int) -> None:
        """Keep the weights of the best network so far."""
        ...


@dataclass(frozen=True)
class Setting:
    """What a loop works on.

    Attributes:
        names: Name of each row of the store.
        feeder: The images.
        targets: Identities and masks, on the device.
        size: Height and width of the images.
        device: Where the network is.
        place: Which process this is.
        folder: Where the state goes.
        identity: What a state must say of itself to be taken up.
    """

    names: Sequence[str]
    feeder: Feeder
    targets: Targets
    size: tuple[int, int]
    device: torch.device
    place: RankInfo
    folder: Path
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Recent:
    """A step whose losses were not read back yet."""

    plan: StepPlan
    rate: float
    losses: Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step's work on the device is given.

    Attributes:
        images: (N, H, W, 3) uint8, the images of the plan's rows.
        rows: (N,) int64, these rows; the first B are the batch, the others donors.
        params: Augmentation parameters of the batch, packed.
    """

    images: Tensor
    rows: Tensor
    params: Tensor


@dataclass(frozen=True, slots=True)
class SeenParts:
    """What a step's network saw of the parts, and what there was to see.

    Attributes:
        visibility: (B, 7) mask means in [0, 1].
        parts: (B, 4, h, w) uint8 true part masks.
        has_mask: (B,) bool.
    """

    visibility: Tensor
    parts: Tensor
    has_mask: Tensor


@dataclass(frozen=True, slots=True)
class StepResults:
    """What a step's work on the device leaves, besides gradients.

    Attributes:
        losses: (5,) float32 in the order of `LOSS_NAMES`.
        seen: What the network saw of the parts.
    """

    losses: Tensor
    seen: SeenParts


class Loop:
    """Trains a network from step 0, or from the saved state, to the end.

    Args:
        model: On the device, in the memory layout it trains in.
        setting: Data, place, folder.
        model_config: The network's configuration.
        loss: The losses.
        config: The training.
        progress: Where to report.
    """

    def __init__(
        self,
        model: nn.Module,
        setting: Setting,
        model_config: ModelConfig,
        loss: LossConfig,
        config: TrainConfig,
        progress: Progress,
    ) -> None:
        self.model = model
        self.setting = setting
        self.config = config
        self._model_config, self._loss, self._progress = model_config, loss, progress
        self.optimizer = build_optimizer(model, config)
        self.average = Average(model, config.ema) if config.ema else None
        self._scaler = torch.amp.GradScaler(setting.device.type, enabled=config.amp == "fp16")
        self._labels = setting.targets.labels.tolist()
        self.per_epoch = steps_per_epoch(self._labels, config)
        self.total = config.epochs * self.per_epoch
        self.step = 0
        self.seconds = 0.0
        self.best: tuple[int, float] | None = None
        self.untested = False
        self._precision = functools.partial(autocast, setting.device, config.amp)
        # With fp16 a gradient that overflows is no fault: the scaler leaves that step out.
        self._loss_names = LOSS_NAMES if config.amp == "fp16" else (*LOSS_NAMES, "gradient")
        self._augment: Callable[[Tensor, Tensor, Tensor, AugmentParams, Tensor], tuple[Tensor, Tensor, Tensor]] = (
            augment
        )
        self._used = used_augmentations(config)
        self._tiles = occluder_tiles().to(setting.device)
        self._total_loss: LossFunction = total_loss
        self._recent: list[_Recent] = []
        self._epoch_losses: list[list[float]] = []
        self._seen: list[SeenParts] = []
        self._looked = self._saved = time.monotonic()
        self._saved_step = 0
        if self.state_file.is_file():
            self._resume()

    @property
    def state_file(self) -> Path:
        """Where the resumable state lies."""
        return self.setting.folder / STATE_FILE

    @property
    def trained(self) -> nn.Module:
        """The network to test and to keep: the averaged one where there is one."""
        return self.model if self.average is None else self.average.model

    def run(self, log: MetricsLog | None, tester: Tester | None = None) -> None:
        """Train to the end.

        Args:
            log: The leader's log; None in the other processes.
            tester: Tests the network every `eval_every` epochs, in the leader.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the state is saved.
            DataError: A loss or a gradient was not finite; the batch's names lie beside the state.
            DeviceError: Out of memory.
        """
        # All of it: memory may end while a batch is fetched or losses are read as well as within a step.
        with memory_watched(self.setting.device, self._out_of_memory):
            self._run(log, tester)

    def _run(self, log: MetricsLog | None, tester: Tester | None) -> None:
        with Interrupts() as interrupts:
            self._test_if_due(log, tester, interrupts)
            self._stop_if(interrupts)
        if self.step >= self.total:
            return
        gradient = self.gradient_of(self.forward_model())
        batch = self.config.identities * self.config.instances
        plans = plan_steps(
            self._labels, self.config, self.setting.size, start=self.step, stop=self.total, place=self.setting.place
        )
        feed = self.setting.feeder.batches(plans, lambda plan: plan.rows)
        with (
            Interrupts() as interrupts,
            self._progress.task("train", total=self.total * batch, done=self.step * batch) as task,
        ):
            self._looked = time.monotonic()
            for plan, images in feed:
                self.advance(gradient, plan, images)
                ends_epoch = self.step % self.per_epoch == 0
                # The other processes go on until they miss the leader, which alone knows that the state is safe.
                stopping = interrupts.requested and self.setting.place.is_main
                saving = stopping or self._save_is_due(ends_epoch)
                # Looked at before a state is saved, so that no saved state follows a loss that is not finite.
                if ends_epoch or saving or self.time_to_look():
                    shown = self.look(log)
                    task.advance(shown.pop("steps") * batch, **shown)
                if ends_epoch:
                    self._end_epoch(log)
                    self.untested = self._test_is_due(tester)
                if self.untested and not stopping:
                    self._test_if_due(log, tester, interrupts)
                    # The state was saved before, but a stop may have come since the last pause.
                    stopping = saving = interrupts.requested and self.setting.place.is_main
                if saving:
                    self.save()
                if stopping:
                    raise KeyboardInterrupt
            # One that came after the last step asked.
            self._stop_if(interrupts)

    def _stop_if(self, interrupts: Interrupts) -> None:
        if interrupts.requested and self.setting.place.is_main:
            self.save()
            raise KeyboardInterrupt

    def save(self) -> None:
        """Save the resumable state, in the leader."""
        self._saved, self._saved_step = time.monotonic(), self.step
        if self.setting.place.is_main:
            facts = Facts(
                step=self.step,
                identity=self.setting.identity,
                scaler=self._scaler.state_dict(),
                best=self.best,
                seconds=self.seconds,
                untested=self.untested,
            )
            save_state(self.state_file, self.model, self.optimizer, self.average, facts)

    def _resume(self) -> None:
        facts = load_state(self.state_file, self.model, self.optimizer, self.average, self.setting.identity)
        self.step, self.best, self.seconds = facts.step, facts.best, facts.seconds
        self._saved_step, self.untested = self.step, facts.untested
        if facts.scaler:
            self._scaler.load_state_dict(facts.scaler)
        self._progress.note(f"training goes on from step {self.step:,} of {self.total:,}")

    def forward_model(self) -> nn.Module:
        """The network as steps call it: compiled and replicated, where the run asks for it."""
        self.model.train()
        model = self.model
        if self.config.compile:
            model = compile_network(
                model, self._example, self._progress, self._precision, pieces=self.config.accumulate
            )
            if model is not self.model:
                self._augment = Compiled(augment, "the augmentation", self._progress)
                self._total_loss = Compiled(total_loss, "the losses", self._progress)
        return replicate(model, self.setting.device) if self.setting.place.world_size > 1 else model

    def _example(self) -> Tensor:
        share = (
            self.config.identities * self.config.instances // self.setting.place.world_size // self.config.accumulate
        )
        example = torch.zeros((share, 3, *self.setting.size), device=self.setting.device)
        return example.to(memory_format=torch.channels_last)

    def gradient_of(self, forward: nn.Module) -> Callable[[StepInputs], StepResults]:
        """The part of a step that is the same work every time: from the images to losses and gradients.

        Args:
            forward: What `forward_model` made.
        """
        work = functools.partial(self._gradient, forward)
        # Several processes talk to each other within it.
        if self.setting.device.type != "cuda" or not self.config.cuda_graph or self.setting.place.world_size > 1:
            return work
        return Recorded(work, self.setting.device, self._progress)

    def advance(self, gradient: Callable[[StepInputs], StepResults], plan: StepPlan, images: Tensor) -> None:
        """Take one step.

        Args:
            gradient: What `gradient_of` made.
            plan: The step's plan.
            images: The images of `plan.rows` on the device.

        Raises:
            DeviceError: The step cannot be recorded.
        """
        self._recent.append(self._take_step(gradient, plan, images))
        self.step += 1
        self.untested = False

    def _take_step(self, gradient: Callable[[StepInputs], StepResults], plan: StepPlan, images: Tensor) -> _Recent:
        rate, device = learning_rate(plan.step, self.per_epoch, self.config), self.setting.device
        set_learning_rate(self.optimizer, rate)
        # Whatever a network draws by itself (stochastic depth) is decided by the step, so nothing has to be saved.
        torch.manual_seed(plan.seed)
        made = gradient(
            StepInputs(images, to_device(plan.rows, device), to_device(plan.params.packed().numpy(), device))
        )
        parameters = list(parameters_of(self.optimizer))
        if self.config.clip_norm:
            self._scaler.unscale_(self.optimizer)
        norm, losses = None, made.losses
        if self.config.clip_norm or "gradient" in self._loss_names:
            norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        if norm is not None and self.config.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        if norm is not None and "gradient" in self._loss_names:
            losses = torch.cat([losses, norm.float().unsqueeze(0)])
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self.average is not None:
            self.average.update(plan.step)
        if self._model_config.kind != "baseline" and self.setting.place.is_main:
            # Only kept here, and worked out at the epoch's end: selecting rows now would make the device wait.
            self._seen.append(made.seen)
        return _Recent(plan, rate, mean_over_processes(losses) if self.setting.place.world_size > 1 else losses)

    def _gradient(self, forward: nn.Module, given: StepInputs) -> StepResults:
        batch = self._prepare(given)
        self.optimizer.zero_grad(set_to_none=True)
        parts, output = backward(
            forward,
            batch,
            self._loss,
            loss_function=self._total_loss,
            precision=self._precision,
            pieces=self.config.accumulate,
            gather=self.config.gather and self.setting.place.world_size > 1,
            scale=self._scaler.scale,
        )
        seen = SeenParts(output.visibility, (batch.parts * 255).to(torch.uint8), batch.has_mask)
        return StepResults(parts.stacked(), seen)

    def _prepare(self, given: StepInputs) -> Batch:
        targets = self.setting.targets
        params = AugmentParams.unpacked(given.params, self._used)
        rows = given.rows[: given.params.shape[1]]
        normal, parts, body = self._augment(
            given.images, targets.parts[rows], targets.body[given.rows], params, self._tiles
        )
        if not self.config.channels_last:
            normal = normal.contiguous()
        return Batch(normal, targets.labels[rows], body, parts, targets.has_mask[rows], targets.given)

    def time_to_look(self) -> bool:
        """Whether losses should be read back now: after each step on a CPU, now and then on a GPU."""
        return self.setting.device.type == "cpu" or time.monotonic() - self._looked > _GPU_LOOK_SECONDS

    def look(self, log: MetricsLog | None) -> dict[str, Any]:
        """Read back the losses of the steps since the last look, and log them.

        Returns:
            `steps`, their number, and what to show of the last one.

        Raises:
            DataError: A loss or a gradient is not finite; in the leader.
        """
        now = time.monotonic()
        recent, self._recent = self._recent, []
        shown: dict[str, Any] = {"steps": len(recent)}
        if not recent:
            return shown
        values = torch.stack([each.losses for each in recent]).tolist()
        passed = max(now - self._looked, 1e-9)
        speed = len(recent) * self.config.identities * self.config.instances / passed
        self.seconds += passed
        self._looked = now
        for each, losses in zip(recent, values, strict=True):
            named = dict(zip(self._loss_names, losses, strict=True))
            if self.setting.place.is_main and any(value - value != 0 for value in losses):
                # The others would end before the leader has named the batch; they go on until they miss it.
                raise self._not_finite(each.plan, named)
            self._epoch_losses.append(losses)
            if log is not None:
                log.write(
                    "step",
                    step=each.plan.step + 1,
                    epoch=each.plan.epoch + 1,
                    values={"lr": each.rate, **named, "images_per_second": speed},
                )
        if log is not None:
            log.flush()
        shown |= dict(zip(self._loss_names, values[-1], strict=True))
        shown.pop("gradient", None)
        return shown | {"lr": recent[-1].rate, "epoch": f"{recent[-1].plan.epoch + 1}/{self.config.epochs}"}

    def _end_epoch(self, log: MetricsLog | None) -> None:
        epoch = self.step // self.per_epoch
        if log is not None:
            means = torch.tensor(self._epoch_losses).mean(0).tolist()
            values: dict[str, Any] = dict(zip(self._loss_names, means, strict=True))
            values["lr"] = learning_rate(self.step - 1, self.per_epoch, self.config)
            values["seconds"] = self.seconds
            values["steps"] = len(self._epoch_losses)  # Fewer than an epoch's where a resumed run began within one.
            if self._seen:
                values["visibility_accuracy"] = self._visibility_accuracy()
            log.write("epoch", step=self.step, epoch=epoch, values=values)
            log.flush()
        self._epoch_losses, self._seen = [], []
        self._looked = time.monotonic()

    def _test_is_due(self, tester: Tester | None) -> bool:
        """Whether the epoch that ends with this step is one to test after."""
        every = self.config.eval_every * self.per_epoch
        return tester is not None and every > 0 and self.step % every == 0

    def _test_if_due(self, log: MetricsLog | None, tester: Tester | None, interrupts: Interrupts) -> None:
        """Make the evaluation that is due, in the leader, and keep the network if it is the best so far.

        Raises:
            KeyboardInterrupt: Stopped meanwhile; the state is saved, and a resumed run makes the evaluation first.
            DeviceError: Out of memory.
        """
        if not self.untested or tester is None or log is None:
            return

        def pause() -> None:
            if interrupts.requested:
                raise KeyboardInterrupt

        epoch = self.step // self.per_epoch
        # Now, so that neither a stop nor a test that fails costs the steps before it.
        self.save()
        with memory_watched(self.setting.device, self._no_room_to_test):
            tested = tester.test(self.trained.eval(), pause)
        log.write("evaluation", step=self.step, epoch=epoch, values=tested)
        log.flush()
        self._progress.note(
            f"epoch {epoch}: rank-1 {tested['rank1']:.1%}, mAP {tested['mAP']:.1%} on the first test set"
        )
        if self.best is None or tested["mAP"] > self.best[1]:
            self.best = (epoch, tested["mAP"])
            tester.keep(self.trained, epoch)
        self.untested = False
        self.model.train()
        self._looked = time.monotonic()

    def _visibility_accuracy(self) -> dict[str, float]:
        known = torch.cat([each.has_mask for each in self._seen])
        if not known.any():
            return {}
        predicted = torch.cat([each.visibility for each in self._seen])[known]
        parts = torch.cat([each.parts for each in self._seen])[known]
        return from_samples(predicted, true_visibility(parts.float() / 255, self._model_config, training=True)).accuracy

    def _save_is_due(self, ends_epoch: bool) -> bool:
        waited = (time.monotonic() - self._saved) / 60
        due = self.config.checkpoint_minutes * (_LEAST_SHARE if ends_epoch else 1.0)
        return waited >= due and self.step < self.total

    def _not_finite(self, plan: StepPlan, losses: dict[str, float]) -> DataError:
        names = [self.setting.names[row] for row in plan.batch]
        path = self.setting.folder / BAD_BATCH_FILE
        facts = {"step": plan.step + 1, "epoch": plan.epoch + 1, "losses": {k: str(v) for k, v in losses.items()}}
        write_json(path, facts | {"images": names})
        bad = ", ".join(name for name, value in losses.items() if value - value != 0)
        return DataError(
            f"the {'gradient' if bad == 'gradient' else 'loss'} is not finite at step {plan.step + 1:,} "
            f"(epoch {plan.epoch + 1}): {bad}",
            where=path,
            expected="finite numbers; the file names the images of that batch",
            hint="set train.clip_norm=5, lower train.lr, lengthen train.warmup_epochs, or use bf16 instead of fp16; "
            "the state saved before it is kept",
        )

    def _out_of_memory(self) -> DeviceError:
        config, place = self.config, self.setting.place
        share = config.identities * config.instances // place.world_size
        images = share // config.accumulate
        smaller = next((more for more in range(config.accumulate + 1, share + 1) if share % more == 0), None)
        less = f"{'train.amp=bf16 or ' if config.amp == 'off' else ''}a smaller backbone needs less"
        if smaller is not None:
            less = f"train.accumulate={smaller} takes the same batches in smaller forwards; {less}, too"
        error = no_room(self.setting.device, f"{images} images of {self._size()} a forward do not fit")
        return DeviceError(
            f"{error.message}; step {min(self.step + 1, self.total):,} of {self.total:,} could not be finished, and "
            f"{self._kept()}",
            hint="; ".join(
                filter(None, (error.hint, self._unrecorded(), f"{less}. A changed configuration trains from the start"))
            ),
        )

    def _no_room_to_test(self) -> DeviceError:
        error = no_room(self.setting.device, f"the test images' features and forwards of {self._size()} do not fit")
        return DeviceError(
            f"{error.message}, after epoch {self.step // self.per_epoch}; {self._kept()}",
            hint="; ".join(filter(None, (error.hint, self._unrecorded(), _TEST_LESS))),
        )

    def _unrecorded(self) -> str | None:
        """Advice to do without a recording, where there is one."""
        if not self.config.cuda_graph or self.setting.device.type != "cuda" or self.setting.place.world_size > 1:
            return None
        return "train.cuda_graph=false shares memory between steps and evaluations, and the run goes on"

    def _size(self) -> str:
        return "x".join(map(str, self.setting.size))

    def _kept(self) -> str:
        if not self.state_file.is_file():
            return "no state was saved yet"
        # The others do not know when the leader saved.
        at = f" at step {self._saved_step:,}" if self.setting.place.is_main else ""
        return f"the last state{at} is kept"
