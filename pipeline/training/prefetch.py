"""Batches of training images on the device: sliced there where all fit, else fetched ahead by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.training.image_store import ImageStore
from pipeline.training.sampler import Rows

T = TypeVar("T")

_AHEAD = 2
_SHARE_OF_DEVICE = 0.3
"""Share of the GPU's free memory that images may take; the rest is left to the network."""


class Prefetcher:
    """Copies rows of an image store to a device."""

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        self._store = store
        self._device = device
        self._resident = torch.from_numpy(store.images).to(device) if _fits(store, device) else None

    def batches(self, plans: Iterable[T], rows: Callable[[T], Rows]) -> Iterator[tuple[T, Tensor]]:
        """Yield each plan with its images, (B, H, W, 3) uint8, in order.

        Args:
            plans: One per batch; taken at most two batches ahead.
            rows: Returns the rows of the store that a plan needs.
        """
        if self._resident is not None:
            for plan in plans:
                yield plan, self._resident.index_select(0, to_device(rows(plan), self._device))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
            waiting: deque[tuple[T, Future[Tensor]]] = deque()
            try:
                for plan in plans:
                    waiting.append((plan, pool.submit(self._gather, rows(plan))))
                    if len(waiting) > _AHEAD:
                        yield self._arrive(*waiting.popleft())
                while waiting:
                    yield self._arrive(*waiting.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, rows: Rows) -> Tensor:
        # Ascending order makes a mapped file's reads sequential.
        order = np.argsort(rows, kind="stable")
        images = np.empty((len(rows), *self._store.images.shape[1:]), np.uint8)
        images[order] = self._store.images[rows[order]]
        return _pinned(images, self._device)

    def _arrive(self, plan: T, batch: Future[Tensor]) -> tuple[T, Tensor]:
        return plan, batch.result().to(self._device, non_blocking=True)


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return the values on the device, without waiting for a GPU; on a CPU they share memory."""
    return _pinned(values, device).to(device, non_blocking=True)


def _pinned(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    # A copy from pageable memory waits for all work queued on the GPU.
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _fits(store: ImageStore, device: torch.device) -> bool:
    if not store.in_memory:
        return False
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return store.images.nbytes < _SHARE_OF_DEVICE * free
