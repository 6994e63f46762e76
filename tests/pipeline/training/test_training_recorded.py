"""Recording a step, with a graph of the test's own: on a real GPU `test_training_gpu` does it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from test_training_compile import Warnings
from torch import Tensor

from pipeline.errors import DeviceError
from pipeline.runtime.progress import SILENT
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
    """Work that counts its calls, and may wait for the GPU or want too much memory while it is recorded."""

    def __init__(self) -> None:
        self.calls, self.waits, self.greedy, self.recording = 0, False, False, False
        self.places: Pair | None = None
        self.made: Pair | None = None

    def __call__(self, given: Pair) -> Pair:
        self.calls += 1
        if self.recording and self.waits:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        if self.recording and self.greedy:
            raise torch.OutOfMemoryError("CUDA out of memory")
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

    class Recording:
        def __init__(self, graph: Graph, **options: object) -> None:
            self.graph = graph

        def __enter__(self) -> None:
            work.recording = True

        def __exit__(self, kind: type[Exception] | None, error: Exception | None, *_: object) -> None:
            work.recording = False
            if work.waits:
                # As torch does, which so hides what the error was.
                raise RuntimeError("operation failed due to a previous error during capture")
            self.graph.replay = work.repeat

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    return work


def given(number: int) -> Pair:
    return Pair(torch.full((3,), float(number)), torch.arange(3.0))


def test_it_is_recorded_at_the_fourth_call_and_results_are_the_callers(doubling: Doubling) -> None:
    warned = Warnings()
    work = Recorded(doubling, torch.device("cuda", 0), warned)
    made = []
    for number in range(7):
        assert work.recorded is (number > 3)
        made.append(work(given(number)))
    assert doubling.calls == 4
    for number, pair in enumerate(made):
        assert torch.equal(pair.one, torch.full((3,), 2.0 * number))
        assert torch.equal(pair.two, number + torch.arange(3.0))
    assert not warned.said


def test_without_memory_for_a_recording_it_goes_on(doubling: Doubling) -> None:
    warned, doubling.greedy = Warnings(), True
    work = Recorded(doubling, torch.device("cuda", 0), warned)
    for number in range(6):
        assert torch.equal(work(given(number)).one, torch.full((3,), 2.0 * number))
        assert not work.recorded
    assert len(warned.said) == 1
    assert "no memory to record" in warned.said[0]


def test_what_cannot_be_recorded_ends_with_its_cause_and_advice(doubling: Doubling) -> None:
    doubling.waits = True
    work = Recorded(doubling, torch.device("cuda", 0), SILENT)
    for number in range(3):
        work(given(number))
    with pytest.raises(DeviceError) as caught:
        work(given(3))
    assert caught.value.message.endswith("CUDA graph: operation not permitted when stream is capturing")
    assert "train.cuda_graph=false" in (caught.value.hint or "")


def test_inputs_of_another_shape_are_a_defect(doubling: Doubling) -> None:
    work = Recorded(doubling, torch.device("cuda", 0), SILENT)
    for number in range(4):
        work(given(number))
    with pytest.raises(AssertionError, match="one shape"):
        work(Pair(torch.zeros(1), torch.zeros(3)))
