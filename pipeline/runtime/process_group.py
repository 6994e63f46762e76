"""The processes of a run: one alone, or several that torchrun started.

Several processes are SPMD: each runs the same program. Rank 0 takes locks, writes files and reports; the collectives
are those of `torch.distributed`. When a process ends early, torchrun ends the others.

PyTorch is imported where it is used, because a single process that only plans a run must not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from pipeline.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

_log = logging.getLogger("sgsfa.processes")

_COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_LAUNCHER_VARIABLES = (*_COUNTS, "MASTER_ADDR", "MASTER_PORT")

_CONNECT_TIMEOUT = timedelta(minutes=5)
_COLLECTIVE_TIMEOUT = timedelta(days=1)
"""Other ranks wait in a collective while rank 0 builds masks or evaluates, which may take hours."""
_ROOT_CAUSE_DELAY = 2.0
"""Seconds to wait before the end, so that torchrun, which polls ten times a second, sees the first failure first."""


class LostProcessError(DeviceError):
    """Another process of the run ended; its own error is the cause."""


@dataclass(frozen=True, slots=True)
class RankInfo:
    """The place of this process among those of the run.

    Attributes:
        rank: 0 for the main process.
        world_size: Number of processes; 1 without torchrun.
        local_rank: Rank among the processes of this machine, and index of this process's GPU.
        local_world_size: Number of processes on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process: for `cuda` without an index, the GPU of its local rank.

        Raises:
            DeviceError: There are more processes than GPUs, or the processes of a machine were to share one GPU.
        """
        if device.type != "cuda":
            return device
        import torch

        if self.local_world_size > 1 and device.index is not None:
            raise DeviceError(
                f"{self.local_world_size} processes cannot share {device}",
                hint="use `cuda` or `auto`: each process takes its own GPU; CUDA_VISIBLE_DEVICES selects them",
            )
        if self.local_world_size > 1 and self.local_world_size > torch.cuda.device_count():
            raise DeviceError(
                f"{self.local_world_size} processes but {torch.cuda.device_count()} GPUs on this machine",
                hint=f"torchrun --nproc-per-node={torch.cuda.device_count()}",
            )
        return device if device.index is not None else torch.device("cuda", self.local_rank)

    def select_device(self, name: str) -> torch.device:
        """Return the device of this process by its configured name; make a GPU the current one.

        Raises:
            DeviceError: The device is not available or cannot be shared.
        """
        import torch

        from pipeline.runtime.device import resolve_device

        device = self.device(resolve_device(name))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device


def rank_info(environ: Mapping[str, str] = os.environ) -> RankInfo:
    """Read the place of this process from the variables that torchrun sets.

    Raises:
        ConfigError: Some of the variables are missing, not numbers, or contradict each other.
    """
    present = {name: environ[name] for name in _LAUNCHER_VARIABLES if name in environ}
    invalid = [f"{name}={present[name]!r}" for name in _COUNTS if name in present and not present[name].isdecimal()]
    if invalid:
        raise _launcher_error(f"launcher variable is not a valid number: {', '.join(invalid)}", present)
    counts = {name: int(present[name]) for name in _COUNTS if name in present}
    if all(counts.get(name, 1) == 1 for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")) and not any(
        counts.get(name, 0) for name in ("RANK", "LOCAL_RANK")
    ):
        return RankInfo()
    missing = [name for name in _LAUNCHER_VARIABLES if name not in present]
    if missing:
        raise _launcher_error(f"launcher variables are missing: {', '.join(missing)}", present)
    info = RankInfo(*(counts[name] for name in _COUNTS))
    if not (info.rank < info.world_size and info.local_rank < info.local_world_size <= info.world_size):
        raise _launcher_error("launcher variables contradict each other", present)
    return info


def _launcher_error(message: str, present: Mapping[str, str]) -> ConfigError:
    return ConfigError(
        message,
        where=", ".join(f"{name}={value}" for name, value in present.items()),
        expected=f"none of {', '.join(_COUNTS)}, or all of them with MASTER_ADDR and MASTER_PORT",
        hint="for several processes, start with torchrun --nproc-per-node=N, which sets all of them; "
        f"for a single one, unset {' '.join(present)}",
    )


@contextlib.contextmanager
def process_group() -> Iterator[RankInfo]:
    """Connect the processes of the run; collectives work inside.

    In a single process, and inside another `process_group`, this does nothing. After an error a program has to end by
    `os._exit`: with NCCL even the usual end of the interpreter waits for the other processes.

    Yields:
        The place of this process.

    Raises:
        ConfigError: As `rank_info`.
        DeviceError: The processes cannot connect, or another one ended before its work was done.
    """
    info = rank_info()
    if info.world_size == 1:
        yield info
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield info
        return
    _connect(info)
    try:
        with _sigterm_interrupts(info):
            yield info
            barrier()
    except RuntimeError as error:
        if not _is_connection_loss(error):
            raise
        time.sleep(_ROOT_CAUSE_DELAY)
        raise LostProcessError(
            "another process of this run ended",
            expected=f"all {info.world_size} processes alive until the end",
            hint="torchrun's report names it; start the same command again to resume from the last saved state",
            cause=error,
        ) from error
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process of the run has called this."""
    same_on_all_ranks(0)


