"""Training in several processes: replicas with common gradients, and losses over the batch of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a replica whose backward pass averages gradients over all processes.

    All replicas start from the weights of rank 0, and receive its running statistics before each forward pass.
    """
    # Every parameter has a gradient in every backward pass (`gradient.py`), so DDP needs no search for unused ones.
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def gather_rows(mine: Tensor) -> Tensor:
    """Return the rows of all processes by rank; only those of this process carry a gradient."""
    pieces = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, mine.detach().contiguous())
    pieces[dist.get_rank()] = mine
    return torch.cat(pieces)


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of `values` over all processes."""
    dist.all_reduce(values)
    return values / dist.get_world_size()


@contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Accumulate gradients without exchange; the next backward pass outside exchanges their sum."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield
