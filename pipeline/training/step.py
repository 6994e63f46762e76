"""One training step: augmentation, forward and backward pass, update of weights and of their average."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model.losses import LOSS_NAMES, mask_loss, total_loss
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.sgsfa import SGSFA
from pipeline.runtime.device import autocast
from pipeline.training.augment import AugmentParams, augment, used_augmentations
from pipeline.training.compilation import Compiled, compile_network
from pipeline.training.context import TrainContext
from pipeline.training.cuda_graph import GraphedStep
from pipeline.training.distributed import mean_over_processes, replicate
from pipeline.training.ema import ModelEma
from pipeline.training.gradient import Batch, LossFunction, backward, running_statistics_kept
from pipeline.training.occluders import occluder_tiles
from pipeline.training.optim import build_optimizer, parameters_of, set_learning_rate
from pipeline.training.plan import StepPlan
from pipeline.training.prefetch import to_device
from pipeline.training.schedule import learning_rate
from pipeline.training.teacher import Lesson

Augmentation = Callable[[Tensor, Tensor, Tensor, AugmentParams, Tensor], tuple[Tensor, Tensor, Tensor]]
"""`augment`, eager or compiled."""

_log = logging.getLogger("sgsfa.training")


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Inputs of the work that a step does on the device.

    Attributes:
        images: (N, H, W, 3) uint8, the images of the plan's rows.
        rows: (N,) int64, these rows; the first B are the batch, the others donors.
        params: Augmentation parameters of the batch, packed.
        lesson: Rendered images for the mask losses, if the training has a teacher.
    """

    images: Tensor
    rows: Tensor
    params: Tensor
    lesson: Lesson | None = None


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """Outputs of the work that a step does on the device, besides gradients.

    Attributes:
        losses: (5,) float32 in the order of `LOSS_NAMES`; with a teacher (6,), its mask loss last.
        visibility: (B, 7) predicted mask means in [0, 1].
        parts: (B, 4, h, w) uint8 true part masks.
        has_mask: (B,) bool.
    """

    losses: Tensor
    visibility: Tensor
    parts: Tensor
    has_mask: Tensor


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that was taken; its numbers are still on the device.

    Attributes:
        plan: What it did.
        rate: Its learning rate.
        losses: (L,) float32 in the order of `TrainStep.loss_names`, the mean over all processes.
        outputs: Of this process.
    """

    plan: StepPlan
    rate: float
    losses: Tensor
    outputs: StepOutputs


class TrainStep:
    """Takes training steps with a network.

    Args:
        network: On the device, in the memory layout it trains in.
        context: Data and configuration.

    Attributes:
        network: The network.
        optimizer: Over its parameters.
        scaler: Scales losses with fp16.
        ema: The averaged network, if the configuration asks for one.
        loss_names: Names of `StepResult.losses`.
        graph: The CUDA graph of a step, where the device and the configuration have one.
    """

    def __init__(self, network: nn.Module, context: TrainContext) -> None:
        config = context.config
        self.network, self._context = network, context
        self.optimizer = build_optimizer(network, config)
        self.ema = ModelEma(network, config.ema) if config.ema else None
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=config.amp == "fp16")
        # With fp16 an infinite gradient is not an error: the scaler skips that step.
        taught = ("mask_teacher",) if context.teacher is not None else ()
        self.loss_names = (*LOSS_NAMES, *taught, *(() if config.amp == "fp16" else ("gradient",)))
        self.graph: GraphedStep[StepInputs, StepOutputs] | None = None
        self._per_epoch = context.steps_per_epoch
        self._precision = functools.partial(autocast, context.device, config.amp)
        self._used = used_augmentations(config)
        self._tiles = occluder_tiles().to(context.device)
        self._augment: Augmentation = augment
        self._loss_function: LossFunction = total_loss
        self._forward = network
        self._work: Callable[[StepInputs], StepOutputs] = self._compute_gradients

    @property
    def trained(self) -> nn.Module:
        """The network to test and to keep: the averaged one where there is one."""
        return self.network if self.ema is None else self.ema.network

    def prepare(self) -> None:
        """Compile, replicate and graph the work of a step, as configured; call it once before the first step."""
        config, device, ranks = self._context.config, self._context.device, self._context.ranks
        self.network.train()
        if config.compile:
            self._forward = compile_network(
                self.network, self._example, precision=self._precision, pieces=config.accumulate
            )
            if self._forward is not self.network:
                self._augment = Compiled(augment, "the augmentation")
                self._loss_function = Compiled(total_loss, "the losses")
        if ranks.world_size > 1:
            self._forward = replicate(self._forward, device)
        elif device.type == "cuda" and config.cuda_graph:
            self._work = self.graph = GraphedStep(self._compute_gradients, device)

    def __call__(self, plan: StepPlan, images: Tensor, lesson: Lesson | None = None) -> StepResult:
        """Take one step.

        Args:
            plan: The step's plan.
            images: (N, H, W, 3) uint8 images of `plan.rows` on the device.
            lesson: Of the same step, if the training has a teacher.

        Raises:
            DeviceError: The step cannot be captured as a CUDA graph.
        """
        rate, device = learning_rate(plan.step, self._per_epoch, self._context.config), self._context.device
        set_learning_rate(self.optimizer, rate)
        # Random numbers that a network draws by itself (stochastic depth) depend on the step alone.
        torch.manual_seed(plan.seed)
        rows, params = to_device(plan.rows, device), to_device(plan.params.packed().numpy(), device)
        outputs = self._work(StepInputs(images, rows, params, lesson))
        norm = self._clip_gradients()
        losses = outputs.losses if norm is None else torch.cat([outputs.losses, norm.float().unsqueeze(0)])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(plan.step)
        if self._context.ranks.world_size > 1:
            losses = mean_over_processes(losses)
        return StepResult(plan, rate, losses, outputs)

    def _clip_gradients(self) -> Tensor | None:
        """Clip the gradients; return their norm before it, where `loss_names` has one."""
        limit, wanted = self._context.config.clip_norm, "gradient" in self.loss_names
        if not limit and not wanted:
            return None
        if limit:
            self.scaler.unscale_(self.optimizer)
        parameters = list(parameters_of(self.optimizer))
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        if limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm if wanted else None

    def _compute_gradients(self, inputs: StepInputs) -> StepOutputs:
        batch = self._prepare_batch(inputs)
        self.optimizer.zero_grad(set_to_none=True)
        # First, because with several processes the last backward pass exchanges the sum of the gradients.
        taught = None if inputs.lesson is None else self._teach(inputs.lesson)
        parts, output = backward(
            self._forward,
            batch,
            self._context.loss,
            loss_function=self._loss_function,
            precision=self._precision,
            pieces=self._context.config.accumulate,
            gather=self._context.config.gather and self._context.ranks.world_size > 1,
            scale=self.scaler.scale,
        )
        losses = parts.stacked()
        if taught is not None:
            losses = torch.cat([losses[:1] + taught, losses[1:], taught])
        true_parts = (batch.masks.parts * 255).to(torch.uint8)
        return StepOutputs(losses, output.visibility, true_parts, batch.masks.has_mask)

    def _teach(self, lesson: Lesson) -> Tensor:
        """Add the gradient of the mask losses of rendered images, each of which weighs as much as one of the batch.

        They are normalised by their own batch statistics and leave the running ones alone, which normalise real images
        when the network is used: rendered ones have other colours and contrasts.

        Returns:
            (1,) the weighted loss.
        """
        context, teacher = self._context, self._context.teacher
        assert teacher is not None
        assert isinstance(self.network, SGSFA)
        params = AugmentParams.unpacked(lesson.params, self._used)
        parts, body = teacher.masks.parts[lesson.rows], teacher.masks.body[lesson.rows]
        images, parts, body = augment(lesson.images, parts, body, params, self._tiles)
        with running_statistics_kept(self.network), self._precision():
            _, body_logits, part_logits = self.network.predict(images)
        has_mask = teacher.masks.has_mask[lesson.rows]
        loss = mask_loss(body_logits, part_logits, MaskTargets(parts, body, has_mask, teacher.masks.supervised_parts))
        share = len(images) * context.ranks.world_size / context.batch_size
        loss = context.loss.balance * context.loss.mask_weight * share * loss
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach().unsqueeze(0)

    def _prepare_batch(self, inputs: StepInputs) -> Batch:
        masks = self._context.masks
        params = AugmentParams.unpacked(inputs.params, self._used)
        rows = inputs.rows[: inputs.params.shape[1]]
        images, parts, body = self._augment(
            inputs.images, masks.parts[rows], masks.body[inputs.rows], params, self._tiles
        )
        if not self._context.config.channels_last:
            images = images.contiguous()
        augmented = MaskTargets(parts, body, masks.has_mask[rows], masks.supervised_parts)
        return Batch(images, self._context.labels[rows], augmented)

    def _example(self) -> Tensor:
        context = self._context
        images = context.batch_size // context.ranks.world_size // context.config.accumulate
        shape = (images, 3, *context.size)
        return torch.zeros(shape, device=self._context.device).to(memory_format=torch.channels_last)
