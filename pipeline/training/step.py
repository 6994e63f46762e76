"""One training step: augmentation, forward and backward pass, update of weights and of their average."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.model.losses import LOSS_NAMES, mask_loss, total_loss
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.sgsfa import SGSFA
from pipeline.runtime.device import autocast
from pipeline.training.augment import AugmentParams, augment, used_augmentations
from pipeline.training.compilation import Compiled, compile_network
from pipeline.training.context import TrainContext
from pipeline.training.cuda_graph import GraphedStep
from pipeline.training.ema import ModelEma
from pipeline.training.gradient import LossFunction, backward, running_statistics_kept
from pipeline.training.occluders import occluder_tiles
from pipeline.training.optim import build_optimizer, set_learning_rate
from pipeline.training.plan import StepPlan
from pipeline.training.prefetch import to_device
from pipeline.training.schedule import learning_rate

Augmentation = Callable[[Tensor, MaskTargets, AugmentParams, Tensor], tuple[Tensor, MaskTargets]]
"""`augment`, eager or compiled."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one step in one process, on the device, and what is done with them.

    Attributes:
        images: (N, H, W, 3) uint8; the first B are the batch, the others donors.
        rows: (N,) int64, their rows in the masks.
        params: (24, B) augmentation parameters, packed.
        extra: Images added to the step, if the training has them.
    """

    images: Tensor
    rows: Tensor
    params: Tensor
    extra: Batch | None = None


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What a step computes on the device, besides gradients.

    Attributes:
        losses: (5,) float32 in the order of `LOSS_NAMES`; with extra images (6,), their loss last.
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
    """Takes training steps with a network, which is on the device in the memory layout that it trains in.

    Attributes:
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
        extra = () if context.extra is None else (context.extra.name,)
        self.loss_names = (*LOSS_NAMES, *extra, *(() if config.amp == "fp16" else ("gradient",)))
        self.graph: GraphedStep[Batch, StepOutputs] | None = None
        self._precision = functools.partial(autocast, context.device, config.amp)
        self._gathers = config.gather and context.ranks.world_size > 1
        self._used = used_augmentations(config)
        self._used_for_extra = used_augmentations(context.extra.config) if context.extra is not None else frozenset()
        self._tiles = occluder_tiles().to(context.device)
        self._augment: Augmentation = augment
        self._loss_function: LossFunction = total_loss
        self._forward = network
        self._work: Callable[[Batch], StepOutputs] = self._compute_gradients

    @property
    def trained(self) -> nn.Module:
        """The network to test and to keep: the averaged one where there is one."""
        return self.network if self.ema is None else self.ema.network

    def prepare(self) -> None:
        """Compile, replicate and graph the work of a step, as configured; call it once before the first step."""
        context, config, device = self._context, self._context.config, self._context.device
        self.network.train()
        if config.compile:
            shape = (context.batch_size // context.ranks.world_size // config.accumulate, 3, *context.size)
            example = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
            self._forward = compile_network(self.network, example, self._precision, pieces=config.accumulate)
            if self._forward is not self.network:
                self._augment = Compiled(augment, "the augmentation")
                self._loss_function = Compiled(total_loss, "the losses")
        if context.ranks.world_size > 1:
            # Every parameter has a gradient in every backward pass (`gradient`): no search for unused ones.
            ids = [device] if device.type == "cuda" else None
            self._forward = DistributedDataParallel(self._forward, device_ids=ids, gradient_as_bucket_view=True)
        elif device.type == "cuda" and config.cuda_graph:
            self._work = self.graph = GraphedStep(self._compute_gradients, device)

    def __call__(self, plan: StepPlan, images: Tensor, extra: Batch | None = None) -> StepResult:
        """Take one step with the images (N, H, W, 3) uint8 of `plan.rows`, on the device, and the extra images.

        Raises:
            DeviceError: The step cannot be captured as a CUDA graph.
        """
        context, device = self._context, self._context.device
        rate = learning_rate(plan.step, context.steps_per_epoch, context.config)
        set_learning_rate(self.optimizer, rate)
        # Random numbers that a network draws by itself (stochastic depth) depend on the step alone.
        torch.manual_seed(plan.seed)
        rows, params = to_device(plan.rows, device), to_device(plan.params.packed().numpy(), device)
        outputs = self._work(Batch(images, rows, params, extra))
        norm = self._clip_gradients()
        losses = outputs.losses if norm is None else torch.cat([outputs.losses, norm.float().unsqueeze(0)])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(plan.step)
        if context.ranks.world_size > 1:
            losses = mean_over_processes(losses)
        return StepResult(plan, rate, losses, outputs)

    def _clip_gradients(self) -> Tensor | None:
        """Clip the gradients; return their norm before it, where `loss_names` has one."""
        limit, wanted = self._context.config.clip_norm, "gradient" in self.loss_names
        if not limit and not wanted:
            return None
        if limit:
            self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        if limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm if wanted else None

    def _compute_gradients(self, batch: Batch) -> StepOutputs:
        context = self._context
        self.optimizer.zero_grad(set_to_none=True)
        # First, because with several processes the last backward pass exchanges the sum of the gradients.
        extra = None if batch.extra is None else self._learn_extra(batch.extra)
        params = AugmentParams.unpacked(batch.params, self._used)
        images, masks = self._augment(batch.images, context.masks.rows(batch.rows), params, self._tiles)
        parts, output = backward(
            self._forward,
            images if context.config.channels_last else images.contiguous(),
            context.labels[batch.rows[: len(images)]],
            masks,
            context.loss,
            loss_function=self._loss_function,
            precision=self._precision,
            pieces=context.config.accumulate,
            gather=self._gathers,
            scale=self.scaler.scale,
        )
        losses = parts.stacked()
        if extra is not None:
            losses = torch.cat([losses[:1] + extra, losses[1:], extra])
        return StepOutputs(losses, output.visibility, (masks.parts * 255).to(torch.uint8), masks.has_mask)

    def _learn_extra(self, batch: Batch) -> Tensor:
        """Add the gradient of the losses of extra images, each of which weighs as much as one of the batch.

        They are normalised by their own batch statistics and leave the running ones alone, which normalise images when
        the network is used. They are drawn at random, so the triplet losses are left out.

        Returns:
            (1,) the weighted loss.
        """
        context, extra = self._context, self._context.extra
        assert extra is not None
        params = AugmentParams.unpacked(batch.params, self._used_for_extra)
        images, masks = augment(batch.images, extra.masks.rows(batch.rows), params, self._tiles)
        images = images if context.config.channels_last else images.contiguous()
        share = len(images) * context.ranks.world_size / context.batch_size
        pieces = math.gcd(len(images), context.config.accumulate)
        with running_statistics_kept(self.network):
            if extra.labels is not None:
                parts, _ = backward(
                    self.network,
                    images,
                    extra.labels[batch.rows],
                    masks,
                    context.loss,
                    loss_function=functools.partial(total_loss, triplets=False),
                    precision=self._precision,
                    pieces=pieces if len(images) > pieces else 1,
                    gather=self._gathers,
                    scale=lambda total: self.scaler.scale(share * total),
                )
                return share * parts.total.detach().unsqueeze(0)
            assert isinstance(self.network, SGSFA)
            with self._precision():
                _, body_logits, part_logits = self.network.predict(images)
            weight = share * context.loss.balance * context.loss.mask_weight
            loss = weight * mask_loss(body_logits, part_logits, masks)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            return loss.detach().unsqueeze(0)


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of `values` over all processes."""
    dist.all_reduce(values)
    return values / dist.get_world_size()
