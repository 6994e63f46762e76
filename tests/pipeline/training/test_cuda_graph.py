"""Capturing a step, with a stand-in for the CUDA graph; `test_gpu` does it on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline.errors import DeviceError
from pipeline.training.cuda_graph import GraphedStep


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


def test_step__captured_at_the_fourth_call_and_results_are_the_callers(
    doubling: Doubling, caplog: pytest.LogCaptureFixture
) -> None:
    work = GraphedStep(doubling, torch.device("cuda", 0))
    made = []
    for number in range(7):
        assert work.captured is (number > 3)
        made.append(work(given(number)))
    assert doubling.calls == 4
    for number, pair in enumerate(made):
        assert torch.equal(pair.one, torch.full((3,), 2.0 * number))
        assert torch.equal(pair.two, number + torch.arange(3.0))
    assert not caplog.records


def test_step__continues_without_memory_for_a_graph(doubling: Doubling, caplog: pytest.LogCaptureFixture) -> None:
    doubling.greedy = True
    work = GraphedStep(doubling, torch.device("cuda", 0))
    for number in range(6):
        assert torch.equal(work(given(number)).one, torch.full((3,), 2.0 * number))
        assert not work.captured
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "CUDA graph" in caplog.text


def test_step__failed_capture_ends_with_its_cause_and_advice(doubling: Doubling) -> None:
    doubling.waits = True
    work = GraphedStep(doubling, torch.device("cuda", 0))
    for number in range(3):
        work(given(number))
    with pytest.raises(DeviceError) as caught:
        work(given(3))
    assert "CUDA graph" in caught.value.message
    assert "operation not permitted when stream is capturing" in (caught.value.cause or "")
    assert "train.cuda_graph=false" in (caught.value.hint or "")


def test_step__inputs_of_another_shape_are_refused(doubling: Doubling) -> None:
    work = GraphedStep(doubling, torch.device("cuda", 0))
    for number in range(4):
        work(given(number))
    with pytest.raises(AssertionError, match="one shape"):
        work(Pair(torch.zeros(1), torch.zeros(3)))
