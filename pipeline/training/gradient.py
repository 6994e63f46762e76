"""The gradient of one batch, in one or several pieces and processes.

The loss of a batch mines triplets among all its images, so it is not a sum over pieces. It is computed once, on the
network's outputs for the whole batch, and its gradient with respect to these outputs is propagated through the network.
With several pieces the outputs are first computed without a graph, and each piece is run again with one when its
gradient is propagated: memory for the graph of one piece, at the cost of a second forward pass. Batch normalisation
normalises each piece by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import LossConfig
from pipeline.model.losses import LossParts, total_loss
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.output import NetworkOutput
from pipeline.runtime.device import Context
from pipeline.training.tree import joined, tensors_of, with_tensors

LossFunction = Callable[[NetworkOutput, Tensor, MaskTargets, LossConfig], LossParts]
"""`total_loss`, eager or compiled."""


def backward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    masks: MaskTargets,
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
        model: In training mode; replicated where there are several processes.
        images: (B, 3, H, W) normalised float32, this process's images.
        labels: (B,) int64, their classes.
        masks: Their masks, augmented.
        loss: Configuration of the loss.
        loss_function: Computes it.
        precision: Returns the context of a forward pass (autocast).
        pieces: Number of equal pieces that the batch is split into.
        gather: Compute the loss over the images of all processes. The gradient is then that of a single process with
            the whole batch; otherwise it is the mean over the processes.
        scale: Scales the loss before its gradient is computed (fp16).

    Returns:
        The unscaled loss, and the outputs for this process's images without graph.
    """
    chunks = images.chunk(pieces)
    output: NetworkOutput
    if pieces == 1:
        with precision():
            output = model(images)
    else:
        with torch.no_grad(), running_statistics_kept(model), precision():
            output = joined([_bare(model)(chunk) for chunk in chunks])
    # In float32: the loss is computed outside of autocast.
    leaves = [_leaf(tensor) for tensor in tensors_of(output)]
    seen = with_tensors(output, leaves)
    if gather:
        seen = with_tensors(seen, [gather_rows(tensor) for tensor in leaves])
        labels, masks = gather_rows(labels), masks.mapped(gather_rows)
    parts = loss_function(seen, labels, masks, loss)
    total = parts.total * dist.get_world_size() if gather else parts.total
    (total if scale is None else scale(total)).backward()  # type: ignore[no-untyped-call]
    # An output that the loss does not use propagates zeros: every parameter has a gradient in every process.
    gradients = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    if pieces == 1:
        _propagate(tensors_of(output), gradients)
    else:
        slices = list(zip(*(gradient.chunk(pieces) for gradient in gradients), strict=True))
        for number, (chunk, own) in enumerate(zip(chunks, slices, strict=True)):
            # The last piece exchanges the sum of the gradients.
            early = number < pieces - 1
            with model.no_sync() if early and isinstance(model, DistributedDataParallel) else nullcontext():
                with precision():
                    again = model(chunk)
                _propagate(tensors_of(again), own)
    return parts, with_tensors(output, [leaf.detach() for leaf in leaves])


def _leaf(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float().requires_grad_() if tensor.is_floating_point() else tensor


def gather_rows(mine: Tensor) -> Tensor:
    """Return the rows of all processes by rank; only those of this process carry a gradient."""
    pieces = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, mine.detach().contiguous())
    pieces[dist.get_rank()] = mine
    return torch.cat(pieces)


def _propagate(outputs: list[Tensor], gradients: list[Tensor] | tuple[Tensor, ...]) -> None:
    pairs = [(out, grad.to(out.dtype)) for out, grad in zip(outputs, gradients, strict=True) if out.requires_grad]
    torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])


def _bare(model: nn.Module) -> nn.Module:
    """Return the network without its replication, which counts forward passes."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Leave running statistics unchanged by forward passes, which use those of the batch."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