def broadcast(value: T) -> T:
    """Return the `value` of rank 0, a small object that can be pickled, in every process."""
    if rank_info().world_size == 1:
        return value
    import torch
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def gather(value: T) -> list[T]:
    """Return the `value` of every process in order of ranks, small objects that can be pickled, on rank 0.

    Elsewhere the list is empty.
    """
    info = rank_info()
    if info.world_size == 1:
        return [value]
    import torch.distributed as dist

    values: list[T | None] | None = [None] * info.world_size if info.is_main else None
    dist.gather_object(value, values, dst=0)
    return cast("list[T]", values or [])


def same_on_all_ranks(number: int) -> bool:
    """Return whether all processes of the run call this with the same number."""
    if rank_info().world_size == 1:
        return True
    import torch
    import torch.distributed as dist

    # On the CPU: unlike `dist.barrier`, this needs no GPU, which a process that only waits has not selected.
    extremes = torch.tensor([number, -number])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return bool(extremes[0] == -extremes[1])


_group_numbers = itertools.count()


@functools.cache
def _store() -> Store:
    """Connect to the key-value store of the run; rank 0 hosts it where torchrun does not."""
    from torch.distributed.rendezvous import rendezvous

    store: Store
    store, _, _ = next(iter(rendezvous("env://", timeout=_CONNECT_TIMEOUT)))
    return store


def _connect(info: RankInfo) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    _log.info("connecting %d processes at %s", info.world_size, address)
    try:
        # A program may connect several times; keys of an earlier group must not be found again.
        store = PrefixStore(f"sgsfa-{next(_group_numbers)}", _store())
        dist.init_process_group(
            backend, store=store, rank=info.rank, world_size=info.world_size, timeout=_COLLECTIVE_TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"the {info.world_size} processes cannot connect",
            where=address,
            expected=f"all of them started within {_CONNECT_TIMEOUT.seconds // 60} minutes",
            hint="start them with torchrun; between machines, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the "
            "network interface (eth0, ...)",
            cause=error,
        ) from error


@contextlib.contextmanager
def _sigterm_interrupts(info: RankInfo) -> Iterator[None]:
    """Treat SIGTERM, which torchrun sends when a process has died, as Ctrl-C in the main process."""
    if not info.is_main or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BaseException:
        # A further SIGTERM must not interrupt the error's message.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)


def _is_connection_loss(error: RuntimeError) -> bool:
    """Tell a lost connection, whose cause lies in another process, from an internal error."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)
