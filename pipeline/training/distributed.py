"""Training in several processes: replicas that share gradients, and losses over the batch of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def replicate(model: nn.Module, device: torch.device) -> nn.Module:
    """The model whose gradients are averaged over all processes in the backward pass.

    Running statistics are those of rank 0, sent to the others before each forward pass; all start from its weights.
    """
    # Every parameter takes part in every backward pass (see `step.py`), so none needs to be searched for.
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def gather_rows(mine: Tensor) -> Tensor:
    """Rows of all processes in order of rank. Only this process's own rows carry a gradient."""
    pieces = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, mine.detach().contiguous())
    pieces[dist.get_rank()] = mine
    return torch.cat(pieces)


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of `values` over all processes."""
    dist.all_reduce(values)
    return values / dist.get_world_size()


@contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Inside, backward passes add up gradients without exchanging them; the next one outside exchanges the sum."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield
