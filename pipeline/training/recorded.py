"""A step's work on a GPU, recorded once and from then on started as a whole.

A step is some two thousand kernels, and the host needs microseconds to launch each: more than a fast GPU needs to
compute them. A CUDA graph is launched at once. What is recorded reads its inputs and leaves its results at fixed places
in memory, and nothing in it may depend on the host or wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from pipeline.errors import DeviceError, first_line
from pipeline.runtime.device import memory_exhausted
from pipeline.runtime.progress import Progress
from pipeline.training.tree import tensors_of, with_tensors

Given = TypeVar("Given")
Made = TypeVar("Made")

_PLAIN_CALLS = 3
"""Calls before the recording, in which kernels are chosen, constants are made and libraries take their memory."""


class Recorded(Generic[Given, Made]):
    """Work on a GPU that becomes a CUDA graph at its fourth call.

    The kernels are those of the plain calls, so that it makes no difference to a result when it was recorded.

    Args:
        work: Takes and returns dataclasses of tensors (`tree`) and touches nothing else on the host but gradients,
            which it sets to None before it makes new ones. All its inputs have the same shapes at every call.
        device: The GPU that works; also the current one.
        progress: Told where there is no memory for a recording. Work then goes on as before.
    """

    def __init__(self, work: Callable[[Given], Made], device: torch.device, progress: Progress) -> None:
        self._work, self._device, self._progress = work, device, progress
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: Given | None = None
        self._made: Made | None = None

    @property
    def recorded(self) -> bool:
        """Whether calls replay a recording by now."""
        return self._made is not None

    def __call__(self, given: Given) -> Made:
        """Do the work.

        Returns:
            Tensors of the caller's own. Gradients lie where the next call will overwrite them.

        Raises:
            DeviceError: The work cannot be recorded.
        """
        self._calls += 1
        if self._calls == _PLAIN_CALLS + 1:
            self._record(given)
        if self._graph is None or self._made is None:
            with self._aside():
                return self._work(given)
        for place, value in zip(tensors_of(self._given), tensors_of(given), strict=True):
            assert place.shape == value.shape, "a recording is of inputs of one shape"
            place.copy_(value, non_blocking=True)
        self._graph.replay()
        return with_tensors(self._made, [tensor.clone() for tensor in tensors_of(self._made)])

    def _record(self, given: Given) -> None:
        # Kept whatever happens: after a failure the allocator of torch before 2.13 still asks it.
        self._graph = torch.cuda.CUDAGraph()
        now = torch.cuda.current_stream(self._device)
        try:
            places = with_tensors(given, [tensor.clone() for tensor in tensors_of(given)])
            # Other threads (the feeder's) may take memory meanwhile. The outer block puts the stream back, which
            # torch before 2.13 does not do after a failure.
            with (
                torch.cuda.stream(now),
                torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                made = self._work(places)
        except Exception as error:
            # What ends the recording says only that something was wrong before.
            cause = error.__context__ if isinstance(error.__context__, Exception) else error
            if memory_exhausted(cause):
                self._progress.warn("there is no memory to record the steps as a CUDA graph; going on without")
                return
            # Torch's generators and allocator may still take a recording for under way, so nothing can go on.
            raise DeviceError(
                f"a training step cannot be recorded as a CUDA graph: {first_line(cause)}",
                expected="a network whose forward and backward pass never wait for the GPU",
                hint="set train.cuda_graph=false and start again; the result is the same",
            ) from error
        self._given, self._made = places, made

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream that is recorded later: autograd remembers which one a parameter's gradient came by."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            yield
        now.wait_stream(self._stream)
