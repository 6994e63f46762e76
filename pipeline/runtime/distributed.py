"""Several processes that work on one job, started by torchrun.

Rank 0, the leader, runs the program as a single process would. The others wait in `serve` and do only what the leader
calls by `together`: so locks, artifacts and messages stay the business of one process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import DeviceError, UserError, first_line
from pipeline.runtime.device import memory_watched, no_room, resolve_device

R = TypeVar("R")

_PATIENCE = timedelta(hours=2)
"""How long a process waits for a silent one, which may be testing the network."""

_PIECE = 4 * 2**20
"""Bytes; torch's store breaks the connection over a value of more than 8 MiB, and the records of large data sets take
more."""

_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 10.0
"""How long a process that must end, because another one failed, may take to notice that by itself. With gloo it does,
because connections break. With NCCL it waits within a kernel that never ends."""


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the processes of the run.

    Attributes:
        rank: 0 for the leader.
        size: Number of processes; 1 when torchrun did not start us.
        local_rank: Number of the process on its machine, which is also its GPU's number.
        local_size: Number of processes on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leader(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: its own GPU, by its number, where `cuda` was asked for without one.

        Raises:
            DeviceError: There are more processes than GPUs, or all were to share one; in every process alike.
        """
        if device.type != "cuda":
            return device
        if self.local_size > 1 and device.index is not None:
            raise DeviceError(
                f"{self.local_size} processes cannot share {device}",
                hint="use `cuda` or `auto`: each process takes its own GPU; CUDA_VISIBLE_DEVICES says which there are",
            )
        if self.local_size > 1 and self.local_size > torch.cuda.device_count():
            raise DeviceError(
                f"{self.local_size} processes were started here, and there are {torch.cuda.device_count()} GPUs",
                hint=f"torchrun --nproc-per-node={torch.cuda.device_count()}",
            )
        return device if device.index is not None else torch.device("cuda", self.local_rank)

    def take_device(self, name: str) -> torch.device:
        """The device of this process by its name in the configuration; a GPU becomes the current one.

        Raises:
            DeviceError: It is not there or cannot be shared so, in every process alike; or it has no memory left for
                any program.
        """
        device = self.device(resolve_device(name))
        if device.type == "cuda":
            with memory_watched(device, lambda: no_room(device, "not even an empty program fits")):
                torch.cuda.set_device(device)
        return device


def world() -> World:
    """The place that torchrun gave this process by its environment variables."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


@contextlib.contextmanager
def leading(tell: Callable[[DeviceError], None] | None = None) -> Iterator[None]:
    """The leader's block: inside, `together` calls all processes; at its end they are sent home.

    In a single process it does nothing. To be used once in a process, as `serve` is. After an error the process has to
    end by `os._exit`: taking down a group of processes that has lost one waits for it, even at the interpreter's own
    end.

    Args:
        tell: Tells the user of another process's error where this one cannot raise it, because it waits for the other
            within a GPU's kernel. The process ends after it.
    """
    if world().size == 1:
        yield
        return
    board = _Board()

    def end(told: str) -> None:
        if tell is not None:
            tell(_lost(told))

    with _Watch("trouble", end, DeviceError.exit_code):
        try:
            with _told_to_stop():
                yield
        except BaseException as error:
            # First of all, because the others may wait for this process within a kernel.
            with contextlib.suppress(RuntimeError):
                board.fail()
                board.post(None)
            told = board.trouble()
            if isinstance(error, KeyboardInterrupt) and told is not None:
                # Torchrun's SIGTERM, which follows the other one's end.
                raise _lost(told) from error
            if isinstance(error, RuntimeError) and _tells_of_a_loss(error):
                raise _lost(told, error) from error
            raise
        board.post(None)
        _leave()


def serve() -> None:
    """What all processes but the leader do: wait for calls and join in, until the leader sends them home.

    After an error the process has to end by `os._exit`, as after one of `leading`.

    Raises:
        DeviceError: Another process ended; that one tells why.
        Exception: Whatever the joint work raised; its text is left for the leader to tell.
    """
    board = _Board()
    with _Watch("failed", lambda told: None, DeviceError.exit_code):
        try:
            while (call := board.wait()) is not None:
                module, name, arguments = call
                _join(board)
                getattr(importlib.import_module(module), name)(**arguments)
        except KeyboardInterrupt:
            raise  # the leader is stopped as well
        except BaseException as error:
            if isinstance(error, RuntimeError) and _tells_of_a_loss(error):
                raise _lost(None, error) from error
            board.tell(error)
            raise
        if not board.failed():
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


def same_everywhere(number: int) -> bool:
    """Whether all processes of the run call this with the same number."""
    if world().size == 1:
        return True
    most = torch.tensor([number, -number])
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return bool(most[0] == -most[1])


class _Board:
    """Torchrun's key-value store, used as a notice board from the leader to the others."""

    def __init__(self) -> None:
        self._store = PrefixStore("sgsfa", _store())
        self._read = 0

    def post(self, call: tuple[str, str, dict[str, Any]] | None) -> None:
        number = self._store.add("calls", 1) - 1
        text = pickle.dumps(call)
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        for i, piece in enumerate(pieces):
            # The stubs say text; the store takes and gives bytes.
            self._store.set(f"call-{number}-{i}", piece)  # type: ignore[arg-type]
        self._store.set(f"call-{number}", str(len(pieces)))

    def wait(self) -> tuple[str, str, dict[str, Any]] | None:
        # Polled, because the leader may first render or parse for hours, longer than any timeout of the store.
        key = f"call-{self._read}"
        while not self._store.check([key]):
            time.sleep(0.1)
        self._read += 1
        pieces = range(int(self._store.get(key)))
        call: tuple[str, str, dict[str, Any]] | None = pickle.loads(
            b"".join(self._store.get(f"{key}-{i}") for i in pieces)
        )
        return call

    def tell(self, error: BaseException) -> None:
        """Leave an error for the leader to tell."""
        place = world()
        facts = {"found": str(error), "where": None, "expected": None, "hint": None}
        if isinstance(error, UserError):
            facts = {name: getattr(error, name) for name in facts}
        facts["found"] = f"process {place.rank} of {place.size} stopped with {type(error).__name__}: {facts['found']}"
        with contextlib.suppress(RuntimeError):
            self._store.set("trouble", json.dumps(facts))

    def trouble(self) -> str | None:
        """What another process told."""
        with contextlib.suppress(RuntimeError):
            return self._store.get("trouble").decode() if self._store.check(["trouble"]) else None
        return None

    def fail(self) -> None:
        """Say that the leader ends by an error."""
        self._store.set("failed", "1")

    def failed(self) -> bool:
        """Whether the leader ended by an error, or is gone with the store."""
        with contextlib.suppress(RuntimeError):
            return self._store.check(["failed"])
        return True

    @property
    def store(self) -> Store:
        return self._store


