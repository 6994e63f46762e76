"""Spread a function over workers: in this process, over processes or over a Dask cluster."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, DeviceError

Backend = Literal["none", "loky", "threading", "dask"]

T = TypeVar("T")
R = TypeVar("R")

_LOG = logging.getLogger("sgsfa.workers")
_WAIT_SECONDS = 60.0
_LINE_SECONDS = 5.0


def parallel_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    backend: Backend,
    jobs: int,
    scheduler: str | None = None,
    needed: Path | None = None,
) -> Iterator[R]:
    """Apply `function` to each of `items` and yield the results in the items' order.

    Items are taken as workers become free. Results wait in memory for their turn, and for a caller that is slower than
    the workers together; keep them small. A worker's libraries compute with one thread each; the workers are the
    parallelism. An error in a worker is raised here.

    Args:
        function: Applied to one item; for `loky` and `dask` it must be picklable.
        items: The inputs.
        backend: `none` (this process, lazily), `loky` (processes), `threading`, or `dask`.
        jobs: Workers; -1 is one per core that this process may use. A Dask scheduler has its own.
        scheduler: Address of a Dask scheduler, as in `tcp://10.0.0.1:8786`; None starts workers on this machine.
        needed: A file that every Dask worker must be able to read; each is asked once before the work begins.

    Raises:
        ConfigError: `jobs` is 0 or less than -1, or Dask is not installed, has no workers or workers without the file.
        DeviceError: The system killed a worker process.
    """
    count = worker_count(jobs)
    if backend == "none" or (backend == "loky" and count == 1):
        return map(function, items)
    if backend == "dask":
        return _dask(function, items, count, scheduler, needed)
    return _joblib(function, items, backend, count)


def worker_count(jobs: int) -> int:
    """Return how many workers `jobs` means: -1 is the number of cores that this process may use.

    A container's CPU quota counts, too.

    Raises:
        ConfigError: `jobs` is 0 or less than -1.
    """
    if jobs == 0 or jobs < -1:
        raise ConfigError(f"{jobs} is not a number of workers", expected="1 or more, or -1 for one per core")
    if jobs > 0:
        return jobs
    from joblib import cpu_count

    return int(cpu_count())


def _joblib(function: Callable[[T], R], items: Iterable[T], backend: Backend, count: int) -> Iterator[R]:
    import joblib
    from joblib.externals.loky.process_executor import BrokenProcessPool

    options = {"inner_max_num_threads": 1} if backend == "loky" else {}
    try:
        with joblib.parallel_config(backend=backend, n_jobs=count, **options):
            work = joblib.Parallel(return_as="generator")
            yield from work(joblib.delayed(_single_threaded)(function, item, backend) for item in items)
    except BrokenProcessPool as error:
        raise DeviceError(
            f"one of the {count} worker processes was killed, usually for lack of memory",
            hint=f"fewer workers (jobs={max(1, count // 2)}) or a smaller batch size",
            cause=error,
        ) from error


def _dask(
    function: Callable[[T], R], items: Iterable[T], count: int, scheduler: str | None, needed: Path | None
) -> Iterator[R]:
    with _connect(count, scheduler) as client:
        threads = _await_workers(client, scheduler)
        if needed is not None:
            _require_readable(client, needed)
        # Not joblib's Dask backend: with one worker it computes in this process.
        window = 2 * sum(threads.values())
        pending: deque[Any] = deque()
        for item in items:
            pending.append(client.submit(_single_threaded, function, item, "dask", pure=False))
            if len(pending) > window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _connect(count: int, scheduler: str | None) -> Any:
    try:
        from distributed import Client

        connect: Any = Client  # its types are incomplete
    except ImportError:
        raise ConfigError("Dask is not installed", hint='pip install "dask[distributed]"') from None
    try:
        if scheduler is None:
            return connect(n_workers=count, threads_per_worker=1, dashboard_address=None)
        return connect(scheduler, timeout="15s")
    except (OSError, ValueError) as error:
        raise ConfigError("the Dask scheduler cannot be reached", where=scheduler, cause=error) from error


def _await_workers(client: Any, scheduler: str | None) -> dict[str, int]:
    """Wait for at least one worker and report how many there are; returns their threads by address."""
    address = scheduler or client.scheduler.address
    begin = shown = time.monotonic()
    while not (threads := dict(client.nthreads())):
        now = time.monotonic()
        if now - begin >= _WAIT_SECONDS:
            raise ConfigError(
                f"no Dask worker within {_WAIT_SECONDS:.0f} s: the scheduler has none",
                where=address,
                hint=f"start workers: dask worker {address}",
            )
        if now - shown >= _LINE_SECONDS:
            shown = now
            _LOG.warning("waiting for Dask workers at %s (%.0f of %.0f s)", address, now - begin, _WAIT_SECONDS)
        time.sleep(0.2)
    hosts = {urlsplit(worker).hostname or worker for worker in threads}
    _LOG.info(
        "Dask: %d %s on %d %s, %d threads",
        len(threads), "worker" if len(threads) == 1 else "workers",
        len(hosts), "machine" if len(hosts) == 1 else "machines", sum(threads.values()),
    )  # fmt: skip
    return threads


def _require_readable(client: Any, path: Path) -> None:
    answers: dict[str, str | None] = client.run(_why_unreadable, path)
    failing = {worker: reason for worker, reason in answers.items() if reason is not None}
    if failing:
        worker, reason = next(iter(failing.items()))
        raise ConfigError(
            f"{len(failing)} of {len(answers)} Dask workers cannot read the first image: {reason}",
            where=path,
            expected=f"the same path on every worker, also on {worker}",
            hint="put the images on a disk that all machines mount at the same place",
        )


def _why_unreadable(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


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
