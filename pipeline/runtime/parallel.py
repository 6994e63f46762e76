"""Spread a function over workers, in this process, over processes or over a Dask cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

from pipeline.errors import ConfigError

Backend = Literal["none", "loky", "threading", "dask"]

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    backend: Backend,
    jobs: int,
    scheduler: str | None = None,
) -> Iterator[R]:
    """Apply `function` to each of `items` and yield the results in the items' order.

    Items are taken as workers become free. Results wait in memory for their turn, and for a reader that is slower than
    the workers together; keep them small. A worker's libraries compute with one thread each; the workers are the
    parallelism. An error in a worker is raised here.

    Args:
        function: What to do with one item; for `loky` and `dask` it must be picklable.
        items: The inputs.
        backend: `none` (this process, lazily), `loky` (processes), `threading`, or `dask`.
        jobs: Workers; -1 is one for each core that this process may use. Dask decides by its cluster.
        scheduler: Address of a Dask scheduler, as in `tcp://10.0.0.1:8786`; None starts workers on this machine.

    Raises:
        ConfigError: `jobs` is 0 or less than -1, or Dask is asked for and not installed or not reached.
    """
    count = worker_count(jobs)
    if backend == "none" or (backend == "loky" and count == 1):
        return map(function, items)
    if backend == "dask":
        return _dask(function, items, count, scheduler)
    return _joblib(function, items, backend, count)


def worker_count(jobs: int) -> int:
    """How many workers `jobs` means: -1 is the number of cores that this process may use.

    Raises:
        ConfigError: `jobs` is 0 or less than -1.
    """
    if jobs == 0 or jobs < -1:
        raise ConfigError(f"{jobs} is not a number of workers", expected="1 or more, or -1 for one a core")
    if jobs > 0:
        return jobs
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _joblib(function: Callable[[T], R], items: Iterable[T], backend: Backend, count: int) -> Iterator[R]:
    import joblib

    options = {"inner_max_num_threads": 1} if backend == "loky" else {}
    with joblib.parallel_config(backend=backend, n_jobs=count, **options):
        work = joblib.Parallel(return_as="generator")
        yield from work(joblib.delayed(_single_threaded)(function, item, backend) for item in items)


def _dask(function: Callable[[T], R], items: Iterable[T], count: int, scheduler: str | None) -> Iterator[R]:
    try:
        import joblib
        from distributed import Client

        connect: Any = Client  # its types are incomplete
    except ImportError:
        raise ConfigError("the Dask back end is not installed", hint='pip install "dask[distributed]"') from None
    try:
        if scheduler is None:
            client = connect(n_workers=count, threads_per_worker=1, dashboard_address=None)
        else:
            client = connect(scheduler, timeout="30s")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the Dask scheduler cannot be reached: {error}", where=scheduler) from error
    with client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=60):
        work = joblib.Parallel(return_as="generator")
        yield from work(joblib.delayed(_single_threaded)(function, item, "dask") for item in items)


def _single_threaded(function: Callable[[T], R], item: T, backend: Backend) -> R:
    # Threads share one process, whose setting belongs to the caller.
    if backend != "threading":
        limit_threads()
    return function(item)


def limit_threads() -> None:
    """Have this process compute with one thread in those of OpenCV, torch and numba that are loaded."""
    for module, count, limit in (
        ("numba", "get_num_threads", "set_num_threads"),
        ("cv2", "getNumThreads", "setNumThreads"),
        # Last: they share an OpenMP runtime, and the others' calls may raise torch's count again.
        ("torch", "get_num_threads", "set_num_threads"),
    ):
        library = sys.modules.get(module)
        if library is not None and getattr(library, count)() != 1:
            getattr(library, limit)(1)