@contextlib.contextmanager
def _told_to_stop() -> Iterator[None]:
    """Inside, SIGTERM is as good as Ctrl-C.

    Torchrun sends it as soon as one process has died. Once something is wrong here it changes nothing any more, so
    that there is time to tell what.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)


class _Watch:
    """A thread that ends this process some time after another one has written `key` on the board.

    Within the grace the process may end by itself, with a better message.

    Args:
        key: What to look for.
        last: What to do before the end, with the text that was written.
        code: To end with.
    """

    def __init__(self, key: str, last: Callable[[str], None], code: int) -> None:
        self._key, self._last, self._code = key, last, code
        self._over = threading.Event()

    def __enter__(self) -> None:
        # A connection of its own: the other one may be waiting.
        store = PrefixStore("sgsfa", _store().clone())
        threading.Thread(target=self._look, args=(store,), name="watch", daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _look(self, store: Store) -> None:
        with contextlib.suppress(RuntimeError):
            while not self._over.wait(_LOOK_SECONDS):
                if store.check([self._key]) and not self._over.wait(_GRACE_SECONDS):
                    try:
                        # Not asked of the board, whose connection the main thread may be waiting in.
                        self._last(store.get(self._key).decode())
                        sys.stderr.flush()
                    finally:
                        os._exit(self._code)


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
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore("group", board.store),
            rank=place.rank,
            world_size=place.size,
            timeout=_PATIENCE,
        )
    except RuntimeError as error:
        raise DeviceError(
            f"the {place.size} processes cannot connect: {first_line(error)}",
            hint="between machines, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface (eth0, ...)",
        ) from error


def _leave() -> None:
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _tells_of_a_loss(error: RuntimeError) -> bool:
    """Tell a lost connection, whose cause lies in another process, from a defect of our own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)


def _lost(told: str | None, error: RuntimeError | None = None) -> DeviceError:
    """What to say when another process has ended: what it told, or else what was noticed of it."""
    again = "start the same command again; it goes on from the last saved state"
    if told is not None:
        facts = json.loads(told)
        return DeviceError(
            facts["found"], where=facts["where"], expected=facts["expected"], hint=facts["hint"] or again
        )
    noticed = "" if error is None else f" ({first_line(error)})"
    return DeviceError(
        f"another process of this run ended, or was killed{noticed}",
        expected=f"all {world().size} processes alive until the end",
        hint=again,
    )
