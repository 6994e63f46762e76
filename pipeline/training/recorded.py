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

from pipeline.runtime.progress import Progress
from pipeline.training.tree import tensors_of, with_tensors

Given = TypeVar("Given")
Made = TypeVar("Made")

_PLAIN_CALLS = 3
"""Calls before the recording, in which kernels are chosen, constants are made and libraries take their memory."""


class Recorded(Generic[Given, Made]):
    """Work on a GPU that becomes a CUDA graph at its fourth call.

    The kernels are those of the plain calls, so that it makes no difference to a result when it was recorded. Where
    recording fails, it says so and goes on as before.

    Args:
        work: Takes and returns dataclasses of tensors (`tree`) and touches nothing else on the host but gradients,
            which it sets to None before it makes new ones. All its inputs have the same shapes at every call.
        progress: Where to report a failure.
    """

    def __init__(self, work: Callable[[Given], Made], progress: Progress) -> None:
        self._work, self._progress = work, progress
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._plain_calls: int | None = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: Given | None = None
        self._made: Made | None = None

    @property
    def recorded(self) -> bool:
        """Whether calls replay a recording by now."""
        return self._graph is not None

    def __call__(self, given: Given) -> Made:
        """Do the work.

        Returns:
            Tensors of the caller's own. Gradients lie where the next call will overwrite them.
        """
        if self._plain_calls is not None and self._plain_calls >= _PLAIN_CALLS:
            self._plain_calls = None
            self._record(given)
        if self._graph is None:
            if self._plain_calls is not None:
                self._plain_calls += 1
            with self._aside():
                return self._work(given)
        assert self._made is not None
        for place, value in zip(tensors_of(self._given), tensors_of(given), strict=True):
            place.copy_(value, non_blocking=True)
        self._graph.replay()
        return with_tensors(self._made, [tensor.clone() for tensor in tensors_of(self._made)])

    def _record(self, given: Given) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            places = with_tensors(given, [tensor.clone() for tensor in tensors_of(given)])
            # Other threads (the feeder's) may take memory meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                made = self._work(places)
        except Exception as error:
            # Whatever cannot be recorded, in whatever layer, works without.
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._progress.warn(f"the step cannot be recorded as a CUDA graph, going on without: {said}")
            return
        self._graph, self._given, self._made = graph, places, made

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream that is recorded later: autograd remembers which one a parameter's gradient came by."""
        now = torch.cuda.current_stream()
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            yield
        now.wait_stream(self._stream)
