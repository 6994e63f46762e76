import os
import sys
import threading

import pytest

from pipeline.errors import ConfigError, DeviceError, ImageError
from pipeline.runtime import parallel
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


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        yield cluster


def worker_address(_):
    from distributed import get_worker

    return get_worker().address


def test_parallel_map__dask_without_workers_waits_with_lines_and_then_ends(cluster, monkeypatch, caplog):
    monkeypatch.setattr(parallel, "_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(parallel, "_LINE_SECONDS", 0.3)
    address = cluster.scheduler_address
    with pytest.raises(ConfigError, match="no Dask worker") as caught:
        list(parallel_map(square, range(2), backend="dask", jobs=1, scheduler=address))
    assert address in (caught.value.hint or "")
    assert sum("waiting for Dask workers" in text for text in caplog.messages) >= 2


def test_parallel_map__one_dask_worker_does_the_work(cluster, caplog):
    caplog.set_level("INFO", logger="sgsfa")
    cluster.scale(1)
    found = list(parallel_map(worker_address, range(3), backend="dask", jobs=1, scheduler=cluster.scheduler_address))
    assert set(found) == {worker.address for worker in cluster.workers.values()}
    assert any("1 worker on 1 machine, 1 threads" in text for text in caplog.messages)


def test_parallel_map__dask_workers_are_asked_for_the_first_image(cluster, tmp_path):
    cluster.scale(1)
    options = {"backend": "dask", "jobs": 1, "scheduler": cluster.scheduler_address}
    (tmp_path / "a.jpg").touch()
    assert list(parallel_map(square, range(3), needed=tmp_path / "a.jpg", **options)) == [0, 1, 4]
    with pytest.raises(ConfigError, match="1 of 1 Dask workers cannot read the first image") as caught:
        list(parallel_map(square, range(3), needed=tmp_path / "b.jpg", **options))
    assert caught.value.where == str(tmp_path / "b.jpg")


def die(number):
    os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_parallel_map__killed_worker_process_is_reported():
    with pytest.raises(DeviceError, match="was killed") as caught:
        list(parallel_map(die, range(4), backend="loky", jobs=2))
    assert "jobs=1" in (caught.value.hint or "")


def test_worker_count__minds_the_quota_of_a_container(monkeypatch):
    from joblib.externals.loky.backend import context

    monkeypatch.setattr(context, "_cpu_count_cgroup", lambda cores: 0.5)
    assert worker_count(-1) == 1
