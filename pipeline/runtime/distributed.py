"""Several processes that work on one job, started by torchrun.

Rank 0, the leader, runs the program as a single process would. The others wait in `serve` and do only what the leader
calls by `together`: so locks, artifacts and messages stay the business of one process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import DeviceError

R = TypeVar("R")

_PATIENCE = timedelta(hours=2)
"""How long a process waits for a silent one, which may be testing the network. A dead one is noticed at once: its
connections close."""


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the processes of the run.

    Attributes:
        rank: 0 for the leader.
        size: Number of processes; 1 when torchrun did not start us.
        local_rank: Number of the process on its machine, which is also its GPU's number.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leader(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: its own GPU, by its number, where `cuda` was asked for without one."""
        if str(device) == "cuda":
            return torch.device("cuda", self.local_rank)
        return device


def world() -> World:
    """The place that torchrun gave this process by its environment variables."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """The leader's block: inside, `together` calls all processes; at its end they are sent home.

    In a single process it does nothing.
    """
    if world().size == 1:
        yield
        return
    board = _Board()
    try:
        yield
    except RuntimeError as error:
        raise _lost_peer(error, board) from error
    finally:
        with contextlib.suppress(RuntimeError):
            board.post(None)
        _leave()


def serve() -> None:
    """What all processes but the leader do: wait for calls and join in, until the leader sends them home.

    Raises:
        Exception: Whatever the joint work raised; its text is left for the leader to tell.
    """
    board = _Board()
    try:
        while (call := board.wait()) is not None:
            module, name, arguments = call
            _join(board)
            getattr(importlib.import_module(module), name)(**arguments)
    except BaseException as error:
        with contextlib.suppress(RuntimeError):
            board.tell(f"{type(error).__name__}: {error}")
        raise
    finally:
        _leave()


def together(function: Callable[..., R], own: dict[str, Any] | None = None, /, **arguments: Any) -> R:
    """Run a module-level function in all processes at once, and return the leader's result.

    The arguments travel pickled between processes of one run, never through a file. Inside `function`,
    `torch.distributed` is initialised. A single process just calls it.

    Args:
        function: What to run.
        own: Arguments for the leader alone, such as its progress display.
        arguments: Arguments for all.
    """
    if world().size > 1:
        board = _Board()
        board.post((function.__module__, function.__name__, arguments))
        _join(board)
    return function(**arguments, **(own or {}))


def wait_for_all() -> None:
    """Return once every process of the run has called this.

    Unlike `torch.distributed.barrier`, which takes the GPU that happens to be current, it needs none.
    """
    dist.all_reduce(torch.zeros(1))


class _Board:
    """Torchrun's key-value store, used as a notice board from the leader to the others."""

    def __init__(self) -> None:
        self._store = PrefixStore("sgsfa", _store())
        self._read = 0

    def post(self, call: tuple[str, str, dict[str, Any]] | None) -> None:
        number = self._store.add("calls", 1) - 1
        # The stubs say text; the store takes and gives bytes.
        self._store.set(f"call-{number}", pickle.dumps(call))  # type: ignore[arg-type]

    def wait(self) -> tuple[str, str, dict[str, Any]] | None:
        # Polled, because the leader may first render or parse for hours, longer than any timeout of the store.
        key = f"call-{self._read}"
        while not self._store.check([key]):
            time.sleep(0.1)
        self._read += 1
        call: tuple[str, str, dict[str, Any]] | None = pickle.loads(self._store.get(key))
        return call

    def tell(self, trouble: str) -> None:
        self._store.set("trouble", f"process {world().rank} of {world().size} stopped with {trouble}")

    def trouble(self) -> str | None:
        return self._store.get("trouble").decode() if self._store.check(["trouble"]) else None

    @property
    def store(self) -> Store:
        return self._store


@functools.cache
def _store() -> Store:
    store: Store
    store, _, _ = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    return store


def _join(board: _Board) -> None:
    if dist.is_initialized():
        return
    place = world()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("group", board.store),
        rank=place.rank,
        world_size=place.size,
        timeout=_PATIENCE,
    )


def _leave() -> None:
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _lost_peer(error: RuntimeError, board: _Board) -> Exception:
    """Tell a lost connection, whose cause lies in another process, from a defect of our own."""
    lost = isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)
    if not lost:
        return error
    reason = None
    with contextlib.suppress(RuntimeError):
        reason = board.trouble()
    return DeviceError(
        reason or "another process of this run ended, or was killed",
        expected=f"all {world().size} processes alive until the end",
        hint="start the same command again; it goes on from the last saved state",
    )
