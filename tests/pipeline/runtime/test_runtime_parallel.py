import os
import sys
import threading

import pytest

from pipeline.errors import ConfigError, ImageError
from pipeline.runtime.parallel import limit_threads, parallel_map, worker_count


def square(number):
    return number * number


def process_and_threads(_):
    import torch

    return os.getpid(), torch.get_num_threads()


def fail_on_three(number):
    if number == 3:
        raise ImageError("broken", where="3.jpg", hint="look at it")
    return number


@pytest.mark.parametrize("backend", ["none", "threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_results_come_in_order(backend):
    assert list(parallel_map(square, range(20), backend=backend, jobs=2)) == [n * n for n in range(20)]


def test_nothing_is_taken_before_it_is_asked_for():
    taken = []

    def items():
        for number in range(5):
            taken.append(number)
            yield number

    results = parallel_map(square, items(), backend="none", jobs=1)
    assert next(results) == 0
    assert taken == [0]


def test_threads_share_this_process():
    both = threading.Barrier(2, timeout=60)

    def meet(_):
        both.wait()
        return os.getpid(), threading.get_ident()

    found = list(parallel_map(meet, range(2), backend="threading", jobs=2))
    assert {pid for pid, _ in found} == {os.getpid()}
    assert len({thread for _, thread in found}) == 2


@pytest.mark.slow
def test_processes_compute_with_one_thread_each():
    import torch  # noqa: F401

    found = list(parallel_map(process_and_threads, range(4), backend="loky", jobs=2))
    assert all(pid != os.getpid() for pid, _ in found)
    assert [threads for _, threads in found] == [1] * 4


@pytest.mark.slow
def test_an_error_of_a_worker_keeps_its_parts():
    with pytest.raises(ImageError) as caught:
        list(parallel_map(fail_on_three, range(6), backend="loky", jobs=2))
    assert caught.value.where == "3.jpg"
    assert caught.value.hint == "look at it"


@pytest.mark.slow
def test_dask_workers_on_this_machine():
    pytest.importorskip("distributed")
    assert list(parallel_map(square, range(8), backend="dask", jobs=2)) == [n * n for n in range(8)]


def test_a_scheduler_that_is_not_there():
    pytest.importorskip("distributed")
    with pytest.raises(ConfigError, match="scheduler"):
        list(parallel_map(square, range(2), backend="dask", jobs=1, scheduler="nonsense://nowhere"))


def test_dask_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError) as caught:
        list(parallel_map(square, [1], backend="dask", jobs=1))
    assert "dask[distributed]" in (caught.value.hint or "")


def test_worker_counts():
    assert worker_count(3) == 3
    assert worker_count(-1) >= 1
    for wrong in (0, -2):
        with pytest.raises(ConfigError):
            worker_count(wrong)


def test_threads_are_limited_where_a_library_is_loaded():
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
