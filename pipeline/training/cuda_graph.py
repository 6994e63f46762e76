"""The work of a step on a GPU as a CUDA graph: captured once, then launched as a whole.

A step has some two thousand kernels, and the host needs microseconds to launch each: more than a fast GPU needs to
compute them. A captured step reads its inputs and leaves its results at fixed addresses, and nothing in it may depend
on the host or wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from pipeline.errors import DeviceError
from pipeline.runtime.memory import out_of_memory
from pipeline.training.tree import tensors_of, with_tensors

_log = logging.getLogger("sgsfa.training")

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")

_EAGER_CALLS = 3
"""Calls before the capture, in which kernels are chosen, constants are made and libraries allocate their memory."""


class GraphedStep(Generic[Inputs, Outputs]):
    """Work on a GPU that is captured as a CUDA graph at its fourth call.

    The kernels are those of the eager calls, so that results do not depend on when it was captured.

    Args:
        work: Takes and returns dataclasses of tensors (`tree`) and changes nothing else but gradients, which it sets
            to None before it makes new ones. Its inputs have the same shapes at every call.
        device: The current GPU.
    """

    def __init__(self, work: Callable[[Inputs], Outputs], device: torch.device) -> None:
        self._work, self._device = work, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Inputs | None = None
        self._outputs: Outputs | None = None

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph by now."""
        return self._outputs is not None

    def __call__(self, inputs: Inputs) -> Outputs:
        """Do the work.

        Returns:
            Tensors of the caller's own. The next call overwrites the gradients.

        Raises:
            DeviceError: The work cannot be captured.
        """
        self._calls += 1
        if self._calls == _EAGER_CALLS + 1:
            self._capture(inputs)
        if self._graph is None or self._outputs is None:
            with self._side_stream():
                return self._work(inputs)
        for static, value in zip(tensors_of(self._inputs), tensors_of(inputs), strict=True):
            assert static.shape == value.shape, "a graph takes inputs of one shape"
            static.copy_(value, non_blocking=True)
        self._graph.replay()
        return with_tensors(self._outputs, [tensor.clone() for tensor in tensors_of(self._outputs)])

    def _capture(self, inputs: Inputs) -> None:
        # Kept whatever happens: after a failure the allocator of torch before 2.13 still uses it.
        self._graph = torch.cuda.CUDAGraph()
        now = torch.cuda.current_stream(self._device)
        try:
            static = with_tensors(inputs, [tensor.clone() for tensor in tensors_of(inputs)])
            # Other threads (the prefetcher's) may allocate memory meanwhile. The outer block restores the stream,
            # which torch before 2.13 does not do after a failure.
            with (
                torch.cuda.stream(now),
                torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                outputs = self._work(static)
        except Exception as error:
            # The end of a capture only says that something failed before.
            cause = error.__context__ if isinstance(error.__context__, Exception) else error
            if out_of_memory(cause):
                _log.warning("not enough GPU memory for a CUDA graph of the steps: continuing without one")
                return
            # Torch's generators and allocator may still be in capture mode, so the run cannot continue.
            raise DeviceError(
                "a training step cannot be captured as a CUDA graph",
                expected="a network whose forward and backward pass never wait for the GPU",
                hint="set train.cuda_graph=false and start again; the result is the same",
                cause=cause,
            ) from error
        self._inputs, self._outputs = static, outputs

    @contextmanager
    def _side_stream(self) -> Iterator[None]:
        """Work on the stream of the later capture: autograd accumulates a gradient on the stream it first used."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            yield
        now.wait_stream(self._stream)
