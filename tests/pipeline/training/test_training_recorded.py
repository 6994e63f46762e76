"""Recording a step, with a graph of the test's own: on a real GPU `test_training_gpu` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from test_training_compile import Warnings
from torch import Tensor

from pipeline.training.recorded import Recorded


@dataclass(frozen=True)
class Pair:
    one: Tensor
    two: Tensor


class Stream:
    def wait_stream(self, other: object) -> None:
        pass


class Graph:
    """Repeats the work on the places that it was recorded with, and leaves the results where they were."""

    def __init__(self) -> None:
        self.replay: Callable[[], None] = lambda: None


class Doubling:
    """Work that counts its calls and, as CUDA's does, cannot wait while it is recorded."""

    def __init__(self, *, waits: bool = False) -> None:
        self.calls, self.waits, self.recording = 0, waits, False
        self.places: Pair | None = None
        self.made: Pair | None = None

    def __call__(self, given: Pair) -> Pair:
        self.calls += 1
        if self.recording and self.waits:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        made = Pair(given.one * 2, given.one + given.two)
        if self.recording:
            self.places, self.made = given, made
        return made

    def repeat(self) -> None:
        assert self.places is not None
        assert self.made is not None
        self.made.one.copy_(self.places.one * 2)
        self.made.two.copy_(self.places.one + self.places.two)


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> Doubling:
    work = Doubling()

    @contextmanager
    def recording(graph: Graph, **options: object) -> Iterator[None]:
        work.recording = True
        try:
            yield
        finally:
            work.recording = False
        graph.replay = work.repeat

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    return work


def given(number: int) -> Pair:
    return Pair(torch.full((3,), float(number)), torch.arange(3.0))


def test_it_is_recorded_at_the_fourth_call_and_results_are_the_callers(doubling: Doubling) -> None:
    warned = Warnings()
    work = Recorded(doubling, warned)
    made = []
    for number in range(7):
        assert work.recorded is (number > 3)
        made.append(work(given(number)))
    assert doubling.calls == 4
    for number, pair in enumerate(made):
        assert torch.equal(pair.one, torch.full((3,), 2.0 * number))
        assert torch.equal(pair.two, number + torch.arange(3.0))
    assert not warned.said


def test_what_cannot_be_recorded_is_said_once_and_goes_on(doubling: Doubling) -> None:
    warned, doubling.waits = Warnings(), True
    work = Recorded(doubling, warned)
    for number in range(6):
        assert torch.equal(work(given(number)).one, torch.full((3,), 2.0 * number))
        assert not work.recorded
    assert len(warned.said) == 1
    assert warned.said[0].endswith("going on without: operation not permitted when stream is capturing")
