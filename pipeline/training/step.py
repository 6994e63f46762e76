"""The gradient of one batch, in one piece or several, in one process or several.

The loss of a batch mines triplets among all its images, so it is no sum over pieces. It is therefore computed once,
on the network's outputs for the whole batch; its gradient with respect to these outputs is then sent back through the
network. With several pieces the outputs are first made without a graph, and each piece is run again with one when its
turn comes to send its gradient back: memory for one piece's graph, at the price of a second forward pass. Batch
normalisation sees each piece by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import LossConfig
from pipeline.model.losses import LossParts, total_loss
from pipeline.model.output import NetworkOutput
from pipeline.runtime.device import Context
from pipeline.training.distributed import gather_rows, unsynchronised
from pipeline.training.tree import joined, tensors_of, with_tensors

LossFunction = Callable[[NetworkOutput, Tensor, Tensor, Tensor, Tensor, LossConfig, Tensor | None], LossParts]
"""`total_loss`, or its compiled form."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch on the device, augmented.

    Attributes:
        images: (B, 3, H, W) normalised float32.
        labels: (B,) int64 classes.
        body: (B, 1, H/4, W/4) float32 body masks in [0, 1].
        parts: (B, 4, H/16, W/16) float32 part masks in [0, 1].
        has_mask: (B,) bool.
        given: (4,) bool, which parts the masks can tell of; None: all.
    """

    images: Tensor
    labels: Tensor
    body: Tensor
    parts: Tensor
    has_mask: Tensor
    given: Tensor | None = None


def backward(
    model: nn.Module,
    batch: Batch,
    loss: LossConfig,
    *,
    loss_function: LossFunction = total_loss,
    precision: Context = nullcontext,
    pieces: int = 1,
    gather: bool = False,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> tuple[LossParts, NetworkOutput]:
    """Add the gradient of a batch's loss to the parameters' `grad`.

    Args:
        model: In training mode; replicated (`distributed.replicate`) where there are several processes.
        batch: This process's images.
        loss: The loss's weights and choices.
        loss_function: What computes it.
        precision: Makes the context of forward passes (autocast).
        pieces: Forwards that the batch is split into; it must divide the batch's size.
        gather: Take the loss over the images of all processes. The gradient is then that of a single process with
            the whole batch; otherwise it is the mean of the processes' own.
        scale: Scales the loss before its gradient is taken (fp16).

    Returns:
        The loss, unscaled, and the outputs for this process's images without graph.
    """
    chunks = batch.images.chunk(pieces)
    if pieces == 1:
        with precision():
            attached = model(batch.images)
        output = attached
    else:
        with torch.no_grad(), running_statistics_kept(model), precision():
            output = joined([_bare(model)(chunk) for chunk in chunks])
    output = cast(NetworkOutput, output)
    # Leaves in float32: the loss is computed outside of autocast.
    leaves = [_leaf(tensor) for tensor in tensors_of(output)]
    detached = with_tensors(output, leaves)
    parts = _loss(detached, batch, loss, loss_function, gather)
    total = parts.total * dist.get_world_size() if gather else parts.total
    (total if scale is None else scale(total)).backward()  # type: ignore[no-untyped-call]
    # An output that the loss does not touch passes zeros on: every parameter has a gradient in every process.
    gradients = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    if pieces == 1:
        _send_back(tensors_of(attached), gradients)
    else:
        slices = list(zip(*(gradient.chunk(pieces) for gradient in gradients), strict=True))
        for number, (chunk, own) in enumerate(zip(chunks, slices, strict=True)):
            last = number == pieces - 1
            with nullcontext() if last else unsynchronised(model):
                with precision():
                    again = model(chunk)
                _send_back(tensors_of(again), own)
    return parts, with_tensors(output, [leaf.detach() for leaf in leaves])


def _leaf(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float().requires_grad_() if tensor.is_floating_point() else tensor


def _loss(output: NetworkOutput, batch: Batch, loss: LossConfig, function: LossFunction, gather: bool) -> LossParts:
    if gather:
        output = with_tensors(output, [gather_rows(tensor) for tensor in tensors_of(output)])
        batch = Batch(
            batch.images,
            gather_rows(batch.labels),
            gather_rows(batch.body),
            gather_rows(batch.parts),
            gather_rows(batch.has_mask),
            batch.given,
        )
    return function(output, batch.labels, batch.body, batch.parts, batch.has_mask, loss, batch.given)


def _send_back(outputs: list[Tensor], gradients: list[Tensor] | tuple[Tensor, ...]) -> None:
    pairs = [(out, grad.to(out.dtype)) for out, grad in zip(outputs, gradients, strict=True) if out.requires_grad]
    torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])


def _bare(model: nn.Module) -> nn.Module:
    """Without the replication, whose bookkeeping counts forwards."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Forwards inside use the batch's statistics but leave the running ones alone, lest they be counted twice."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
